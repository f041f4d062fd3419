"""The loss contract: what each head predicts, how tokens are weighted, what is divided by what.

    L = Σ_k c_k · ( Σ_{b,t} w[b,t,k] · CE[b,t,k] ) / D_k

Head k at position t predicts token t + k. D_k is one number for the whole optimizer step (all
micro-batches, all ranks), agreed before its first forward, so that neither the value nor the
gradient depends on how the step is cut.

Letters: B batch, S sequence, L label positions (L ≥ S), n future tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.losses.linear_cross_entropy import fused_linear_cross_entropy


class MTPLoss(NamedTuple):
    """What `mtp_loss` returns.

    Attributes:
        loss: scalar L, differentiable.
        ce: `[B, S, n]` cross-entropy in nats, detached; 0 where the weight or the target is none.
        hit: `[B, S, n]` whether the target was the head's most likely token; False likewise.
    """

    loss: Tensor
    ce: Tensor
    hit: Tensor


def shift_labels(
    labels: Tensor, n: int, length: int | None = None, documents: Tensor | None = None
) -> Tensor:
    """Targets of every head: `out[b, t, k − 1] = labels[b, t + k]`, −100 past the end.

    Args:
        labels: `[B, L]` tokens, −100 where there is no target.
        n: number of heads.
        length: positions S that predict; L by default. A window read with n − 1 tokens more than S
            leaves no head without its tail.
        documents: `[B, L]` document number of each position; a target in another document than the
            position that predicts it becomes −100.

    Returns:
        `[B, S, n]`.
    """
    S = labels.shape[1] if length is None else length
    ahead = F.pad(labels, (0, max(0, S + n - labels.shape[1])), value=IGNORE_INDEX)
    targets = torch.stack([ahead[:, k : k + S] for k in range(1, n + 1)], dim=2)
    if documents is None:
        return targets
    same = F.pad(documents, (0, max(0, S + n - documents.shape[1])), value=-1)
    here = same[:, :S, None]
    there = torch.stack([same[:, k : k + S] for k in range(1, n + 1)], dim=2)
    return targets.masked_fill(here != there, IGNORE_INDEX)


def count_targets(targets: Tensor) -> Tensor:
    """Valid targets of each head, `[n]` float64: the default D_k, once summed over the step."""
    return (targets != IGNORE_INDEX).sum(dim=(0, 1)).double()


def mtp_loss(
    hidden: Sequence[Tensor],
    unembedding: Tensor,
    targets: Tensor,
    denominators: Tensor,
    weights: Tensor | None = None,
    head_weights: Tensor | None = None,
    chunk_rows: int | None = None,
) -> MTPLoss:
    """Token-weighted cross-entropy over all heads, fused with the unembedding.

    Args:
        hidden: n tensors `[B, S, D]`, the normalised state of each head.
        unembedding: `[V, D]`.
        targets: `[B, S, n]` from `shift_labels`; −100 is no target.
        denominators: `[n]`, D_k of the whole step. A head with D_k = 0 contributes nothing.
        weights: `[B, S, n]` w, constant with respect to the parameters; None means 1.
        head_weights: `[n]` c; None means 1/n each.
        chunk_rows: see `fused_linear_cross_entropy`.

    Returns:
        The loss, connected to the graph even when nothing is to be learned (it is then 0 with zero
        gradients), and the per-token cross-entropy.
    """
    n = len(hidden)
    rows = torch.stack(list(hidden))  # [n, B, S, D]
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    denominators = denominators.to(targets.device, wide)
    if head_weights is None:
        head_weights = torch.full_like(denominators, 1.0 / n)
    per_head = head_weights.to(targets.device, wide) / denominators
    per_head = torch.where(denominators > 0, per_head, torch.zeros_like(per_head))  # [n]
    valid = targets != IGNORE_INDEX  # [B, S, n]
    scale = torch.where(valid, per_head, 0.0)
    if weights is not None:  # `where`, not a product: a NaN off the targets must stay off them
        scale = torch.where(valid, scale * weights.detach().to(wide), 0.0)

    loss, *per_row = fused_linear_cross_entropy(
        rows.flatten(0, 2),
        unembedding,
        _head_first(targets),
        _head_first(scale),
        chunk_rows,
    )
    B, S, _ = targets.shape
    ce, hit = (x.view(n, B, S).permute(1, 2, 0) for x in per_row)
    return MTPLoss(loss, ce, hit)


def _head_first(x: Tensor) -> Tensor:
    """`[B, S, n]` → `[n · B · S]`, the order of the stacked hidden states."""
    return x.permute(2, 0, 1).reshape(-1)
