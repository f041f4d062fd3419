"""Plain supervised fine-tuning: every token of the chosen rows counts the same."""

from __future__ import annotations

from typing import ClassVar, Literal

from weighted_mtp.pipelines.training.objectives.base import Objective


class CorrectOnly(Objective):
    """The baseline (and ntp): solutions that pass their tests."""

    default_rows: ClassVar[Literal["correct", "all"]] = "correct"


class Uniform(Objective):
    """The control without weights: all rows, right and wrong alike."""
