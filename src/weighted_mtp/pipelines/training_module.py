"""The one module that is wrapped, sharded and called: tokens in, loss out.

Trunk, heads and fused loss run inside a single `forward`, so DDP and FSDP see one forward and one
backward, and nothing happens behind their back.

Letters: B batch, S sequence, n future tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.collators import Batch
from weighted_mtp.losses import mtp_loss, shift_labels
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.objectives import Objective


class StepOutput(NamedTuple):
    """What one micro-batch gives.

    Attributes:
        loss: its share of the step's loss, differentiable.
        sums: `[3, n]` float64: cross-entropy summed over valid targets, hits, valid targets.
    """

    loss: Tensor
    sums: Tensor


class TrainingModule(nn.Module):
    """An adapter under an objective.

    Args:
        compute_dtype: bfloat16 runs matrix products in it (autocast); the weights stay as they are.
        chunk_rows: rows of logits held at a time, see `losses`.
    """

    def __init__(
        self,
        adapter: MetaLlamaMTPAdapter,
        objective: Objective,
        compute_dtype: torch.dtype = torch.float32,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.objective = objective
        self.compute_dtype = compute_dtype
        self.chunk_rows = chunk_rows
        # Heads that are not trained get no gradient; frozen, DDP does not wait for one.
        for head in list(adapter.transformer.extra_heads)[objective.heads - 1 :]:
            head.requires_grad_(False)

    def targets(self, batch: Batch) -> Tensor:
        """`[B, S, n]` what each trained head should predict."""
        return shift_labels(batch.labels, self.objective.heads, length=batch.tokens.shape[1])

    def forward(self, batch: Batch, denominators: Tensor) -> StepOutput:
        """Loss of one micro-batch of a step whose denominators D_k `[n]` are known."""
        objective, transformer = self.objective, self.adapter.transformer
        device_type = batch.tokens.device.type
        mixed = self.compute_dtype != torch.float32
        with torch.autocast(device_type, dtype=self.compute_dtype, enabled=mixed):
            hidden = transformer.head_states(batch.tokens, return_all_heads=objective.heads > 1)
            targets = self.targets(batch)
            loss, ce, hit = mtp_loss(
                hidden[: objective.heads],
                transformer.output.weight,
                targets,
                denominators,
                objective.weights(batch, targets),
                objective.head_weights,
                self.chunk_rows,
            )
        valid = targets != IGNORE_INDEX
        sums = torch.stack([x.double().sum(dim=(0, 1)) for x in (ce, hit, valid)])
        return StepOutput(loss, sums)
