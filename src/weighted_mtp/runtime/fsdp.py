"""FSDP2: every process keeps a part of each weight, of its gradient and of the optimizer's state.

`fully_shard` goes over the model's grouping plan: each block and each extra head is a unit that is
gathered when it runs and let go after it; what is left (embeddings, norm, unembedding, value head)
is the root's. The root stays gathered from its first forward of a step to its last backward, so the
fused loss finds the unembedding whole, and that is sent once a step.

Letters: R replicas, W processes that share one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

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

from weighted_mtp.core.config.runtime import FSDPConfig
from weighted_mtp.core.device import DTYPES
from weighted_mtp.runtime.parallel import Fill, Parallel
from weighted_mtp.runtime.parts import is_part


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
        return [x.to_local() if is_part(x) else x for x in whole]

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
