"""Unembedding and cross-entropy in one step that never holds the logits of all rows.

For rows h_i with target y_i and scale s_i, the loss is Σ_i s_i · CE(W h_i, y_i). Its gradient needs
nothing but the softmax p_i of the row:

    dL/dh_i = s_i · Wᵀ(p_i − e_{y_i})        dL/dW = Σ_i s_i · (p_i − e_{y_i}) h_iᵀ

so both are computed chunk by chunk in the forward pass, while the logits of the chunk are in memory
(the idea of Liger-Kernel, arXiv 2410.10989, and cut cross-entropy, arXiv 2411.09009). Peak memory
is one chunk of logits and one gradient of W, however many rows there are.

Precision: for a confident row p_y is close to 1, and p_y − 1 loses its digits: bfloat16 has steps
of 2⁻⁸ there, float32 of 2⁻²⁴. So the softmax is taken over the other classes alone:
with q_j = p_j / (1 − p_y) for j ≠ y and the log-odds g = z_y − log Σ_{j≠y} exp(z_j),

    p − e_y = σ(−g) · (q − e_y)             CE = −log σ(g)

without a difference of nearly equal numbers. The bracket, of order 1, is what is narrowed to the
compute dtype for the matrix products; σ(−g) stays in float32 with the scale of the row.

Letters: N rows, C rows in a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 64 * 2**20
"""Logits held at a time. Larger chunks amortise the pass over dW, smaller ones save memory; 64 MiB
is 512 float32 rows at V = 32000, the only size timed so far."""

SOFTMAX_BYTES = 4 * 2**20
"""Logits turned into probabilities at a time: they stay in the cache between the passes."""


def fused_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute Σ_i scale_i · CE(hidden_i · weightᵀ, target_i) without holding all logits.

    Rows whose scale is zero are skipped: they cost nothing, and their target may be anything.

    Args:
        hidden: `[N, D]`; its dtype is the compute dtype (under autocast: autocast's).
        weight: `[V, D]` unembedding, cast to the compute dtype.
        targets: `[N]` class of each row.
        scale: `[N]` factor of each row; no gradient flows to it.
        chunk_rows: rows of logits held at a time; by default `CHUNK_BYTES` worth.

    Returns:
        The scalar loss, differentiable (once) in `hidden` and `weight` (a gradient is computed only
        for those that require one); the cross-entropy `[N]` of each row, detached, 0 for skipped
        rows; and `[N]` whether no class was likelier than the target. The numbers are float32, or
        float64 for float64.
    """
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(device_type))
    if chunk_rows is None:
        chunk_rows = rows_of_chunk(weight.shape[0], hidden.element_size())
    graph = torch.is_grad_enabled()
    plan = _Plan(chunk_rows, graph and hidden.requires_grad, graph and weight.requires_grad)
    with torch.autocast(device_type, enabled=False):
        loss, ce, hit = _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch
            hidden, weight, targets, scale.detach(), plan
        )
    return loss, ce, hit


