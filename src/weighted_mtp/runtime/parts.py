"""Tensors of which each process holds a part, for code that mostly meets whole ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_part(tensor: object) -> TypeGuard[DTensor]:
    """Whether it is a `DTensor`. Importing those takes half a second, and where nobody has done so
    there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    kind = getattr(module, "DTensor", None)
    return kind is not None and isinstance(tensor, kind)


@torch.no_grad()
def copy_whole(whole: Tensor, target: Tensor) -> None:
    """Copy `whole`, or this process's part of it if `target` is a `DTensor` of that shape."""
    if not is_part(target):
        target.copy_(whole)
        return
    from torch.distributed.tensor import Shard

    for dimension, placement in enumerate(target.placements):
        if isinstance(placement, Shard):
            size = target.device_mesh.size(dimension)
            parts = torch.chunk(whole, size, dim=placement.dim)
            index = target.device_mesh.get_local_rank(dimension)
            whole = parts[index] if index < len(parts) else whole.narrow(placement.dim, 0, 0)
    target.to_local().copy_(whole)


class WholeDraws(TorchFunctionMode):
    """While active, `nn.init`'s random numbers for a `DTensor` are drawn for the whole tensor on
    every process, one tensor at a time, and each keeps its part: a seed gives the weights that it
    gives a single process. (DTensor's own generator gives others.)"""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("tensor", args[0] if args else None)
        drawn = getattr(func, "__name__", "") in ("normal_", "uniform_")
        if not drawn or not is_part(target):
            return func(*args, **kwargs)
        device = target.device_mesh.device_type
        whole = torch.empty(target.shape, dtype=target.dtype, device=device)
        if "tensor" in kwargs:
            func(*args, **{**kwargs, "tensor": whole})
        else:
            func(whole, *args[1:], **kwargs)
        copy_whole(whole, target)
        return target
