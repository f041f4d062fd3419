"""A start for new heads: their last projection fitted to the next-token head, in closed form.

A new head is a copy of the next-token head's block and so predicts the next token, which is worse
than no prediction for the tokens after it. What its feed-forward layer computes before its last
projection W is a fair basis all the same. Ridge regression finds the change of W with which the
head's output at t comes closest to that of the next-token head at t + k − 1, its teacher:

    Δ = (FᵀF + λ·tr(FᵀF)/P·I)⁻¹ Fᵀ(Y − Z)

for inputs F of W and outputs Z of the block. What is centred on is the copy, not 0, so directions
that the rows do not show stay as they were. Only the direction of an output counts, since a norm
follows: Y has the teacher's directions and the copy's own size.

Letters: B batch, S sequence, m rows of a regression, P inputs of W, D model width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.losses import mask_untaught
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives.base import plain_targets
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.fsdp import copy_whole

POSITIONS = 16_384
"""Positions that a fit reads, all ranks together; fewer if `STEPS` steps have no more."""
STEPS = 64
RIDGE = 0.1
"""λ. On SmolLM2-135M 0.1 began lower than 1, and 200 steps later they were level."""


@torch.no_grad()
def fit_new_heads(wrapped: nn.Module, module: TrainingModule, steps: Iterable[list[Batch]]) -> int:
    """Fit the last projection of every extra head that is trained to the rows of a few steps.

    Args:
        wrapped: `module` as it is called in training.
        steps: micro-batches of this rank, step by step. Read until `POSITIONS` are counted.

    Returns:
        Positions that the last head was fitted to, on all ranks.
    """
    transformer, n = module.adapter.transformer, module.objective.heads
    heads = list(transformer.extra_heads)[: n - 1]
    sums = [_Sums(_projection(head)) for head in heads]
    for index, batches in enumerate(steps):
        for batch in batches:
            pairs = _pairs(wrapped, transformer, heads, batch)
            for found, (inputs, outputs, wanted) in zip(sums, pairs, strict=True):
                found.add(inputs, outputs, wanted)
        count = distributed.all_reduce_sum(sums[-1].count.clone())
        if index + 1 == STEPS or float(count) >= POSITIONS:
            break
    for head, found in zip(heads, sums, strict=True):
        weight = _projection(head).weight
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        change = found.change().to(whole) / transformer.args.family.residual_multiplier
        copy_whole(whole + change, weight)
    return int(count)


class _Sums:
    """FᵀF and Fᵀ(Y − Z) of one head, over all rows so far."""

    def __init__(self, projection: nn.Linear) -> None:
        D, P = projection.weight.shape
        device = projection.weight.device
        self.square = torch.zeros(P, P, device=device)
        self.mixed = torch.zeros(P, D, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, inputs: Tensor, outputs: Tensor, wanted: Tensor) -> None:
        """Count rows `[m, P]`, `[m, D]`, `[m, D]`."""
        inputs = inputs.float()
        self.square.addmm_(inputs.t(), inputs)
        self.mixed.addmm_(inputs.t(), wanted.float() - outputs.float())
        self.count += len(inputs)

    def change(self) -> Tensor:
        """`[D, P]` of all ranks' rows; 0 without any."""
        square = distributed.all_reduce_sum(self.square).double()
        mixed = distributed.all_reduce_sum(self.mixed).double()
        size = square.diagonal().mean()
        if not size > 0:
            return mixed.t()
        square.diagonal().add_(RIDGE * size)
        return torch.cholesky_solve(mixed, torch.linalg.cholesky(square)).t()


def _projection(head: nn.Module) -> nn.Linear:
    projection = head.get_submodule("feed_forward.w2")
    assert isinstance(projection, nn.Linear)  # adapters do not go with added heads
    return projection


def _pairs(
    wrapped: nn.Module, transformer: Transformer, heads: Sequence[nn.Module], batch: Batch
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For every head F, Z and Y at the positions that have a teacher."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    with ExitStack() as hooks:
        for head in heads:
            before, after = _projection(head).register_forward_pre_hook, head.register_forward_hook
            hooks.callback(before(lambda _, args: inputs.append(args[0])).remove)
            hooks.callback(after(lambda _, args, out: outputs.append(out)).remove)
        teacher = wrapped(batch, "read").states  # [B, S, D], [P, L, D] if packed
    B, S = batch.rows.shape[0], batch.length
    places = torch.arange(B * S, device=teacher.device).view(B, S)
    filled = torch.ones_like(places, dtype=torch.bool)
    if batch.packing is not None:
        places, filled = batch.packing.slots, batch.packing.filled
    targets = mask_untaught(plain_targets(batch, 1 + len(heads)), filled)
    directions, known = _directions(transformer, teacher.flatten(0, 1))
    for k, (F, Z) in enumerate(zip(inputs, outputs, strict=True), start=1):
        rows, columns = (targets[..., k] != IGNORE_INDEX).nonzero(as_tuple=True)
        at, taught = places[rows, columns], places[rows, columns + k]
        z = Z.flatten(0, 1)[at].float()
        size = z.square().mean(-1, keepdim=True).sqrt().median()
        yield F.flatten(0, 1)[at], z, torch.where(known, directions[taught] * size, z)


def _directions(transformer: Transformer, states: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of a block over their root mean square, `[…, D]`, from its states after the norm;
    and `[D]` where they are known, which a weight of nearly 0 hides."""
    stored = transformer.norm.weight
    weight = (stored.full_tensor() if isinstance(stored, DTensor) else stored).float()
    known = weight.abs() > 1e-3 * weight.abs().max()
    scale = transformer.args.family.logits_scaling / torch.where(known, weight, 1.0)
    return states.float() * scale, known
