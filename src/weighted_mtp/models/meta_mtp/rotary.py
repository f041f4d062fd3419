"""Rotary position embedding on neighbouring pairs (Su et al. 2021, arXiv 2104.09864).

Letters: B batch, S sequence, H attention heads, d head width, r rotated features of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weighted_mtp.models.meta_mtp.args import RopeFrequencies, RopeScaling

__all__ = [
    "RopeFrequencies",
    "RopeScaling",
    "apply_rotary",
    "precompute_freqs_cis",
    "rotate_in_place",
]


def precompute_freqs_cis(
    rotary_dim: int,
    end: int,
    theta: float = 10000.0,
    scaling: RopeScaling | RopeFrequencies | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rotations e^{i·p·θ^{−2j/r}} for positions p < end (Su et al. 2021, arXiv 2104.09864).

    Args:
        rotary_dim: r.
        dtype: precision of the angles; float32 is what Meta and Hugging Face train with.

    Returns:
        `[end, r/2]`, complex64 (complex128 for float64), always on the CPU.
    """
    if isinstance(scaling, RopeFrequencies):
        freqs = torch.tensor(scaling.inverse, dtype=dtype, device="cpu")
    else:
        steps = torch.arange(0, rotary_dim, 2, dtype=dtype, device="cpu")
        freqs = 1.0 / theta ** (steps / rotary_dim)
        if scaling is not None:
            freqs = _stretch(freqs, scaling)
    angles = torch.outer(torch.arange(end, dtype=dtype, device="cpu"), freqs)
    amplitude = scaling.amplitude if isinstance(scaling, RopeFrequencies) else 1.0
    return torch.polar(torch.full_like(angles, amplitude), angles)


def _stretch(freqs: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide low frequencies by `factor`, keep high ones, blend linearly between the two."""
    turns = scaling.original_max_seq_len * freqs / (2 * math.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return keep * freqs + (1.0 - keep) * freqs / scaling.factor


def apply_rotary(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Rotate neighbouring pairs of `x` `[B, S, H, d]` by `freqs_cis`, `[S, r/2]` or `[B, S, r/2]`;
    features from r on stay.

    In float32 at least, as Meta does; returned in the dtype of `x`.
    """
    r = 2 * freqs_cis.shape[-1]
    if r < x.shape[-1]:
        return torch.cat([apply_rotary(x[..., :r], freqs_cis), x[..., r:]], -1)
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.reshape(*x.shape[:-1], -1, 2))  # [B, S, H, r/2]
    return torch.view_as_real(pairs * freqs_cis.unsqueeze(-2)).flatten(-2).to(x.dtype)


def rotate_in_place(x: Tensor, freqs_cis: Tensor) -> None:
    """`apply_rotary` on `x` itself, whose last dimension must be contiguous; the same bits."""
    if x.dtype in (torch.float32, torch.float64):
        x = x[..., : 2 * freqs_cis.shape[-1]]
        pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
        pairs.mul_(freqs_cis.unsqueeze(-2))
    else:
        x.copy_(apply_rotary(x, freqs_cis))
