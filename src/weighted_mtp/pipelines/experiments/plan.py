"""The plan of an experiment: written before anything is trained, and never changed after."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weighted_mtp import __version__
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json
from weighted_mtp.evaluation.result_files import write_json
from weighted_mtp.pipelines.experiments.arms import DESIGNS, Design

PLAN = "plan.json"
CHOICE_SEED = 1000
"""The first seed of those that λ and β are chosen with; final seeds start at 0."""


@dataclass(frozen=True)
class Regime:
    """What there is to learn from.

    Attributes:
        right, wrong: training rows of each kind, before any label is flipped.
        problems: problems they are drawn from.
        flipped: share of the training labels that are flipped.
        base_rows: what base and critic learn from, if the request does not say: the same rows
            (`regime`), or a `broad` set of their own.
        about: in words.
        replaced: share of the response tokens that are replaced at random; a third of the problems
            is then kept clean for the reference.
        base_limit: a seed is excluded if the validation loss of its base is above it, in nats per
            token of head 1 on right programs.
    """

    right: int
    wrong: int
    problems: int
    flipped: float
    base_rows: str
    about: str
    replaced: float = 0.0
    base_limit: float = 0.5


REGIMES = {
    "balanced": Regime(1800, 1800, 900, 0.0, "regime", "as many right programs as wrong ones"),
    "scarce": Regime(
        150,
        1800,
        900,
        0.0,
        "broad",
        "twelve wrong programs for each right one, after a base and critic from a broad set",
    ),
    "noisy-labels": Regime(
        1800, 1800, 900, 0.3, "regime", "balanced, with flipped training labels"
    ),
    "noisy-tokens": Regime(
        1800,
        0,
        900,
        0.0,
        "regime",
        "right programs, 15 % of whose tokens are replaced at random (rho1)",
        replaced=0.15,
        base_limit=0.7,
    ),
}
BROAD = Regime(2700, 2700, 900, 0.0, "broad", "as many right programs as wrong ones")
"""What a base with `base_rows` broad learns from: other problems, other wordings, true labels."""


@dataclass(frozen=True)
class ExperimentRequest:
    """What to run.

    Attributes:
        directory: of plan, results and what is needed to go on.
        flipped: share of flipped labels; None for that of the regime.
        seeds: final runs; each has its own base and its own draw of the data.
        choice_seeds: further runs, on which λ and β are chosen.
        steps, base_steps: optimizer steps of every arm and of the base.
        base_rows: `regime` or `broad`; None for that of the regime.
        n_test, n_validation: held-out problems of either split, a right and a wrong program each.
        n_problems: test problems that every arm writes a program for; 0 for none.
        base_limit: of the regime; None for its own.
        jobs: seeds at a time, one thread each.
        settings: `section.key=value` for every recipe.
    """

    directory: Path
    name: str = "wmtp"
    regime: str = "scarce"
    preset: str = "micro"
    flipped: float | None = None
    seeds: int = 10
    choice_seeds: int = 2
    arms: tuple[str, ...] = ()
    steps: int = 90
    base_steps: int = 500
    base_rows: str | None = None
    n_test: int = 200
    n_validation: int = 150
    n_problems: int = 100
    base_limit: float | None = None
    jobs: int = 1
    settings: tuple[str, ...] = ()

    @property
    def design(self) -> Design:
        return DESIGNS[self.name]

    @property
    def data(self) -> Regime:
        """The regime, with the changes that were asked for."""
        regime = REGIMES[self.regime]
        flipped = regime.flipped if self.flipped is None else self.flipped
        base_rows = self.base_rows or regime.base_rows
        limit = regime.base_limit if self.base_limit is None else self.base_limit
        return replace(regime, flipped=flipped, base_rows=base_rows, base_limit=limit)

    @property
    def chosen_arms(self) -> tuple[str, ...]:
        """The arms to run, in the order of the design."""
        return tuple(name for name in self.design.arms if not self.arms or name in self.arms)


def check_request(request: ExperimentRequest) -> None:
    """Refuse what cannot be run.

    Raises:
        UserError: an arm is unknown, one of the contrast is missing, or a recipe is wrong.
    """
    design = request.design
    unknown = [arm for arm in request.arms if arm not in design.arms]
    if unknown:
        raise UserError(f"no arm {', '.join(unknown)}; choose from {', '.join(design.arms)}")
    if request.regime not in design.regimes:
        raise UserError(
            f"--regime {request.regime}: {request.name} has {', '.join(design.regimes)}"
        )
    needed = (design.contrast.arm, design.contrast.other)
    missing = [arm for arm in needed if arm not in request.chosen_arms]
    if missing:
        raise UserError(f"the contrast needs {' and '.join(needed)}: add {missing[0]} to --arms")
    chosen = next(iter(design.grid.values()), ())
    for arm in (design.base, *(design.arms[name] for name in request.chosen_arms)):
        design.recipe(arm, request.preset, chosen, request.settings)


def make_plan(request: ExperimentRequest) -> dict[str, Any]:
    """Everything that is decided before the first training, but for the date."""
    design, asked = request.design, asdict(request)
    for key in ("directory", "jobs", "arms", "name", "flipped", "base_rows", "base_limit"):
        del asked[key]
    return {
        "experiment": request.name,
        "versions": {
            "weighted_mtp": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "request": {**asked, "settings": list(request.settings)},
        "rows": asdict(request.data),
        "broad_rows": asdict(BROAD),
        "final_seeds": list(range(request.seeds)),
        "choice_seeds": choice_seeds(request),
        "arms": {name: _arm(design.arms[name]) for name in request.chosen_arms},
        "base": _arm(design.base),
        "reference": None if design.reference is None else _arm(design.reference),
        "settings_of_all": list(design.settings),
        "settings_of_arms": list(design.arm_settings),
        "choice": {
            "arm": design.chooser,
            "settings": {name: list(settings) for name, settings in design.grid.items()},
            "rule": "lowest mean over the choice seeds of the validation loss of head 1 on right "
            "programs; written to choice.json before a test program is generated",
        }
        if design.grid
        else None,
        "primary_figure": "loss of head 1 on right programs of the test split, nats per token "
        "(all tokens of a seed together)",
        "contrast": asdict(design.contrast),
        "test_of_the_contrast": "two-sided paired t-test over the seeds that are not excluded, "
        "alpha 0.05",
        "comparisons": [asdict(each) for each in comparisons_of(request)],
        "test_of_the_comparisons": "the same, p-values corrected by Holm's method",
        "exclusion": f"a seed is excluded, with all its arms, if its base has a validation loss of "
        f"head 1 on right programs above {request.data.base_limit} nats; it is not replaced",
    }


def choice_seeds(request: ExperimentRequest) -> list[int]:
    """The seeds to choose with; none where there is nothing to choose."""
    return [CHOICE_SEED + i for i in range(request.choice_seeds if request.design.grid else 0)]


def comparisons_of(request: ExperimentRequest) -> list[Any]:
    """Those of the design whose arms are run."""
    arms = request.chosen_arms
    return [each for each in request.design.comparisons if each.arm in arms and each.other in arms]


def write_plan(request: ExperimentRequest) -> dict[str, Any]:
    """Write the plan, or check that the one that is there is the same.

    Raises:
        UserError: it differs, so that this request is another experiment; or it is unreadable.
    """
    path, plan = request.directory / PLAN, make_plan(request)
    if not path.exists():
        request.directory.mkdir(parents=True, exist_ok=True)
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        write_json(path, {"written": now, **plan})
    found = read_json(path)
    for key, there, asked in differences(found, plan):
        raise UserError(
            f"{path}: the plan says {key} {there!r}, now it would be {asked!r}; a plan is not "
            "changed once it is written: ask for the same, or give another --output-dir"
        )
    return dict(found)


def differences(
    found: Mapping[str, Any], plan: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of whatever differs; the date may."""
    for key in sorted({*found, *plan} - {"written"}):
        there, asked = found.get(key), plan.get(key)
        if isinstance(there, Mapping) and isinstance(asked, Mapping):
            for name, old, new in differences(there, asked):
                yield f"{key}.{name}", old, new
        elif there != asked:
            yield key, there, asked


def _arm(arm: Any) -> dict[str, Any]:
    return {**asdict(arm), "settings": list(arm.settings)}
