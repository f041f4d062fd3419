"""What an experiment is asked to do, and what there is to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from weighted_mtp.pipelines.experiments.arms import DESIGNS, Arm, Comparison, Design


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


class HasArms(Protocol):
    """What every design has: arms, and what is compared."""

    @property
    def arms(self) -> Mapping[str, Arm]: ...

    @property
    def contrast(self) -> Comparison: ...

    @property
    def comparisons(self) -> Sequence[Comparison]: ...


class HasChosenArms(Protocol):
    """What every request has: the arms that were named, and those to run."""

    @property
    def arms(self) -> tuple[str, ...]: ...

    @property
    def chosen_arms(self) -> tuple[str, ...]: ...


class HasJobs(Protocol):
    """What every request has.

    Attributes:
        directory: of plan, results and what is needed to go on.
        jobs: seeds at a time, one thread each.
    """

    @property
    def directory(self) -> Path: ...

    @property
    def jobs(self) -> int: ...


def arm_path(request: HasJobs, number: int, arm: str) -> Path:
    """The file with the result of an arm under a seed."""
    return request.directory / f"seed{number}" / "arms" / f"{arm}.json"


def base_path(request: HasJobs, number: int) -> Path:
    """The file with the figures of a seed's base."""
    return request.directory / f"seed{number}" / "base.json"


def is_excluded(loss: float | None, limit: float) -> bool:
    """The plan's rule; None is a loss that was not finite."""
    return loss is None or not loss <= limit


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
