"""Token weights from a value head: temporal differences, GAE, and the exponential weighting.

    δ_j = γ·V_j − V_{j−1}        δ_T = R − V_{T−1}        A_j = Σ_{l≥0} (γλ)^l δ_{j+l}
    w_j = clamp(exp(A_j / β), w_min, w_max)               target of V_{j−1} = V_{j−1} + A_j

V_j is the value of the state *after* token j, so δ_j is what choosing token j was worth. Response
tokens are those where the mask is true, T is the last of a row. GAE: Schulman et al. 2015, arXiv
1506.02438; exponential weights: Peng et al. 2019, arXiv 1910.00177.

What a tensor function returns is detached (except for `compute_value_loss`) and computed in float32
(float64 for float64 input). Values that no formula reads may be anything, NaN included.

Letters: B batch, S sequence, j token, T last response token, R reward, V value, w weight.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.value_weighting.td_statistics import (
    TDStatsEMA,
    compute_td_stats,
    compute_weight_stats,
    moments_mean_std,
    td_moments,
    td_stats,
    weight_stats,
    weight_sums,
)

__all__ = [
    "TDStatsEMA",
    "advantages_of",
    "build_weights",
    "compute_advantages",
    "compute_td_errors",
    "compute_td_stats",
    "compute_td_targets",
    "compute_value_loss",
    "compute_weight_stats",
    "discounted_sum",
    "moments_mean_std",
    "renormalise",
    "scale_rows",
    "schedule",
    "td_moments",
    "td_stats",
    "weight_stats",
    "weight_sums",
    "whiten",
]

# --- temporal differences ------------------------------------------------------------------------


@torch.no_grad()
def compute_td_errors(
    value_logits: Tensor,
    rewards: Tensor,
    loss_mask: Tensor,
    gamma: float = 1.0,
    truncated: Tensor | None = None,
) -> Tensor:
    """δ_j at every response token j, 0 elsewhere.

    The formula is literal where the mask has holes: δ_j is of the neighbours j and j − 1. A
    response that begins at position 0 has V_{−1} = 0. V_T is never read.

    Args:
        value_logits: `[B, S, 1]` V_j at position j.
        rewards: `[B]` R.
        loss_mask: `[B, S]` true on response tokens.
        gamma: discount γ in [0, 1].
        truncated: `[B]` rows whose end was cut off: no reward came, and the state after T is not
            known, so δ_T = 0 there.

    Returns:
        `[B, S]`.

    Raises:
        ValueError: shapes that do not fit.
    """
    values, mask = _values(value_logits, loss_mask), loss_mask.bool()
    rewards = rewards.to(values.dtype)
    if rewards.shape != mask.shape[:1]:
        raise ValueError(f"rewards {list(rewards.shape)} for a mask {list(mask.shape)}")
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    errors = torch.where(last, rewards[:, None], gamma * values)
    errors[:, 1:] -= values[:, :-1]
    if truncated is not None:
        mask = mask & ~(last & truncated.bool()[:, None])
    return torch.where(mask, errors, 0.0)


@torch.no_grad()
def discounted_sum(td_errors: Tensor, discount: float) -> Tensor:
    """A_j = Σ_{l≥0} discount^l · δ_{j+l}, in ⌈log₂ S⌉ steps: each doubles the terms summed.

    Args:
        td_errors: `[B, S]` δ.
        discount: in [0, 1].

    Returns:
        `[B, S]`.

    Raises:
        ValueError: a discount outside [0, 1].
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount {discount} is not in [0, 1]")
    total = _wide(td_errors).clone()
    reach = 1
    while reach < total.shape[1]:  # the product is a copy, so the in-place sum reads old values
        total[:, :-reach].add_(discount**reach * total[:, reach:])
        reach *= 2
    return total


