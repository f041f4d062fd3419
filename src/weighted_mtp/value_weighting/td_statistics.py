"""Statistics of TD errors and of token weights.

Sums are float64 and additive over micro-batches and ranks; the figures made of them are not.

Letters: B batch, S sequence, δ TD error (or advantage), w weight, N number of response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def td_moments(td_errors: Tensor, loss_mask: Tensor, per_row: bool = False) -> Tensor:
    """N, Σδ, Σδ² over the mask: `[3]` float64, or `[B, 3]` for each row."""
    mask = loss_mask.bool()
    errors = torch.where(mask, td_errors, 0.0).double()
    return _sums([mask.double(), errors, errors.square()], per_row)


@torch.no_grad()
def moments_mean_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation from `[3]` moments; 0 and 1 if they count nothing."""
    count, first, second = moments.unbind()
    divisor = torch.where(count > 0, count, 1.0)
    mean = first / divisor
    variance = (second / divisor - mean.square()).clamp(min=0.0)
    return mean, torch.where(count > 0, variance.sqrt(), 1.0)


class TDStatsEMA:
    """Running mean and spread of TD errors: exponential averages of E[δ] and E[δ²] over steps.

    Each step counts the same, however many tokens it had. The average of a constant 1 is kept too;
    dividing by it corrects the bias of starting at 0 (Kingma & Ba 2014, arXiv 1412.6980). Read
    `mean` and `std` before `update`, or a step is whitened by statistics that contain it; update
    once per optimizer step, with the moments of all its micro-batches and ranks, in training only.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay} is not in [0, 1)")
        self.decay = decay
        self._average = torch.zeros(3, dtype=torch.float64)  # of 1, E[δ], E[δ²]

    @property
    def mean(self) -> Tensor:
        """Scalar float64; 0 before the first update."""
        return moments_mean_std(self._average)[0]

    @property
    def std(self) -> Tensor:
        """Scalar float64; 1 before the first update."""
        return moments_mean_std(self._average)[1]

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Add a step's `[3]` moments. A step without tokens, or not finite, changes nothing."""
        old = self._average.to(moments.device)
        new = self.decay * old + (1 - self.decay) * moments.to(old.dtype) / moments[0]
        usable = (moments[0] > 0) & moments.isfinite().all()
        self._average = torch.where(usable, new, old)

    def state_dict(self) -> dict[str, float]:
        """Return the averages before the correction, as plain numbers (without the decay)."""
        names = ("weight", "mean", "second_moment")
        return dict(zip(names, self._average.tolist(), strict=True))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a `state_dict`; raise KeyError if it is not one."""
        averages = [state["weight"], state["mean"], state["second_moment"]]
        self._average = torch.tensor(averages, dtype=torch.float64)


@torch.no_grad()
def weight_sums(
    weights: Tensor,
    loss_mask: Tensor,
    min_weight: float,
    max_weight: float,
    per_row: bool = False,
) -> Tensor:
    """N, Σw, Σw², Σ w·ln w, N(w ≤ min), N(w ≥ max) over the mask: `[6]` float64, or `[B, 6]` for
    each row.

    The bounds apply to the weights as they are: sum before renormalising to count what was clipped.
    """
    mask = loss_mask.bool()
    low, high = mask & (weights <= min_weight), mask & (weights >= max_weight)
    w = torch.where(mask, weights, 0.0).double()
    return _sums([mask.double(), w, w.square(), w.xlogy(w), low.double(), high.double()], per_row)


def _sums(terms: Sequence[Tensor], per_row: bool) -> Tensor:
    """Sum each of the `[B, S]` terms, over all or for each row: `[terms]` or `[B, terms]`."""
    return torch.stack([x.sum(-1) if per_row else x.sum() for x in terms], -1)


def weight_stats(sums: Tensor) -> dict[str, float]:
    """Compute figures from `[6]` weight sums; all NaN if they count nothing.

    Returns:
        mean, std; effective_sample_size (Σw)² / (N·Σw²), the share of tokens that carry the weight,
        in (0, 1]; entropy of w / Σw over ln N, in [0, 1], 1 for a single token; clipped_low,
        clipped_high, shares of N. Where all weights are 0, so are sample size and entropy.
    """
    count, total, squares, logs, low, high = sums.tolist()
    if count == 0:
        names = ("mean", "std", "effective_sample_size", "entropy", "clipped_low", "clipped_high")
        return dict.fromkeys(names, math.nan)
    mean = total / count
    size = entropy = 0.0
    if squares != 0:  # weights so small that their squares are 0 count as 0
        size = total * total / (count * squares)
        entropy = (math.log(total) - logs / total) / math.log(count) if count > 1 else 1.0
    return {
        "mean": mean,
        "std": math.sqrt(max(squares / count - mean * mean, 0.0)),
        "effective_sample_size": min(size, 1.0),
        "entropy": min(max(entropy, 0.0), 1.0),
        "clipped_low": low / count,
        "clipped_high": high / count,
    }


def td_stats(moments: Tensor) -> dict[str, float]:
    """mean, std and count from `[3]` moments; mean and std are NaN if they count nothing."""
    count = float(moments[0])
    mean, std = map(float, moments_mean_std(moments)) if count else (math.nan, math.nan)
    return {"mean": mean, "std": std, "count": count}


def compute_td_stats(td_errors: Tensor, loss_mask: Tensor) -> dict[str, float]:
    """`td_stats` of `[B, S]` TD errors."""
    return td_stats(td_moments(td_errors, loss_mask))


def compute_weight_stats(
    weights: Tensor, loss_mask: Tensor, min_weight: float = 0.1, max_weight: float = 5.0
) -> dict[str, float]:
    """`weight_stats` of `[B, S]` weights."""
    return weight_stats(weight_sums(weights, loss_mask, min_weight, max_weight))
