"""What a run is asked to do, apart from what does it: a dry run does not load the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighted_mtp.core.config.recipe import Recipe


@dataclass(frozen=True)
class RunRequest:
    """What to run and where.

    Attributes:
        resume: continue the run in `run_dir` from its newest complete checkpoint.
        data_dir: where generated data sets are kept, `run_dir` if None.
        record: the recipe the run directory keeps, `recipe` if None.
        saved: the recipe of the run that is resumed; None reads it.
        outer: the run this one is a stage of; its directory becomes a run together with this one's.
    """

    recipe: Recipe
    run_dir: Path
    resume: bool = False
    data_dir: Path | None = None
    record: Recipe | None = None
    saved: Recipe | None = None
    outer: RunRequest | None = None