def advantages_of(td_errors: Tensor, loss_mask: Tensor, discount: float) -> Tensor:
    """A_j `[B, S]` from δ `[B, S]`, 0 off the mask; `discount` is γλ."""
    return torch.where(loss_mask.bool(), discounted_sum(td_errors, discount), 0.0)


@torch.no_grad()
def compute_advantages(
    value_logits: Tensor,
    rewards: Tensor,
    loss_mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    truncated: Tensor | None = None,
) -> Tensor:
    """GAE A_j `[B, S]` of every response token, 0 elsewhere; `lam` is λ, 0 gives δ.

    Other arguments and errors are those of `compute_td_errors`.
    """
    errors = compute_td_errors(value_logits, rewards, loss_mask, gamma, truncated)
    return advantages_of(errors, loss_mask, gamma * lam)


@torch.no_grad()
def compute_td_targets(
    value_logits: Tensor,
    rewards: Tensor,
    loss_mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    truncated: Tensor | None = None,
) -> Tensor:
    """V_{j−1} + A_j, the target of V_{j−1}, stored at position j − 1; 0 where there is none.

    With γ = λ = 1 it is R, up to rounding. A response token at position 0 has no state before it,
    hence no target. The last state of a truncated row has its own value as target: no error.
    Arguments and errors are those of `compute_advantages`.

    Returns:
        `[B, S, 1]`.
    """
    advantages = compute_advantages(value_logits, rewards, loss_mask, gamma, lam, truncated)
    targets = torch.zeros_like(advantages)
    before = _values(value_logits, loss_mask)[:, :-1]
    targets[:, :-1] = torch.where(loss_mask[:, 1:].bool(), before + advantages[:, 1:], 0.0)
    return targets.unsqueeze(-1)


def compute_value_loss(
    value_logits: Tensor,
    targets: Tensor,
    loss_mask: Tensor,
    value_clip: float | None = None,
    huber_delta: float | None = None,
) -> Tensor:
    """Compute (V_t − target_t)² of every state t before a response token, 0 elsewhere.

    Args:
        value_logits: `[B, S, 1]`.
        targets: `[B, S, 1]` from `compute_td_targets`, taken as constants.
        loss_mask: `[B, S]` true on response tokens; state t counts where t + 1 is one.
        value_clip: how far a target may lie from the present value. (PPO's max of a clipped and an
            unclipped loss would do nothing here, where each forward pass has one update.)
        huber_delta: the distance beyond which the squared loss becomes linear (Huber 1964).

    Returns:
        `[B, S]`, differentiable in `value_logits`.

    Raises:
        ValueError: a clip or delta that is not positive, or shapes that do not fit.
    """
    for name, limit in (("value_clip", value_clip), ("huber_delta", huber_delta)):
        if limit is not None and not limit > 0:
            raise ValueError(f"{name} {limit} is not positive")
    counts = torch.zeros_like(loss_mask, dtype=torch.bool)
    counts[:, :-1] = loss_mask[:, 1:]
    # Masked before the subtraction, so that a NaN elsewhere reaches neither loss nor gradient.
    values = torch.where(counts, _values(value_logits, loss_mask), 0.0)
    goals = torch.where(counts, _values(targets.detach(), loss_mask).to(values.dtype), 0.0)
    if value_clip is not None:
        present = values.detach()
        goals = present + (goals - present).clamp(-value_clip, value_clip)
    if huber_delta is None:
        return (values - goals).square()
    return 2 * F.huber_loss(values, goals, reduction="none", delta=huber_delta)


# --- weights -------------------------------------------------------------------------------------


