"""Rho-1: train on the tokens with the highest excess loss (Lin et al. 2024, arXiv 2404.07965).

    excess[b, t, k] = CE_policy[b, t, k] − CE_ref[b, t, k']

k' is the reference's own head k where it has one (both models then predict x_{t+k} from x_{≤t}),
else its first head, which predicts the same token from all tokens before it.

Each head keeps exactly ⌈k · N⌉ of its N valid tokens. Pure tensor functions without a gradient;
nothing leaves the device but `rho1_stats`. Cross-entropies are in nats.

Letters: B batch, S sequence, L reference positions (L ≥ S), n future tokens (heads), h heads of the
reference.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["signed", "absolute", "difficult"]
"""What a token is scored by: policy − reference, |policy − reference|, or the policy alone."""

Count = TypeVar("Count", int, Tensor)

_BASE = 10**6  # six decimals at a time leave room for counts up to 9 · 10^12 in 64 bits


def kept_count(count: Count, k_percent: float) -> Count:
    """⌈k · N⌉, exactly, where k is the decimal as written: 0.7 of 10 is 7.

    Args:
        count: N, or a tensor of them of any shape: integers up to 9 · 10^12, as an integer or a
            float64 dtype.
        k_percent: k, a share in (0, 1].

    Returns:
        As `count`: an int, or a tensor of the same shape, dtype and device.

    Raises:
        ValueError: k outside (0, 1].
    """
    if not 0 < k_percent <= 1:
        raise ValueError(f"k_percent must lie in (0, 1], got {k_percent}")
    share = Fraction(str(k_percent))
    if isinstance(count, int):
        return math.ceil(share * count)

    # Long multiplication, six decimals at a time from the last, since p · N for k = p/q may not
    # fit into 64 bits (q is 10^16 for k = 1/3).
    places = 0
    while share.denominator > 1:
        share, places = share * _BASE, places + 1
    digits = share.numerator
    N = count.long()
    product, rest = torch.zeros_like(N), torch.zeros_like(N, dtype=torch.bool)
    for _ in range(places):
        digits, digit = divmod(digits, _BASE)
        product = product + digit * N
        rest = rest | (product % _BASE != 0)
        product = product // _BASE
    return (product + digits * N + rest).to(count.dtype)


def reference_per_head(reference: Tensor, n: int) -> Tensor:
    """Return `[B, L, n]` from `[B, L]` or `[B, L, h]`: head k's column, or the first if k > h."""
    if reference.ndim == 2:
        reference = reference.unsqueeze(2)
    missing = max(0, n - reference.shape[2])
    first = reference[:, :, :1].expand(-1, -1, missing)
    return torch.cat([reference[:, :, :n], first], dim=2) if missing else reference[:, :, :n]


def align_reference(reference: Tensor, n: int, length: int) -> Tensor:
    """Align the reference's loss on the token each head predicts as the targets are aligned.

    Args:
        reference: at position j the reference's loss on x_j: `[B, L]` of its first head, or
            `[B, L, h]` of each of its heads (head k predicts x_j from x_{≤ j−k}).
        n: number of heads.
        length: positions S that predict.

    Returns:
        `[B, S, n]`, `out[b, t, k − 1]` is the loss on x_{t+k} of the reference's head k, or of its
        first head if it has fewer; 0 past the end.
    """
    columns = reference_per_head(reference.detach(), n)
    ahead = F.pad(columns, (0, 0, 0, max(0, length + n - reference.shape[1])))
    return torch.stack([ahead[:, k : k + length, k - 1] for k in range(1, n + 1)], dim=2)


