"""Token-order prediction (TOP; Zuhri et al. 2025, arXiv 2508.19228): rank the tokens to come.

    s[t, v] = W − d  where the first v after t is token t + 1 + d, 0 ≤ d < W; −∞ without one
    L[t] = −Σ_v softmax(s[t])_v · log softmax(z[t])_v       (ListNet; Cao et al. 2007)

The scores are one apart, so a token d places behind the next one has at most e^−d of its share: the
loss hardly sees what lies more than about twenty places ahead, whatever the window.

Letters: B batch, S sequence, L label positions (L ≥ S), W window, D width, V vocabulary, N rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.losses.linear_cross_entropy import add_outer_, hand_out, rows_of_chunk


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
    """Sum the loss of all positions, fused with the unembedding: logits exist for one chunk of rows
    at a time, and the gradient is computed with them.

    Args:
        states: `[B, S, D]`; its dtype is the compute dtype (under autocast: autocast's).
        weight: `[V, D]` the unembedding that ranks.
        chunk_rows: rows of logits held at a time; by default as many as `mtp_loss` holds.

    Returns:
        The scalar sum, differentiable (once) in `states` and `weight`; 0, connected to both, if
        there is nothing to rank. float32, or float64 for float64.
    """
    device_type = states.device.type
    if torch.is_autocast_enabled(device_type) and states.dtype != torch.float64:
        states = states.to(torch.get_autocast_dtype(device_type))
    rows = targets.there.flatten().nonzero().squeeze(1)  # [N]
    h, tokens, shares = (x.flatten(0, 1)[rows] for x in (states, targets.tokens, targets.shares))
    with torch.autocast(device_type, enabled=False):
        loss: Tensor = _TokenOrder.apply(  # type: ignore[no-untyped-call]  # torch
            h, weight, tokens, shares, chunk_rows or rows_of_chunk(weight.shape[0], 4)
        )
    return loss


class _TokenOrder(torch.autograd.Function):
    """Loss and gradients of all rows in `forward`, as in `linear_cross_entropy`; `backward` only
    scales them. dL/dz is softmax(z) less the shares."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, shares: Tensor, chunk_rows: int
    ) -> Tensor:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        W = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros(W.shape, dtype=wide, device=W.device)
        for chunk in torch.split(torch.arange(len(hidden), device=hidden.device), chunk_rows):
            h, y, p = hidden[chunk], tokens[chunk], shares[chunk].to(wide)
            logits = torch.mm(h, W.t()).to(wide)  # [C, V]
            total += (logits.logsumexp(1) - (logits.gather(1, y) * p).sum(1)).sum()
            residual = logits.softmax(1).scatter_add_(1, y, -p).to(hidden.dtype)
            grad_hidden[chunk] = torch.mm(residual, W)
            add_outer_(grad_weight, residual, h)
        ctx.gradients = (grad_hidden, hidden.dtype), (grad_weight, weight.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *hand_out(ctx, grad), None, None, None


def _ahead(x: Tensor, length: int, window: int, fill: int) -> Tensor:
    """`[B, L]` → `[B, S, W]`, `out[b, t, d] = x[b, t + 1 + d]`, `fill` past the end."""
    missing = max(0, length + window - x.shape[1])
    return F.pad(x, (0, missing), value=fill)[:, 1:].unfold(1, window, 1)[:, :length]
