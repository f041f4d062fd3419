"""RMS norm and the SwiGLU gate with hand-written gradients that keep less for the backward pass,
and attention over short rows whose gradient takes a quicker kernel.

Plain autograd keeps the normalised input of every norm, the SiLU of every gate, what both give to
the matrices that read it, and autocast's copies of those matrices. All of it is cheap to compute
again. `normed_linears` and `swiglu_linear` therefore include the products.

Letters: N positions, D width of the last dimension, F feed-forward width, O width of a product,
B batch, S sequence, H attention heads, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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
    out: Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]  # torch
        x, weight, eps, _compute_dtype(x)
    )
    return out


def normed_linears(
    x: Tensor, weight: Tensor, eps: float, linears: Sequence[nn.Module]
) -> tuple[Tensor, ...]:
    """Each linear of `rms_norm(x, weight, eps)`. Where they are plain ones and train, only `x` and
    1/rms are kept: the backward pass computes the norm again, and autocast's copies of matrices.

    Args:
        x: `[..., D]`.
        linears: modules from D to O, each to its own.

    Returns:
        `[..., O]` for each.
    """
    if not _are_plain(*linears):
        normed = rms_norm(x, weight, eps)
        return tuple(linear(normed) for linear in linears)
    matrices, biases = [each.weight for each in linears], [each.bias for each in linears]
    outs: tuple[Tensor, ...] = _NormedLinears.apply(  # type: ignore[no-untyped-call]  # torch
        x, weight, eps, _compute_dtype(x), *matrices, *biases
    )
    return outs


def swiglu_linear(
    gate: Tensor, up: Tensor, linear: nn.Module, keeps_product: bool = False
) -> Tensor:
    """`linear(swiglu(gate, up))`, `[..., F]` twice → `[..., O]`. Where the linear is a plain one
    and trains, only `gate` and `up` are kept; with `keeps_product` its input too."""
    out: Tensor
    if keeps_product or not _are_plain(linear):
        out = linear(swiglu(gate, up))
    else:
        parts = gate, up, linear.weight, linear.bias
        out = _SwiGLULinear.apply(*parts)  # type: ignore[no-untyped-call]  # torch
    return out


SHORT = 2**20
"""S · d² up to which PyTorch's backward kernel for the CPU is quicker in float32 than in bfloat16,
by 1.3 to 4 times (two cores with AMX: up to S 320 at d 64, about 100 at d 128)."""


def is_short(q: Tensor) -> bool:
    """Whether `short_attention` is the way to go for queries `[B, H, S, d]`."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    S, d = q.shape[-2:]
    return torch.is_grad_enabled() and q.requires_grad and 1 < S * d * d <= SHORT


def short_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Causal attention of queries `[B, H, S, d]`, keys and values `[B, K, S, d]`, on the CPU; as
    `scaled_dot_product_attention` gives it, with gradients computed in float32."""
    out: Tensor = _ShortAttention.apply(q, k, v, scale)  # type: ignore[no-untyped-call]  # torch
    return out


def _are_plain(*linears: nn.Module) -> bool:
    """Whether a product with the weight is all that these modules do (no adapter, no codes of 8
    bits, no hook), and autograd is to record it."""
    return torch.is_grad_enabled() and all(
        type(each) is nn.Linear and not (each._forward_hooks or each._forward_pre_hooks)
        for each in linears
    )


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, arXiv 2002.05202)."""
    out: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]  # torch
    return out


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Of the products that read `x`: autocast's, or its own."""
    kind = x.device.type
    mixed = kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if mixed else x.dtype


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normed(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The norm in `dtype`, and 1/rms `[..., 1]`."""
    wide = _wide(x)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * rstd).mul_(weight).to(dtype), rstd


def _norm_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, unit: Tensor
) -> tuple[Tensor, Tensor]:
    """Of `x` and of `weight`; `unit` is x / rms, and is overwritten."""
    grad = _wide(grad)
    grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype)
    grad_unit = grad * weight
    along = (grad_unit * unit).mean(-1, keepdim=True)
    return (grad_unit - unit.mul_(along)).mul_(rstd).to(x.dtype), grad_weight


def _linear(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """In the dtype of `x`."""
    return F.linear(x, matrix.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _matrix_gradients(
    grad: Tensor, x: Tensor, matrix: Tensor, bias: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of matrix `[O, D]` and bias `[O]`, those that are wanted; `grad` `[N, O]`, `x` `[N, D]`."""
    of_matrix = torch.mm(grad.t(), x).to(matrix.dtype) if wanted[0] else None
    of_bias = grad.sum(0).to(bias.dtype) if bias is not None and wanted[1] else None
    return of_matrix, of_bias


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        normed, rstd = _normed(x, weight, eps, dtype)
        ctx.save_for_backward(x, weight, rstd)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        return *_norm_gradients(grad, x, weight, rstd, _wide(x) * rstd), None, None


class _NormedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, *parts: Any
    ) -> tuple[Tensor, ...]:
        """`parts`: all matrices, then all biases."""
        normed, rstd = _normed(x, weight, eps, dtype)
        ctx.save_for_backward(x, weight, rstd, *parts)
        ctx.dtype = dtype
        half = len(parts) // 2
        pairs = zip(parts[:half], parts[half:], strict=True)
        return tuple(_linear(normed, matrix, bias) for matrix, bias in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd, *parts = ctx.saved_tensors
        reaches, wanted = any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[4:]
        unit = _wide(x) * rstd
        normed = (unit * weight).to(ctx.dtype).flatten(0, -2)  # [N, D]
        of_normed, found = torch.zeros_like(normed), []
        for i, grad in enumerate(each.flatten(0, -2) for each in grads):
            matrix, bias = parts[i], parts[len(grads) + i]
            wants = wanted[i], wanted[len(grads) + i]
            found.append(_matrix_gradients(grad, normed, matrix, bias, wants))
            if reaches:
                of_normed.addmm_(grad, matrix.to(grad.dtype))
        del normed
        of_x, of_weight = None, None
        if reaches:
            of_x, of_weight = _norm_gradients(of_normed.view_as(x), x, weight, rstd, unit)
        matrices, biases = zip(*found, strict=True)
        return of_x, of_weight, None, None, *matrices, *biases


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), of_up


class _SwiGLULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, matrix, bias)
        return _linear(F.silu(gate).mul_(up), matrix, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, matrix, bias = ctx.saved_tensors
        flat = grad.flatten(0, -2)  # [N, O]
        silu = F.silu(gate)
        product = (silu * up).flatten(0, -2)  # [N, F]
        found = _matrix_gradients(flat, product, matrix, bias, ctx.needs_input_grad[2:])
        del product
        of_product = torch.mm(flat, matrix.to(gate.dtype)).view_as(gate)
        of_up = silu.mul_(of_product)
        return torch.ops.aten.silu_backward(of_product.mul_(up), gate), of_up, *found


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, logsumexp = attend(q, k, v, 0.0, True, scale=scale)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.scale = scale
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsumexp = ctx.saved_tensors
        attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        wide = (each.float() for each in (grad, q, k, v, out))
        found = attend_backward(*wide, logsumexp, 0.0, True, scale=ctx.scale)
        return *(each.to(q.dtype) for each in found), None