def compute_mtp_selective_weights(
    policy_ce: Tensor,
    reference_ce: Tensor | None,
    valid: Tensor,
    k_percent: float = 0.6,
    mode: Mode = "signed",
    first_head_always: bool = False,
) -> Tensor:
    """1 for the tokens each head keeps, 0 for all others.

    Every head keeps the `kept_count` of its own valid tokens with the highest score; of equal
    scores the earlier (b, t), row by row, wins. So the choice depends on the order of the valid
    tokens and on nothing that lies between them. A score that is NaN counts as the highest: a
    broken loss shows, rather than being dropped.

    Args:
        policy_ce: `[B, S, n]`; anything, NaN too, where not valid.
        reference_ce: `[B, S, n]` from `align_reference`, likewise; None only in mode "difficult".
        valid: `[B, S, n]` bool, the targets to choose from.
        k_percent: share kept, in (0, 1].
        mode: see `Mode`.
        first_head_always: head 1 keeps all of its tokens.

    Returns:
        `[B, S, n]` float32.

    Raises:
        ValueError: k outside (0, 1], an unknown mode, or a reference missing.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if reference_ce is None and mode != "difficult":
        raise ValueError(f"mode {mode!r} needs reference_ce; only 'difficult' does without")
    counts = kept_count(valid.sum(dim=(0, 1)), k_percent)  # [n]
    weights = torch.empty(valid.shape, dtype=torch.float32, device=valid.device)
    for head in range(valid.shape[2]):  # one at a time, for memory
        here = valid[..., head]
        if head == 0 and first_head_always:
            weights[..., head] = here
            continue
        score = _wide(policy_ce[..., head])
        if mode != "difficult" and reference_ce is not None:
            score = score - _wide(reference_ce[..., head])
        if mode == "absolute":
            score = score.abs()
        kept = _highest(score.flatten(), here.flatten(), counts[head])
        weights[..., head] = kept.view(here.shape)
    return weights


def _wide(ce: Tensor) -> Tensor:
    """Detached, in float32 or better."""
    return ce.detach().to(torch.promote_types(ce.dtype, torch.float32))


def _highest(score: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Of `[N]` scores, 1 for the `count` highest that are valid, earlier ones first; else 0."""
    limit = torch.finfo(score.dtype).max
    score = score.nan_to_num(nan=limit, posinf=limit, neginf=-limit)
    score = score.masked_fill_(~valid, -math.inf)  # below every valid one
    order = score.argsort(descending=True, stable=True)
    first = torch.arange(len(order), device=order.device) < count
    return torch.zeros_like(score, dtype=torch.float32).scatter_(0, order, first.float())


def rho1_sums(
    weights: Tensor,
    policy_ce: Tensor,
    reference_ce: Tensor | None,
    valid: Tensor,
    per_row: bool = False,
) -> Tensor:
    """Sum what `rho1_stats` needs; sums are additive over micro-batches and ranks.

    Args:
        weights: `[B, S, n]` 0 or 1, as `compute_mtp_selective_weights` gives them.
        policy_ce, reference_ce: `[B, S, n]`; anything where not valid. Without a reference its
            loss counts as 0, so that the excess is the policy's loss.
        valid: `[B, S, n]` bool.

    Returns:
        `[n, 5]` float64 per head (`[B, n, 5]` if `per_row`): valid tokens, kept tokens, Σ excess
        over the valid, Σ excess over the kept, Σ policy loss over the kept.
    """
    dims, heads = (1,) if per_row else (0, 1), []
    for head in range(valid.shape[2]):
        here = valid[..., head]
        kept = here & (weights[..., head] > 0)
        policy = policy_ce[..., head].detach().double()
        excess = policy if reference_ce is None else policy - reference_ce[..., head].detach()
        sums = [excess.where(here, 0), excess.where(kept, 0), policy.where(kept, 0)]
        terms = [x.sum(dims, dtype=torch.float64) for x in (here, kept, *sums)]
        heads.append(torch.stack(terms, -1))
    return torch.stack(heads, -2)


def rho1_stats(sums: Tensor) -> dict[str, float]:
    """Compute what was kept, over all heads and, with `_head_k` appended, per head.

    Args:
        sums: `[n, 5]` from `rho1_sums`.

    Returns:
        `kept_share` (of the valid tokens), `mean_excess`, `mean_excess_kept` and `mean_ce_kept` in
        nats per token; NaN where there is no token.
    """
    rows = torch.cat([sums.sum(dim=0, keepdim=True), sums]).tolist()
    stats = {}
    for head, (valid, kept, excess, excess_kept, ce_kept) in enumerate(rows):
        suffix = f"_head_{head}" if head else ""
        stats[f"kept_share{suffix}"] = kept / valid if valid else math.nan
        stats[f"mean_excess{suffix}"] = excess / valid if valid else math.nan
        stats[f"mean_excess_kept{suffix}"] = excess_kept / kept if kept else math.nan
        stats[f"mean_ce_kept{suffix}"] = ce_kept / kept if kept else math.nan
    return stats


def compute_rho1_stats(
    weights: Tensor, policy_ce: Tensor, reference_ce: Tensor | None, valid: Tensor
) -> dict[str, float]:
    """`rho1_stats` of one batch; arguments as in `rho1_sums`."""
    return rho1_stats(rho1_sums(weights, policy_ce, reference_ce, valid))
