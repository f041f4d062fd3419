"""Surprise: in rows labelled wrong, mute the tokens that the policy itself finds unlikely.

Letters: R rows of a pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, model_validator
from torch import Tensor

from weighted_mtp.core.config.section import Section, UnitInterval
from weighted_mtp.core.logging import get_logger
from weighted_mtp.data.rows.metadata import Indices, Metadata
from weighted_mtp.pipelines.training.objectives.base import Objective, Pool, Signal, Weighed
from weighted_mtp.runtime import distributed
from weighted_mtp.value_weighting.policy_weighting import (
    spread_to_heads,
    surprise_scores,
    surprise_weights,
    token_losses_of_head_one,
)
from weighted_mtp.value_weighting.td_statistics import weight_stats, weight_sums

log = get_logger(__name__)


class SurpriseOptions(Section):
    """Settings of `objective.options`.

    Attributes:
        beta: how fast the weight falls with the surprise z; 0 mutes nothing.
        min_weight: smallest token weight.
        max_weight: largest token weight.
        muted_rows: rows whose surprising tokens are muted: those labelled wrong, or all.
    """

    beta: NonNegativeFloat = 1.0
    min_weight: UnitInterval = 0.1
    max_weight: UnitInterval = 1.0
    muted_rows: Literal["wrong", "all"] = "wrong"

    @model_validator(mode="after")
    def _ordered(self) -> SurpriseOptions:
        if self.min_weight > self.max_weight:
            raise ValueError(
                f"objective.options.min_weight ({self.min_weight}) is above max_weight "
                f"({self.max_weight})"
            )
        return self


class Surprise(Objective):
    """w_j = clamp(exp(−β · max(z_j, 0))), z_j the loss of head 1 on token j in standard deviations
    above the mean of its row. A token has one weight, whichever head predicts it."""

    Options: ClassVar[type[Section]] = SurpriseOptions
    signal: ClassVar[Signal] = "cross_entropy"

    def candidates(self, metadata: Metadata) -> Indices:
        chosen = super().candidates(metadata)
        everything_counts = self.options.muted_rows == "wrong" and metadata.is_correct[chosen].all()
        if everything_counts and distributed.is_main_process():
            log.warning(
                "no row to learn from has is_correct false, so %s mutes nothing; add wrong rows, "
                "or set objective.options.muted_rows=all",
                self.config.name,
            )
        return chosen

    def weigh(self, pool: Pool) -> Weighed:
        if pool.valid is None:
            raise ValueError("a pool of cross-entropies says which of them are valid")
        options = self.options
        ce, mask = token_losses_of_head_one(pool.signal, pool.valid)
        scores, low, high = surprise_scores(ce, mask), options.min_weight, options.max_weight
        if options.muted_rows == "wrong":
            scores = scores.masked_fill(pool.correct[:, None], 0.0)
        per_token = surprise_weights(scores, options.beta, low, high)
        sums = weight_sums(per_token, mask, low, high, per_row=True)
        groups = torch.stack([pool.correct, ~pool.correct], 1).unsqueeze(2)
        figures = {"weight": torch.where(groups, sums[:, None], 0.0)}  # [R, 2, 6]
        return Weighed(spread_to_heads(per_token, pool.valid), figures)

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        if "weight" not in sums:
            return {}
        right, wrong = sums["weight"]
        return {
            "weight": weight_stats(right + wrong),
            "weight_correct": weight_stats(right),
            "weight_incorrect": weight_stats(wrong),
        }
