"""Controls for token weighting: weights of the same spread that know nothing about the tokens.

Randomness is counter-based: the number at (seed, step, row, position) is a hash of these four, so
it does not depend on how a step is cut into micro-batches and ranks, nor on the device.

Letters: B batch, S sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
_GAMMA = 0x9E3779B97F4A7C15
_FACTOR_1 = 0xBF58476D1CE4E5B9
_FACTOR_2 = 0x94D049BB133111EB


def counter_uniform(seed: int, step: int, rows: Tensor, length: int) -> Tensor:
    """Draw uniform numbers, each a function of (seed, step, row, position) alone.

    Args:
        seed: of the run; any integer, taken modulo 2^64.
        step: of the optimizer; likewise.
        rows: `[B]` int64, a number for each row, unique within the step.
        length: positions.

    Returns:
        `[B, length]` float64, strictly between 0 and 1, on the device of `rows`.
    """
    key = _mix(torch.full_like(rows, _signed(seed + _GAMMA)))
    key = _mix(key ^ _signed(step))
    key = _mix(key ^ rows)  # [B], where the row's own SplitMix64 stream starts
    position = torch.arange(1, length + 1, device=rows.device)
    bits = _mix(key[:, None] + position * _signed(_GAMMA))
    # 52 bits plus one half fit into a float64 exactly, so rounding never gives 1.
    return (_shift_right(bits, 12).double() + 0.5) * 2.0**-52


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 products wrap."""
    z = (z ^ _shift_right(z, 30)) * _signed(_FACTOR_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_FACTOR_2)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift as unsigned; `>>` alone repeats the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the lowest 64 bits of `x`."""
    return (x + 2**63) % 2**64 - 2**63


def shuffle_weights(weights: Tensor, loss_mask: Tensor, uniform: Tensor) -> Tensor:
    """Permute each row's weights among the row's own masked positions.

    Args:
        weights: `[B, S]`; not read off the mask.
        loss_mask: `[B, S]` bool or 0/1.
        uniform: `[B, S]` independent uniform numbers; their order is the permutation.

    Returns:
        `[B, S]` of the dtype of `weights`: on the mask the same numbers as before in each row, 0
        off it.
    """
    mask = loss_mask.bool()
    places = (~mask).byte().argsort(dim=1, stable=True)  # masked positions come first, in order
    order = uniform.masked_fill(~mask, math.inf).argsort(dim=1, stable=True)  # and here at random
    drawn = weights.detach().gather(1, order)
    return torch.zeros_like(drawn).scatter_(1, places, drawn).masked_fill_(~mask, 0)


def random_matched_weights(
    loss_mask: Tensor,
    uniform: Tensor,
    mean: float | Tensor,
    std: float | Tensor,
    min_weight: float,
    max_weight: float,
) -> Tensor:
    """Draw random weights within bounds with the given mean and spread.

    Clamping after drawing would change both. Where mean ± √3 · std lies within the bounds the
    weights are uniform there. Elsewhere they take two values, mean − a with probability b/(a + b)
    and mean + b with a/(a + b), where a · b = std²: a = b = std if the bounds allow it, else the
    side that is too short ends at its bound.

    Any law on [min, max] has std² ≤ (mean − min)(max − mean) (Bhatia & Davis 2000); a larger std
    is reduced to that, and a mean outside the bounds is moved to the nearer one.

    Args:
        loss_mask: `[B, S]` bool or 0/1.
        uniform: `[B, S]` independent uniform numbers in (0, 1), float64 for exact bounds.
        mean, std: of the weights on the mask; numbers or 0-dim tensors.
        min_weight, max_weight: bounds.

    Returns:
        `[B, S]` of the dtype of `uniform`, 0 off the mask. A std of 0 gives the mean itself.
    """
    mean = torch.as_tensor(mean, dtype=torch.float64, device=uniform.device).detach()
    std = torch.as_tensor(std, dtype=torch.float64, device=uniform.device).detach()
    mean = mean.clamp(min_weight, max_weight)
    below, above = mean - min_weight, max_weight - mean
    std = std.minimum((below * above).sqrt())

    reach = math.sqrt(3.0) * std
    even = mean + reach * (2 * uniform - 1)

    # With no room below or above, std is 0 and these are 0/0; `even` is used then.
    a = std.maximum(std * std / above).minimum(below)
    b = std * std / a
    two_valued = torch.where(uniform < b / (a + b), mean - a, mean + b)

    fits = (reach <= below) & (reach <= above)
    weights = torch.where(fits, even, two_valued).clamp(min_weight, max_weight)  # rounding
    return weights.to(uniform.dtype).masked_fill(~loss_mask.bool(), 0)
