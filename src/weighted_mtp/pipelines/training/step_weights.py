"""Token weights that are decided over all micro-batches and ranks of a step, before any of it is
learnt.

Letters: B batch, S sequence, n future tokens, R rows of the whole step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weighted_mtp.data.batches import Batch
from weighted_mtp.pipelines.training.module import pool_of
from weighted_mtp.pipelines.training.objectives import Objective, Pool
from weighted_mtp.runtime.pooling import concat_rows, gather_rows


@torch.no_grad()
def weights_of_step(
    wrapped: nn.Module, objective: Objective, batches: Sequence[Batch]
) -> list[Tensor | None]:
    """`[B, S, n]` for each micro-batch; None if that is for the forward pass to do.

    Args:
        wrapped: the `TrainingModule`, as it is called in training.
        batches: this rank's micro-batches.
    """
    if not objective.scores_whole_steps:
        return [None] * len(batches)
    pools = [
        pool_of(batch, wrapped(batch, "score").signal, objective.needs_reference)
        for batch in batches
    ]
    gathered = [gather_rows(pool) for pool in pools]
    whole = Pool.of(concat_rows([rows for rows, _ in gathered]))
    decided = objective.weights(whole)  # [R, S, n]
    weights: list[Tensor | None] = []
    start = 0
    for (rows, own), pool in zip(gathered, pools, strict=True):
        mine = decided[start + own.start : start + own.stop, : pool.signal.shape[1]]
        weights.append(mine)
        start += len(Pool.of(rows).rows)
    return weights