@torch.no_grad()
def build_weights(
    td_errors: Tensor,
    loss_mask: Tensor,
    beta: float = 0.9,
    min_weight: float = 0.1,
    max_weight: float = 5.0,
) -> Tensor:
    """w = clamp(exp(A / β), min, max) `[B, S]` on response tokens, 0 elsewhere.

    Args:
        td_errors: `[B, S]` A, or δ.
        loss_mask: `[B, S]` true on response tokens.
        beta: temperature β; small makes the weights extreme.
        min_weight, max_weight: bounds, finite.

    Raises:
        ValueError: β not positive, or not 0 ≤ min_weight ≤ max_weight < ∞.
    """
    if not beta > 0:
        raise ValueError(f"beta {beta} is not positive")
    if not 0 <= min_weight <= max_weight < math.inf:
        raise ValueError(f"not 0 <= min_weight ({min_weight}) <= max_weight ({max_weight}) < inf")
    weights = (_wide(td_errors) / beta).exp().clamp(min_weight, max_weight)
    return torch.where(loss_mask.bool(), weights, 0.0)


@torch.no_grad()
def whiten(
    td_errors: Tensor,
    loss_mask: Tensor,
    mean: Tensor | float,
    std: Tensor | float,
    eps: float = 1e-8,
) -> Tensor:
    """(A − mean) / (std + eps) `[B, S]` on response tokens, 0 elsewhere."""
    return torch.where(loss_mask.bool(), (_wide(td_errors) - mean) / (std + eps), 0.0)


@torch.no_grad()
def renormalise(weights: Tensor, loss_mask: Tensor, mean: Tensor | float | None = None) -> Tensor:
    """Divide weights `[B, S]` by their mean over the mask, or by a given one; 0 off the mask.

    Where the mean is 0 (no token, or all weights 0) they stay as they are.
    """
    mask = loss_mask.bool()
    kept = torch.where(mask, _wide(weights), 0.0)
    if mean is None:
        mean = kept.double().sum() / mask.sum().clamp(min=1)
    divisor = torch.as_tensor(mean, dtype=torch.float64, device=kept.device)
    return kept / torch.where(divisor != 0, divisor, 1.0)


@torch.no_grad()
def scale_rows(weights: Tensor, loss_mask: Tensor, means: Tensor) -> Tensor:
    """Scale the weights `[B, S]` of each row to a mean of its own over the mask; 0 off the mask.

    Args:
        means: `[B]`. A row whose weights are all 0 stays so.
    """
    mask = loss_mask.bool()
    kept = torch.where(mask, _wide(weights), 0.0)
    total, count = kept.double().sum(1), mask.sum(1)
    factors = means.double() * count / torch.where(total != 0, total, 1.0)
    return (kept * factors[:, None]).to(kept.dtype)


def schedule(
    progress: float, start: float, end: float, hold: float, shape: Literal["linear", "cosine"]
) -> float:
    """Keep a setting at `start` until `progress` is `hold`, then move it to `end` at 1.

    Args:
        progress: share of the training done; outside [0, 1] it is clamped.
        hold: in [0, 1]; with 1 the setting never moves.

    Raises:
        ValueError: a hold outside [0, 1], or an unknown shape.
    """
    if not 0 <= hold <= 1:
        raise ValueError(f"hold {hold} is not in [0, 1]")
    if shape not in ("linear", "cosine"):
        raise ValueError(f"shape {shape!r} is neither 'linear' nor 'cosine'")
    if progress <= hold:
        return start
    share = (min(progress, 1.0) - hold) / (1.0 - hold) if hold < 1 else 0.0
    if shape == "cosine":
        share = (1.0 - math.cos(math.pi * share)) / 2.0
    return start * (1.0 - share) + end * share


def _wide(x: Tensor) -> Tensor:
    """Keep float64; convert anything else to float32."""
    return x if x.dtype == torch.float64 else x.float()


def _values(value_logits: Tensor, loss_mask: Tensor) -> Tensor:
    """`[B, S, 1]` → `[B, S]`, wide.

    Raises:
        ValueError: shapes that do not fit.
    """
    if value_logits.shape != (*loss_mask.shape, 1):
        shapes = f"{list(value_logits.shape)} for a mask {list(loss_mask.shape)}"
        raise ValueError(f"values {shapes}; [B, S, 1] and [B, S] are expected")
    return _wide(value_logits).squeeze(-1)
