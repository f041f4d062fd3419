"""Started by torchrun: what two processes have to agree on before and beside the training.

worker_agreement.py FOLDER
"""

import errno
import os
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.config.runtime import FSDPConfig, RuntimeConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.compose import find_checkpoint
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.runtime import distributed, shards
from weighted_mtp.runtime.environment import environment
from weighted_mtp.runtime.modes import can_shard, parallelise

PATIENCE = 3.0  # seconds


def the_main_process_looks(folder: Path, rank: int) -> None:
    """The second process sees an older state of the run directory, then one without the run."""
    runs = [folder / "new", folder / "old", folder / "absent"]
    if rank == 0:
        for run, steps in zip(runs, ((3, 6), (3,), ()), strict=True):
            for step in steps:
                checkpoint = run / "checkpoints" / f"step-{step:08d}"
                checkpoint.mkdir(parents=True)
                (checkpoint / "COMPLETE").touch()
                (run / "config.yaml").touch()
    distributed.barrier()
    distributed.FILE_LAG = 0.5
    request = RunRequest(load_recipe("baseline", "micro"), runs[0], resume=True)
    assert find_checkpoint(request) == runs[0] / "checkpoints" / "step-00000006"
    for seen in runs[1:]:
        if rank == 0:
            find_checkpoint(request)
            continue
        with pytest.raises(UserError, match="must be on a file system that all nodes share"):
            find_checkpoint(replace(request, run_dir=seen))


def every_group_has_the_timeout(env) -> None:
    groups = [distributed.another_group(), dist.group.WORLD]
    config = RuntimeConfig(parallel="hsdp", fsdp=FSDPConfig(shard_size=2))
    if can_shard(env.device):
        parallel = parallelise(nn.Linear(4, 4), [], config, env)
        groups += next(iter(parallel.weights.values())).device_mesh.get_all_groups()
    else:
        with pytest.raises(UserError, match="shards nothing on the CPU"):
            parallelise(nn.Linear(4, 4), [], config, env)
    for group in groups:
        backend = group._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(minutes=1), group


def a_part_that_cannot_be_written(folder: Path, rank: int) -> None:
    """Each process is told, and none takes it for the loss of another one."""
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(FileSystemWriter, "write_data", full)
        future = shards.Writer().begin({"weight": torch.ones(4)}, folder / "full")
        with pytest.raises(CheckpointException, match="No space left") as failure:
            future.result()
    assert not distributed.is_lost(failure.value)
    assert not (folder / "full" / shards.INDEX).exists()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def a_save_that_one_process_leaves(folder: Path, rank: int) -> None:
    """The other one does not wait for ever, nor does its thread keep it from ending."""
    distributed._timeout = timedelta(seconds=PATIENCE)
    writer, tensors = shards.Writer(), {"a": torch.arange(4.0)}
    (folder / "shards").mkdir(exist_ok=True)
    writer.begin(tensors, folder / "shards").result()
    if rank == 1:
        while not (folder / "gave up").exists():
            time.sleep(0.1)
        return
    begun = time.monotonic()
    future = writer.begin(tensors, folder / "shards")
    tensors["a"].zero_()  # as the optimizer would
    with pytest.raises(RuntimeError) as failure:
        future.result()
    assert distributed.is_lost(failure.value), failure.value
    (folder / "gave up").touch()
    print(f"gave up after {time.monotonic() - begun:.1f} s", flush=True)


def the_state_of_its_moment_is_saved(folder: Path) -> None:
    """The copy is made before `begin` returns: what the optimizer does next is not in it."""
    weight = torch.ones(2**20)
    future = shards.Writer().begin({"weight": weight}, folder / "moment")
    weight.zero_()
    future.result()
    shards.load({"weight": weight}, folder / "moment")
    assert weight.all()


if __name__ == "__main__":
    with environment("cpu", timeout_minutes=1) as environ:
        place = Path(sys.argv[1])
        the_main_process_looks(place, environ.rank)
        every_group_has_the_timeout(environ)
        the_state_of_its_moment_is_saved(place)
        a_part_that_cannot_be_written(place, environ.rank)
        a_save_that_one_process_leaves(place, environ.rank)
    print("agreed", flush=True)
    os._exit(0)  # see `end_worker`
