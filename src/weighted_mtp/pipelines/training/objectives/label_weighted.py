"""Rows labelled wrong count less: what labels alone are worth, without a critic.

Letters: R rows of a pool, S sequence, n future tokens (heads).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from weighted_mtp.core.config.section import Section, UnitInterval
from weighted_mtp.pipelines.training.objectives.base import Objective, Pool, Signal, Weighed


class LabelWeightedOptions(Section):
    """Settings of `objective.options`.

    Attributes:
        wrong_weight: weight of every token in rows labelled wrong; 1 is `uniform`, 0 leaves them
            out of the batches that they are drawn in.
    """

    wrong_weight: UnitInterval = 0.1


class LabelWeighted(Objective):
    """Every token of a right row counts 1, of a wrong one `wrong_weight`. The control for any
    weighting that may do no more than tell right rows from wrong ones."""

    Options: ClassVar[type[Section]] = LabelWeightedOptions
    signal: ClassVar[Signal] = "labels"

    def weigh(self, pool: Pool) -> Weighed:
        R, S = pool.signal.shape
        of_rows = torch.where(pool.correct, 1.0, self.options.wrong_weight)  # [R]
        return Weighed(of_rows[:, None, None].expand(R, S, self.heads).contiguous())
