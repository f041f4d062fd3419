"""Token-order prediction (TOP; Zuhri et al. 2025, arXiv 2508.19228): rank the tokens to come.

    s[t, v] = W − d  where the first v after t is token t + 1 + d, 0 ≤ d < W; −∞ without one
    L[t] = −Σ_v softmax(s[t])_v · log softmax(z[t])_v       (ListNet; Cao et al. 2007)

The scores are one apart, so a token d places behind the next one has at most e^−d of its share: the
loss hardly sees what lies more than about twenty places ahead, whatever the window.

Letters: B batch, S sequence, L label positions (L ≥ S), W window, D width, V vocabulary, N rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.losses.linear_cross_entropy import rows_of_chunk


class OrderTargets(NamedTuple):
    """The distribution over the vocabulary that each position should rank tokens by.

    Attributes:
        tokens: `[B, S, W]` ids of the tokens ahead; anything where the share is 0.
        shares: `[B, S, W]` float32, softmax(s) of each; 0 on repetitions and on what is no target.
            They sum to 1 at positions whose next token is a target, and to 0 elsewhere.
    """

    tokens: Tensor
    shares: Tensor

    @property
    def there(self) -> Tensor:
        """`[B, S]` positions that have something to rank."""
        return self.shares.amax(-1) > 0


def order_targets(labels: Tensor, length: int, window: int) -> OrderTargets:
    """Rank the tokens after each position by their first occurrence.

    Args:
        labels: `[B, L]`, −100 where there is no target.
        length: positions S that predict.
        window: W; less is seen near the end of the labels.
    """
    values, places = labels.sort(dim=1, stable=True)
    again = F.pad(values[:, 1:] == values[:, :-1], (1, 0))
    earlier = torch.where(again, F.pad(places[:, :-1], (1, 0)), -1)
    previous = torch.empty_like(places).scatter_(1, places, earlier)  # [B, L] where it last was
    tokens = _ahead(labels, length, window, IGNORE_INDEX)
    here = torch.arange(length, device=labels.device)[None, :, None]
    first = (tokens != IGNORE_INDEX) & (_ahead(previous, length, window, -1) <= here)
    first &= tokens[..., :1] != IGNORE_INDEX
    scores = -torch.arange(window, device=labels.device, dtype=torch.float32).expand(first.shape)
    shares = scores.masked_fill(~first, -torch.inf).softmax(-1)
    return OrderTargets(tokens.clamp(min=0), torch.where(first, shares, 0.0))


def token_order_loss(
    states: Tensor, weight: Tensor, targets: OrderTargets, chunk_rows: int | None = None
) -> Tensor:
    """Sum the loss of all positions, some rows of logits at a time: they are computed again in the
    backward pass, so that `[B, S, V]` is never held.

    Args:
        states: `[B, S, D]`.
        weight: `[V, D]` the unembedding that ranks.
        chunk_rows: rows of logits held at a time; by default as many as `mtp_loss` holds.

    Returns:
        The scalar sum, differentiable in `states` and `weight`; 0, connected to both, if there is
        nothing to rank. float32, or float64 for float64.
    """
    rows = targets.there.flatten().nonzero().squeeze(1)  # [N]
    chunk_rows = chunk_rows or rows_of_chunk(weight.shape[0], 4)
    total = (states.sum() + weight.sum()) * 0.0
    flat = [x.flatten(0, 1) for x in (states, targets.tokens, targets.shares)]
    for chunk in torch.split(rows, chunk_rows):
        h, tokens, shares = (x[chunk] for x in flat)
        total = total + checkpoint(
            _sum_of_rows, h, weight, tokens, shares, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _sum_of_rows(h: Tensor, weight: Tensor, tokens: Tensor, shares: Tensor) -> Tensor:
    """`[N, D]`, `[V, D]`, `[N, W]`, `[N, W]` → scalar."""
    logits = F.linear(h, weight)  # [N, V]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    ranked = (logits.gather(1, tokens) * shares.to(logits.dtype)).sum(1)
    return (logits.logsumexp(1) - ranked).sum()


def _ahead(x: Tensor, length: int, window: int, fill: int) -> Tensor:
    """`[B, L]` → `[B, S, W]`, `out[b, t, d] = x[b, t + 1 + d]`, `fill` past the end."""
    missing = max(0, length + window - x.shape[1])
    return F.pad(x, (0, missing), value=fill)[:, 1:].unfold(1, window, 1)[:, :length]
