"""FSDP2: every process keeps a part of each weight, of its gradient and of the optimizer's state.

`fully_shard` goes over the model's grouping plan: each block and each extra head is a unit that is
gathered when it runs and let go after it; what is left (embeddings, norm, unembedding, value head)
is the root's. The root stays gathered from its first forward of a step to its last backward, so the
fused loss finds the unembedding whole, and that is sent once a step.

Letters: R replicas, W processes that share one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard
from torch.overrides import TorchFunctionMode

from weighted_mtp.core.config.runtime import FSDPConfig
from weighted_mtp.core.device import DTYPES
from weighted_mtp.runtime.parallel import Fill, Parallel


class Sharded(Parallel):
    """A part of the module on every process.

    Args:
        module: with its weights, or on the meta device with a `fill`: then no process ever holds
            more than its part and one weight.
        plan: names of the submodules that are units, in the order they run.
        mesh: `[W]`, or `[R, W]` for replicas that each are sharded (HSDP).
    """

    sharded: ClassVar[bool] = True

    def __init__(
        self,
        module: nn.Module,
        plan: Sequence[str],
        config: FSDPConfig,
        mesh: DeviceMesh,
        device: torch.device,
        fill: Fill | None = None,
    ) -> None:
        offload = config.cpu_offload and device.type != "cpu"
        offloading = CPUOffloadPolicy() if offload else OffloadPolicy()
        for name in plan:
            fully_shard(
                module.get_submodule(name),
                mesh=mesh,
                reshard_after_forward=config.reshard_after_forward,
                mp_policy=_precision(config),
                offload_policy=offloading,
            )
        # Residual stream, final norm and value head are float32, as without sharding.
        fully_shard(module, mesh=mesh, reshard_after_forward=False, offload_policy=offloading)
        super().__init__(module, torch.device("cpu") if offload else device, fill)
        self._root, self._mesh = _as_fsdp(module), mesh
        self._every_time = config.reduce_gradients == "micro_batch"

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self._root.set_requires_gradient_sync(last or self._every_time)
        self._root.set_is_last_backward(last)
        self._root.set_reshard_after_backward(last, recurse=False)
        yield

    def _own_gradients(self) -> list[Tensor]:
        whole = super()._own_gradients()
        return [x.to_local() if isinstance(x, DTensor) else x for x in whole]

    def _sum_over_parts(self, x: Tensor) -> float:
        group = self._mesh.get_group(self._mesh.ndim - 1)  # replicas hold the same parts
        dist.all_reduce(x, group=group)
        return float(x)


def _as_fsdp(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule)  # fully_shard changes the class of what it is given
    return module


def _precision(config: FSDPConfig) -> MixedPrecisionPolicy:
    """Inputs of a block are left alone: the residual stream keeps its float32."""
    formats = {
        name: None if name == "float32" else DTYPES[name]
        for name in (config.param_dtype, config.reduce_dtype)
    }
    reduce = formats[config.reduce_dtype]
    if formats[config.param_dtype] is not None and reduce is None:
        reduce = torch.float32
    return MixedPrecisionPolicy(
        param_dtype=formats[config.param_dtype], reduce_dtype=reduce, cast_forward_inputs=False
    )


@torch.no_grad()
def copy_whole(whole: Tensor, target: Tensor) -> None:
    """Copy `whole`, or this process's part of it if `target` is a `DTensor` of that shape."""
    if not isinstance(target, DTensor):
        target.copy_(whole)
        return
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
        if not drawn or not isinstance(target, DTensor):
            return func(*args, **kwargs)
        device = target.device_mesh.device_type
        whole = torch.empty(target.shape, dtype=target.dtype, device=device)
        if "tensor" in kwargs:
            func(*args, **{**kwargs, "tensor": whole})
        else:
            func(whole, *args[1:], **kwargs)
        copy_whole(whole, target)
        return target