def rows_of_chunk(vocabulary: int, size: int) -> int:
    """Rows of logits, `size` bytes a number, that are held at a time by default."""
    return max(16, CHUNK_BYTES // (vocabulary * size))


class _Plan(NamedTuple):
    """How to compute: rows of logits held at a time, and which gradients are needed."""

    chunk_rows: int
    hidden_gradient: bool
    weight_gradient: bool


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of all rows in `forward`; `backward` only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        W = weight.to(hidden.dtype)
        V, D = W.shape
        scale = scale.to(wide)
        rows = scale.nonzero().squeeze(1)  # [R] the rows that count
        # Gradients are built from scales of at most 1 and multiplied by the largest at the end:
        # 1/(tokens of a step) may underflow in a 16-bit number.
        largest = scale.abs().max() if rows.numel() else scale.new_ones(())
        relative = scale / largest

        ce, hit = torch.zeros_like(scale), torch.zeros_like(scale, dtype=torch.bool)
        grad_hidden = torch.zeros_like(hidden) if plan.hidden_gradient else None
        grad_weight = None
        if plan.weight_gradient:
            grad_weight = torch.zeros(V, D, dtype=wide, device=W.device)
        held = min(plan.chunk_rows, rows.numel())
        buffer = torch.empty(held, V, dtype=W.dtype, device=W.device)
        for chunk in torch.split(rows, plan.chunk_rows):
            h, y = hidden[chunk], targets[chunk]  # [C, D], [C]
            logits = torch.mm(h, W.t(), out=buffer[: len(chunk)])  # [C, V]
            ce[chunk], hit[chunk], others = _residual_and_cross_entropy_(logits, y, wide)
            residual = logits  # q − e_y, in the same memory
            factor = (relative[chunk] * others).unsqueeze(1)  # [C, 1]
            if grad_hidden is not None:
                grad_hidden[chunk] = (torch.mm(residual, W) * factor).to(hidden.dtype)
            if grad_weight is not None:
                add_outer_(grad_weight, residual, (h * factor).to(h.dtype))

        ctx.largest = largest
        ctx.gradients = (grad_hidden, hidden.dtype), (grad_weight, weight.dtype)
        ctx.mark_non_differentiable(ce, hit)
        return (ce * scale).sum(), ce, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *hand_out(ctx, grad_loss * ctx.largest), None, None, None


def hand_out(ctx: Any, factor: Tensor) -> list[Tensor | None]:
    """`ctx.gradients`, which `forward` computed (each with the format it is wanted in), times a
    factor. In their own memory, if no other backward pass can follow (`retain_graph`): a second
    [V, D] would be the largest thing in this one."""
    gradients: list[tuple[Tensor | None, torch.dtype]] = ctx.gradients
    if _graph_is_kept():
        return [None if each is None else (each * factor).to(kind) for each, kind in gradients]
    ctx.gradients = None  # so that the engine takes them over instead of copying them
    return [None if each is None else each.mul_(factor).to(kind) for each, kind in gradients]


def _graph_is_kept() -> bool:
    """Whether the running backward pass has `retain_graph`; True where PyTorch does not tell."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())


def _residual_and_cross_entropy_(
    logits: Tensor, targets: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite `logits` `[C, V]` with q − e_y (see the top of this file); return, `[C]` each, the
    cross-entropy, whether the target has the largest logit, and 1 − p_y.

    In blocks that stay in the cache, and in float32 whatever the logits are stored in. The
    normaliser is read off the largest probability: log Σ exp(z) = z_max − log q_max, where
    q_max ≥ 1/V makes the logarithm harmless.
    """
    C, V = logits.shape
    ce = torch.empty(C, dtype=wide, device=logits.device)
    hit = torch.empty(C, dtype=torch.bool, device=logits.device)
    others = torch.empty_like(ce)
    block = C if logits.is_cuda else max(1, SOFTMAX_BYTES // (V * ce.element_size()))
    narrow = logits.dtype != wide
    scratch = torch.empty(min(block, C), V, dtype=wide, device=logits.device) if narrow else logits
    for start in range(0, C, block):
        z = logits[start : start + block]
        q = scratch[: len(z)].copy_(z) if narrow else z
        at = targets[start : start + block, None]
        target_logit = q.gather(1, at).squeeze(1)
        q.scatter_(1, at, -torch.inf)
        top = q.amax(-1)
        torch.softmax(q, -1, out=q)
        log_odds = (target_logit - top) + q.amax(-1).log()
        ce[start : start + block] = -F.logsigmoid(log_odds)
        hit[start : start + block] = target_logit >= top
        others[start : start + block] = torch.sigmoid(-log_odds)
        q.scatter_(1, at, -1.0)
        if narrow:
            z.copy_(q)
    return ce, hit, others


def add_outer_(total: Tensor, residual: Tensor, h: Tensor) -> None:
    """`total += residualᵀ h`, `[V, D] += [V, C] [C, D]`, summed in the precision of `total`.

    A 16-bit product is added piece by piece: cast whole, it would be a second [V, D] in float32.
    """
    if total.dtype == h.dtype:
        total.addmm_(residual.t(), h)
        return
    for columns, part in zip(torch.split(residual, 4096, 1), torch.split(total, 4096), strict=True):
        part.add_(torch.mm(columns.t(), h))
