"""The oracle: what it is worth to know which tokens of a wrong program are wrong."""

from __future__ import annotations

from typing import ClassVar

from weighted_mtp.pipelines.training.objectives.base import Objective


class Oracle(Objective):
    """All rows, every token weighted alike, but those of a wrong program that the mutation changed,
    which are no targets (`training.mutated`). Micro tasks alone know them."""

    needs_mutations: ClassVar[bool] = True
