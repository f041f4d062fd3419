"""RMS norm and the SwiGLU gate with hand-written gradients that keep less for the backward pass.

Plain autograd keeps the normalised input of every norm and the SiLU of every gate; both are cheap
to compute again. At dim 512, 8 layers, 2048 tokens a step's peak fell by about 0.1 of 1.2 GB.

Letters: D width of the last dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last dimension, computed in float32 or better.

    Args:
        x: `[..., D]`, at least two dimensions.
        weight: `[D]`.

    Returns:
        `[..., D]` in the dtype of `x`; under autocast in autocast's, so that the projections that
        read it share one cast.
    """
    kind = x.device.type
    mixed = kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if mixed else x.dtype
    out: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]  # torch
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, arXiv 2002.05202)."""
    out: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]  # torch
    return out


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = _wide(x)
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # [..., 1]
        ctx.save_for_backward(x, weight, rstd)
        return (wide * rstd).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        grad = _wide(grad)
        normed = _wide(x) * rstd
        grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad_normed = grad * weight
        along = (grad_normed * normed).mean(-1, keepdim=True)
        grad_x = (grad_normed - normed.mul_(along)).mul_(rstd)
        return grad_x.to(x.dtype), grad_weight, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, grad_up
