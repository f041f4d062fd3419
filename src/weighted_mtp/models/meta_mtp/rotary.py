"""Rotary position embedding on neighbouring pairs (Su et al. 2021, arXiv 2104.09864).

Letters: B batch, S sequence, H attention heads, d head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency-dependent stretch of the rotary wavelengths (`rope_type: llama3`)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192


def precompute_freqs_cis(
    head_dim: int,
    end: int,
    theta: float = 10000.0,
    scaling: RopeScaling | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rotations e^{i·p·θ^{−2j/d}} for positions p < end (Su et al. 2021, arXiv 2104.09864).

    Args:
        dtype: precision of the angles; float32 is what Meta and Hugging Face train with.

    Returns:
        `[end, d/2]`, complex64 (complex128 for float64), always on the CPU.
    """
    steps = torch.arange(0, head_dim, 2, dtype=dtype, device="cpu")
    freqs = 1.0 / theta ** (steps / head_dim)
    if scaling is not None:
        freqs = _stretch(freqs, scaling)
    angles = torch.outer(torch.arange(end, dtype=dtype, device="cpu"), freqs)
    return torch.polar(torch.ones_like(angles), angles)


def _stretch(freqs: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide low frequencies by `factor`, keep high ones, blend linearly between the two."""
    turns = scaling.original_max_seq_len * freqs / (2 * math.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return keep * freqs + (1.0 - keep) * freqs / scaling.factor


def apply_rotary(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Rotate neighbouring pairs of `x` `[B, S, H, d]` by `freqs_cis`, `[S, d/2]` or `[B, S, d/2]`.

    In float32 at least, as Meta does; returned in the dtype of `x`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.view(*x.shape[:-1], -1, 2))  # [B, S, H, d/2]
    return torch.view_as_real(pairs * freqs_cis.unsqueeze(-2)).flatten(-2).to(x.dtype)


def rotate_in_place(x: Tensor, freqs_cis: Tensor) -> None:
    """`apply_rotary` on `x` itself, whose last dimension must be contiguous; the same bits."""
    if x.dtype in (torch.float32, torch.float64):
        pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
        pairs.mul_(freqs_cis.unsqueeze(-2))
    else:
        x.copy_(apply_rotary(x, freqs_cis))
