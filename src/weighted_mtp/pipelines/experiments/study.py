"""Studies: small tasks of a paper, every arm trained from scratch on endless fresh puzzles.

They share plan, seeds in processes and one file an arm with the other experiments; there is no
common start, nothing to choose, and accuracy takes the place of the held-out loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from weighted_mtp.pipelines.experiments.arms import Arm, Comparison

if TYPE_CHECKING:
    from weighted_mtp.core.config.recipe import Recipe
    from weighted_mtp.micro_tasks.puzzles import PuzzleTask


class StudySize(NamedTuple):
    """How much a study runs unless told: steps of every arm, held-out puzzles of each level."""

    steps: int
    n_test: int


STUDY_SIZES = {
    "star-graph": StudySize(steps=2500, n_test=1000),
    "polynomials": StudySize(steps=1000, n_test=500),
    "induction": StudySize(steps=600, n_test=300),
}
"""Of the studies by name (studies.py), which the command's help shows without loading puzzles."""


@dataclass(frozen=True)
class Measure:
    """An accuracy.

    Attributes:
        asked: which places of the answers count, see `Puzzle.asked`.
        levels: of the puzzles that count.
        whole: the share of puzzles with all those places right; else the share of the places.
        about: in words.
    """

    asked: str
    levels: tuple[str, ...]
    whole: bool
    about: str


@dataclass(frozen=True)
class Claim(Comparison):
    """A comparison, with what was published about it.

    Attributes:
        sign: of the published difference: 1, −1, or 0 where nothing was published.
        published: by whom and what, in words.
        measure: what is compared; "" for the study's primary one.
    """

    sign: int = 0
    published: str = ""
    measure: str = ""


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        about: what is measured and on what, for the results page.
        settings: of the recipe of every arm.
        extra: arms that are run only when they are named.
        measures: accuracies by name, the primary one first.
        contrast: the one comparison that is named before the run and not corrected for others.
        chance: what guessing reaches in the primary measure.
        size: unless a request says otherwise.
        points: marks of the picture's horizontal axis.
        lines: of the picture, by name: arm and measure at each of the points. Without lines it
            shows the primary measure of each arm.
        axes: names of the picture's axes, where it has lines.
    """

    name: str
    about: str
    task: PuzzleTask
    settings: tuple[str, ...]
    arms: Mapping[str, Arm]
    measures: Mapping[str, Measure]
    contrast: Claim
    comparisons: tuple[Claim, ...]
    chance: float
    size: StudySize
    extra: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    axes: tuple[str, str] = ("", "")
    lines: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        return next(iter(self.measures))


@dataclass(frozen=True)
class StudyRequest:
    """What to run.

    Attributes:
        directory: of plan, results and what is needed to go on.
        seeds: runs of each arm, each with its own puzzles and initial weights.
        arms: () for all but the extra ones.
        steps: optimizer steps of every arm; None for those of the study.
        n_test: held-out puzzles of each level, the same for all; None for those of the study.
        jobs: seeds at a time, one thread each.
        settings: `section.key=value` for every recipe.
    """

    directory: Path
    study: Study
    seeds: int = 5
    arms: tuple[str, ...] = ()
    steps: int | None = None
    n_test: int | None = None
    jobs: int = 1
    settings: tuple[str, ...] = ()

    @property
    def chosen_arms(self) -> tuple[str, ...]:
        """The arms to run, in the order of the study."""
        arms, extra = self.study.arms, self.study.extra
        return tuple(x for x in arms if (x in self.arms if self.arms else x not in extra))

    @property
    def chosen_steps(self) -> int:
        return self.steps or self.study.size.steps

    @property
    def tested(self) -> int:
        """Held-out puzzles of each level."""
        return self.n_test or self.study.size.n_test

    def recipe(self, arm: str, seed: int = 0) -> Recipe:
        """Load the recipe of an arm.

        Raises:
            UserError: a setting is wrong.
        """
        from weighted_mtp.core.config.recipe import load_recipe  # not for the names of studies

        own = (f"training.steps={self.chosen_steps}", f"runtime.seed={seed}")
        chosen = self.study.arms[arm]
        settings = [*SETTINGS, *self.study.settings, *chosen.settings, *self.settings, *own]
        return load_recipe(chosen.recipe, "micro", settings)


SETTINGS = (
    "objective.rows=all",
    "tokenizer.kind=bytes",  # a symbol is a token: the model has 259
    "data.pad_to_multiple=1",
    "training.schedule=wsd",
    "training.optimizer=muon",
    "training.learning_rate=3e-3",
    "training.final_learning_rate=0",
    "training.warmup_fraction=0.05",
    "training.weight_decay=0.01",
    "model.init_std=0.05",
    "model.architecture.multiple_of=32",
    "runtime.compute_dtype=float32",
    "runtime.device=cpu",
)
