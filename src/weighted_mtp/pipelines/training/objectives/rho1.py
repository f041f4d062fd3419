"""Rho-1: learn only from the tokens on which the policy is furthest behind a reference model
(Lin et al. 2024, arXiv 2404.07965), head by head.

Letters: R rows of a pool, S sequence, n future tokens (heads), m micro-batches of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from weighted_mtp.core.config.sections import ObjectiveConfig, PipelineName
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.pipelines.training.objectives.base import Objective, Pool, Signal, Weighed
from weighted_mtp.runtime import distributed
from weighted_mtp.value_weighting.rho1_weighting import (
    align_reference,
    compute_mtp_selective_weights,
    kept_count,
    rho1_stats,
    rho1_sums,
)

log = get_logger(__name__)


class Rho1(Objective):
    """Weight 1 for exactly ⌈k·N⌉ of the N tokens of each head in the pool, 0 for the others."""

    pipelines: ClassVar[tuple[PipelineName, ...]] = ("rho1",)
    signal: ClassVar[Signal] = "cross_entropy"
    pooled = True

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        super().__init__(config, heads, seed)
        self.rho1 = config.rho1
        self.needs_reference = self.rho1.mode != "difficult"
        if self.rho1.mode != "signed" and distributed.is_main_process():
            log.warning(
                "objective.rho1.mode %s keeps most of the noise in the data (tokens that no model "
                "can predict have a high loss); mode signed drops most of it",
                self.rho1.mode,
            )

    def denominators(self, counts: Tensor) -> Tensor:
        """Count the tokens that will be kept, which is known before any of them is chosen."""
        pools = counts if self.config.scope == "micro_batch" else counts.sum(0, keepdim=True)
        kept = kept_count(pools, self.rho1.k_percent).sum(0).to(counts.dtype)
        first = counts.sum(0)[0] if self.rho1.first_head_always else kept[0]
        return torch.cat([first.view(1), kept[1:]])

    def weigh(self, pool: Pool) -> Weighed:
        policy, valid, rho1 = pool.signal, pool.valid, self.rho1
        if valid is None:
            raise ValueError("a pool of cross-entropies says which of them are valid")
        reference = self._reference(pool)
        weights = compute_mtp_selective_weights(
            policy, reference, valid, rho1.k_percent, rho1.mode, rho1.first_head_always
        )
        sums = rho1_sums(weights, policy, reference, valid, per_row=True)
        return Weighed(weights, {"rho1": sums})

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"rho1": rho1_stats(sums["rho1"])} if "rho1" in sums else {}

    def _reference(self, pool: Pool) -> Tensor | None:
        """`[R, S, n]` the reference's losses, aligned with the policy's."""
        reference = pool.reference
        if reference is None:
            if self.needs_reference:
                raise UserError(
                    "rho1 needs a reference model's losses: set objective.rho1.reference or "
                    "objective.rho1.reference_model"
                )
            return None
        if self.rho1.reference_heads == "next" and reference.ndim == 3:
            reference = reference[:, :, :1]
        return align_reference(reference, self.heads, pool.signal.shape[1])
