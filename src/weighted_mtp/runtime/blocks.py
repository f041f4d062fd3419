"""What is done to a model's blocks before it is wrapped, by the plan the model exports.

Letters: B batch, S sequence, N = B · S positions, D model width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from weighted_mtp.models.meta_mtp.transformer import Transformer, TransformerBlock

Recomputation = Literal["selective", "full"]

_aten = torch.ops.aten
_ATTENTION = {
    getattr(_aten, f"_scaled_dot_product_{kernel}").default
    for kernel in (
        "flash_attention_for_cpu",
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "fused_attention_overrideable",
    )
}
"""Kernels that write no S × S scores; what else attention may come down to is computed again."""


def checkpoint_activations(
    model: Transformer, plan: Sequence[str], how: Recomputation = "full", drops: bool = False
) -> None:
    """Keep little of what each unit computes; the rest is computed again in the backward pass. The
    gradients are the same, bit for bit on the CPU. Names and state dict stay as they are.

    `full` keeps a unit's input alone. `selective` also keeps what attention gives (its output and
    log-sum-exp) and every product of something D wide with a matrix that is no wider: queries,
    keys, values, and attention's part of the residual. So attention and its projections run once,
    which is most of the work where rows are long; norms, rotation, casts, gate, up and SwiGLU run
    twice. Gate and up cost as little a byte to compute again as those products, but are most of
    the bytes. Nothing reads w2's product again, so it is neither kept nor computed twice.

    Bytes that a position keeps of a block (exact; without weights and autocast's copies of them),
    and time of a forward and backward pass (8 blocks of dim 512, F 1536, S 512, one CPU core):

                                  float32        bfloat16
        none                  24 616  1.00    14 376  1.00
        selective             12 320  1.05     7 200  1.06
        full                   2 048  1.21     2 048  1.25
        attention alone        4 128  1.12     3 104  1.16

    Args:
        plan: names of the units: blocks called with `[B, S, D]` and more.
        drops: the units have dropout, which has to drop the same again.
    """
    more: dict[str, Any] = {"preserve_rng_state": drops}
    if how == "selective":
        more["context_fn"] = _contexts(model.args.dim)
    for name in plan:
        block = model.get_submodule(name)
        cast(TransformerBlock, block).feed_forward.keeps_product = True
        block.forward = _recomputed(block.forward, more)  # hooks still see one call


def _recomputed(forward: Callable[..., Tensor], more: dict[str, Any]) -> Callable[..., Tensor]:
    """A function of this file, which `torch.compile` looks into. (It passes by one of torch's, and
    with it all that is called from there.)"""

    def recomputed(*args: Any) -> Tensor:
        out: Tensor = checkpoint(forward, *args, use_reentrant=False, **more)
        if not torch.compiler.is_compiling():
            # Autocast would keep its copies of all weights until the loss is done; the backward
            # pass makes them again, a block at a time.
            torch.clear_autocast_cache()
        return out

    return recomputed


def _contexts(width: int) -> Callable[[], Any]:
    """What `selective` keeps of a block of this width D; a function, as `torch.compile` wants."""

    def policy(_: Any, op: Any, *args: Any, **__: Any) -> CheckpointPolicy:
        keep = op in _ATTENTION
        if op is _aten.mm.default:  # [N, in] × [in, out]
            rows, columns = args[1].shape
            keep = columns <= rows == width
        elif op is _aten.linear.default:  # MPS: the weight as it is, [out, in]
            columns, rows = args[1].shape
            keep = columns <= rows == width
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]  # torch

    return contexts


def compile_blocks(model: nn.Module, plan: Sequence[str]) -> None:
    """`torch.compile` each unit in place: alike ones share their code. Dynamic in length."""
    for name in plan:
        model.get_submodule(name).compile(dynamic=True)
