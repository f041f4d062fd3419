"""From `runtime.parallel` to the object that carries it out."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from weighted_mtp.core.config.runtime import RuntimeConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.ddp import Replicated
from weighted_mtp.runtime.environment import Environment
from weighted_mtp.runtime.parallel import Fill, Parallel


def check_mode(config: RuntimeConfig, world_size: int, per_node: int | None = None) -> None:
    """Check, before anything is read, that the mode works with this number of processes.

    Args:
        per_node: processes of a node; None: as torchrun says.

    Raises:
        UserError: it does not.
    """
    who = "torchrun started" if per_node is None else "the plan is for"
    if config.parallel == "none" and world_size > 1:
        raise UserError(
            f"runtime.parallel is none, but {who} {world_size} processes; "
            "--set runtime.parallel=ddp"
        )
    size = config.fsdp.shard_size or per_node or shard_size(config, world_size)
    if config.parallel == "hsdp" and world_size % size:
        raise UserError(
            f"runtime.fsdp.shard_size {size} does not divide the {world_size} processes that {who}"
        )


def can_shard(device: torch.device) -> bool:
    """Whether FSDP2 runs here: on the CPU PyTorch 2.6 lacks what it asks of a stream."""
    return device.type != "cpu" or hasattr(torch.cpu.Stream, "record_event")


def shard_size(config: RuntimeConfig, world_size: int) -> int:
    """How many processes share one copy of the weights; under hsdp those of a node, unless the
    recipe says otherwise."""
    if config.parallel == "fsdp":
        return world_size
    if config.parallel != "hsdp":
        return 1
    return config.fsdp.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def parallelise(
    module: nn.Module,
    plan: Sequence[str],
    config: RuntimeConfig,
    env: Environment,
    fill: Fill | None = None,
) -> Parallel:
    """Spread a module over the processes as the recipe says; one process has all of it, unless it
    offloads. Every process calls this. Build the optimizer after it.

    Args:
        plan: names of the submodules that are units for sharding.
        fill: gives the module its weights, if it is on the meta device.

    Raises:
        UserError: this PyTorch cannot do it on this device.
    """
    if env.world_size == 1 and not config.offloads:
        return Parallel(module, env.device, fill)
    if config.parallel == "ddp":
        return Replicated(module, env.device, fill)
    if not can_shard(env.device):
        raise UserError(
            f"runtime.parallel {config.parallel}: PyTorch {torch.__version__} shards nothing on "
            "the CPU; --set runtime.parallel=ddp, or use a newer PyTorch"
        )
    from torch.distributed.device_mesh import init_device_mesh  # slow to import

    from weighted_mtp.runtime.fsdp import Sharded

    size = shard_size(config, env.world_size)
    kind = env.device.type
    if config.parallel == "fsdp":
        mesh = init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    else:
        shape = (env.world_size // size, size)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
    distributed.have_patience(mesh.get_all_groups())
    return Sharded(module, plan, config.fsdp, mesh, env.device, fill)
