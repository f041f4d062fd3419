"""Dynamic Fine-Tuning (Wu et al. 2025, arXiv 2508.05629), head by head.

Letters: R rows of a pool, n future tokens (heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from weighted_mtp.core.config.sections import PipelineName
from weighted_mtp.pipelines.training.objectives.base import CorrectOnly, Pool, Signal, Weighed
from weighted_mtp.value_weighting.policy_weighting import probability_weights
from weighted_mtp.value_weighting.td_statistics import weight_stats, weight_sums


class DFT(CorrectOnly):
    """The weight of a token is the probability that the head which predicts it gives it."""

    pipelines: ClassVar[tuple[PipelineName, ...]] = ("baseline", "ntp")
    signal: ClassVar[Signal] = "cross_entropy"

    def weigh(self, pool: Pool) -> Weighed:
        if pool.valid is None:
            raise ValueError("a pool of cross-entropies says which of them are valid")
        weights = probability_weights(pool.signal, pool.valid)
        heads = zip(weights.unbind(2), pool.valid.unbind(2), strict=True)
        sums = [weight_sums(w, there, 0.0, 1.0, per_row=True) for w, there in heads]
        return Weighed(weights, {"weight": torch.stack(sums, 1)})  # [R, n, 6]

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        if "weight" not in sums:
            return {}
        means = [weight_stats(head)["mean"] for head in sums["weight"]]
        return {"weight": weight_stats(sums["weight"].sum(0)), "head_weight_mean": means}
