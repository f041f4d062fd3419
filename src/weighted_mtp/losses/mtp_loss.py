"""The loss contract: what each head predicts, how tokens are weighted, what is divided by what.

    L = Σ_k c_k · ( Σ_{b,t} w[b,t,k] · CE[b,t,k] ) / D_k

Head k at position t predicts token t + k. D_k is one number for the whole optimizer step (all
micro-batches, all ranks), known before its first forward pass, so that neither the value nor the
gradient depends on how the step is split.

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
    """The result of `mtp_loss`.

    Attributes:
        loss: scalar L, differentiable.
        ce: `[B, S, n]` cross-entropy in nats, detached; 0 where there is no target or no weight.
        hit: `[B, S, n]` whether the target was the head's most likely token; False likewise.
        taught: `[B, S, n]` what `loss` sums, detached, where that is not `ce`.
    """

    loss: Tensor
    ce: Tensor
    hit: Tensor
    taught: Tensor | None = None


class LossTerms(NamedTuple):
    """What is summed and how it is scaled.

    Attributes:
        targets: `[B, S, n]` from `shift_labels`; −100 is not a target.
        denominators: `[n]`, D_k of the whole step. A head with D_k = 0 contributes nothing.
        weights: `[B, S, n]` w, constant with respect to the parameters; None means 1.
        head_weights: `[n]` c; None means 1/n each.
    """

    targets: Tensor
    denominators: Tensor
    weights: Tensor | None = None
    head_weights: Tensor | None = None

    def of_heads(self, places: Sequence[int]) -> LossTerms:
        """Return the terms of some heads; where c_k is None, it stays 1/n of all."""
        n, index = self.targets.shape[2], list(places)
        head_weights = self.head_weights
        if head_weights is None:
            head_weights = torch.full((n,), 1.0 / n, dtype=torch.float64)
        weights = None if self.weights is None else self.weights[..., index]
        denominators = self.denominators[index]
        return LossTerms(self.targets[..., index], denominators, weights, head_weights[index])

    def scale(self, dtype: torch.dtype) -> Tensor:
        """`[B, S, n]` factor of each cross-entropy, 0 where there is no target."""
        valid = self.targets != IGNORE_INDEX
        denominators = self.denominators.to(valid.device, dtype)
        head_weights = self.head_weights
        if head_weights is None:
            head_weights = torch.full_like(denominators, 1.0 / len(denominators))
        per_head = head_weights.to(valid.device, dtype) / denominators
        per_head = torch.where(denominators > 0, per_head, torch.zeros_like(per_head))  # [n]
        scale = torch.where(valid, per_head, 0.0)
        if self.weights is None:
            return scale
        # `where`, not a product: a NaN weight without a target must not reach the loss.
        return torch.where(valid, scale * self.weights.detach().to(dtype), 0.0)


def shift_labels(
    labels: Tensor, n: int, length: int | None = None, documents: Tensor | None = None
) -> Tensor:
    """Make the targets of every head: `out[b, t, k − 1] = labels[b, t + k]`, −100 past the end.

    Args:
        labels: `[B, L]` tokens, −100 where there is no target.
        n: number of heads.
        length: positions S that predict; L by default. With L = S + n every head has a target at
            the last position.
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
    """Count the valid targets of each head, `[n]` float64; their sum over a step is D_k."""
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
    """Compute the token-weighted cross-entropy of all heads, fused with the unembedding.

    Args:
        hidden: n tensors `[B, S, D]`, the normalised state of each head.
        unembedding: `[V, D]`.
        targets, denominators, weights, head_weights: see `LossTerms`.
        chunk_rows: see `fused_linear_cross_entropy`.

    Returns:
        As for `loss_of_terms`.

    Example:
        >>> targets = shift_labels(labels, n)
        >>> mtp_loss(states, model.output.weight, targets, count_targets(targets)).loss.backward()
    """
    terms = LossTerms(targets, denominators, weights, head_weights)
    return loss_of_terms(hidden, unembedding, terms, chunk_rows)


def loss_of_terms(
    hidden: Sequence[Tensor],
    unembedding: Tensor,
    terms: LossTerms,
    chunk_rows: int | None = None,
) -> MTPLoss:
    """Compute what `mtp_loss` does of terms that were put together before.

    Args:
        hidden: n tensors `[B, S, D]`, the normalised state of each head.
        unembedding: `[V, D]`.
        chunk_rows: see `fused_linear_cross_entropy`.

    Returns:
        The loss, connected to the graph even when nothing is to be learned (it is then 0 with zero
        gradients), and the per-token cross-entropy.
    """
    learns = [torch.is_grad_enabled() and state.requires_grad for state in hidden]
    if any(learns) and not all(learns):  # frozen heads: their states need no gradient
        return _in_two(hidden, unembedding, terms, chunk_rows, learns)
    rows = torch.stack(list(hidden))  # [n, B, S, D]
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    loss, *per_row = fused_linear_cross_entropy(
        rows.flatten(0, 2),
        unembedding,
        _head_first(terms.targets),
        _head_first(terms.scale(wide)),
        chunk_rows,
    )
    B, S, n = terms.targets.shape
    ce, hit = (x.view(n, B, S).permute(1, 2, 0) for x in per_row)
    return MTPLoss(loss, ce, hit)


def _in_two(
    hidden: Sequence[Tensor],
    unembedding: Tensor,
    terms: LossTerms,
    chunk_rows: int | None,
    learns: Sequence[bool],
) -> MTPLoss:
    """The heads that learn and those that do not, each by itself."""
    ce = torch.empty_like(terms.targets, dtype=torch.float32)
    hit = torch.empty_like(terms.targets, dtype=torch.bool)
    loss = unembedding.new_zeros(())
    for wanted in (True, False):
        places = [k for k, learning in enumerate(learns) if learning == wanted]
        states = [hidden[k] for k in places]
        out = loss_of_terms(states, unembedding, terms.of_heads(places), chunk_rows)
        ce, loss = ce.to(out.ce.dtype), loss + out.loss
        ce[..., places], hit[..., places] = out.ce, out.hit
    return MTPLoss(loss, ce, hit)


def _head_first(x: Tensor) -> Tensor:
    """`[B, S, n]` → `[n · B · S]`, the order of the stacked hidden states."""
    return x.permute(2, 0, 1).reshape(-1)
