"""The plan of an experiment: written before anything is trained, and never changed after."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from weighted_mtp import __version__
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.run_records import differences
from weighted_mtp.evaluation.result_files import write_json
from weighted_mtp.pipelines.experiments.arms import Arm
from weighted_mtp.pipelines.experiments.request import (
    BROAD,
    ExperimentRequest,
    HasArms,
    HasChosenArms,
    HasJobs,
    arm_path,
    base_path,
    is_excluded,
)

PLAN = "plan.json"
CHOICE_SEED = 1000
"""The first seed of those that λ and β are chosen with; final seeds start at 0."""


def check_request(request: ExperimentRequest) -> None:
    """Refuse what cannot be run.

    Raises:
        UserError: an arm is unknown, one of the contrast is missing, or a recipe is wrong.
    """
    design = request.design
    check_arms(design, request)
    if request.regime not in design.regimes:
        raise UserError(
            f"--regime {request.regime}: {request.name} has {', '.join(design.regimes)}"
        )
    chosen = next(iter(design.grid.values()), ())
    for arm in (design.base, *(design.arms[name] for name in request.chosen_arms)):
        design.recipe(arm, request.preset, chosen, request.settings)


def check_arms(design: HasArms, request: HasChosenArms) -> None:
    """Refuse arms that there are not, and a choice without those of the contrast.

    Raises:
        UserError: which.
    """
    unknown = [arm for arm in request.arms if arm not in design.arms]
    if unknown:
        raise UserError(f"no arm {', '.join(unknown)}; choose from {', '.join(design.arms)}")
    needed = (design.contrast.arm, design.contrast.other)
    missing = [arm for arm in needed if arm not in request.chosen_arms]
    if missing:
        raise UserError(f"the contrast needs {' and '.join(needed)}: add {missing[0]} to --arms")


def make_plan(request: ExperimentRequest) -> dict[str, Any]:
    """Everything that is decided before the first training, but for the date."""
    design, asked = request.design, asdict(request)
    for key in ("directory", "jobs", "arms", "name", "flipped", "base_rows", "base_limit"):
        del asked[key]
    return {
        "experiment": request.name,
        "versions": versions(),
        "request": {**asked, "settings": list(request.settings)},
        "rows": asdict(request.data),
        "broad_rows": asdict(BROAD),
        "final_seeds": list(range(request.seeds)),
        "choice_seeds": choice_seeds(request),
        "arms": {name: arm_as_json(design.arms[name]) for name in request.chosen_arms},
        "base": arm_as_json(design.base),
        "reference": None if design.reference is None else arm_as_json(design.reference),
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
        "comparisons": [asdict(each) for each in comparisons_of(design, request)],
        "test_of_the_comparisons": "the same, p-values corrected by Holm's method",
        "exclusion": f"a seed is excluded, with all its arms, if its base has a validation loss of "
        f"head 1 on right programs above {request.data.base_limit} nats; it is not replaced",
    }


def versions() -> dict[str, str]:
    """What the figures may depend on besides the request."""
    return {
        "weighted_mtp": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def choice_seeds(request: ExperimentRequest) -> list[int]:
    """The seeds to choose with; none where there is nothing to choose."""
    return [CHOICE_SEED + i for i in range(request.choice_seeds if request.design.grid else 0)]


def comparisons_of(design: HasArms, request: HasChosenArms) -> list[Any]:
    """Those of the design whose arms are run."""
    arms = request.chosen_arms
    return [each for each in design.comparisons if each.arm in arms and each.other in arms]


def write_plan(request: ExperimentRequest) -> dict[str, Any]:
    """Call `keep_plan` with the plan of a request."""
    return keep_plan(request, make_plan(request))


def keep_plan(request: HasJobs, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Write a plan, or check that the one that is there is the same. Fewer seeds than planned are
    no other plan, for a run that ended early, if nothing is known of the others: neither their
    contrast nor that their base failed.

    Raises:
        UserError: it differs, so that this request is another experiment; something is known of a
            seed that is not asked for; or the plan is unreadable.
    """
    path = request.directory / PLAN
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        write_json(path, {"written": now, **plan})
    found = read_json(path)
    dated = {"written": found.get("written"), **plan}
    for key, there, asked in sorted(differences(found, dated), key=lambda each: each[0]):
        if _is_shorter(key, there, asked):
            if key == "final_seeds":
                _check_left_out(request, found, there[len(asked) :])
            continue
        raise UserError(
            f"{path}: the plan says {key} {there!r}, now it would be {asked!r}; a plan is not "
            "changed once it is written: ask for the same, or give another --output-dir"
        )
    return dict(found)


def _is_shorter(key: str, there: Any, asked: Any) -> bool:
    """Whether a difference is one of fewer seeds."""
    if key == "request.seeds":
        return isinstance(there, int) and asked < there
    return key == "final_seeds" and isinstance(there, list) and there[: len(asked)] == asked


def _check_left_out(request: HasJobs, plan: Mapping[str, Any], seeds: Sequence[int]) -> None:
    contrast = plan["contrast"]["arm"], plan["contrast"]["other"]
    limit = plan.get("rows", {}).get("base_limit")
    for seed in reversed(seeds):
        known = all(arm_path(request, seed, arm).exists() for arm in contrast)
        base = base_path(request, seed)
        failed = base.exists() and is_excluded(read_json(base)["loss"], limit)
        if known or failed:
            what = "the contrast is" if known else "that its base failed is"
            raise UserError(
                f"{request.directory}: {what} known of seed {seed}, so it counts; "
                f"give --seeds {seed + 1} or more"
            )


def arm_as_json(arm: Arm) -> dict[str, Any]:
    """An arm as it stands in plan.json."""
    return {**asdict(arm), "settings": list(arm.settings)}
