"""torchrun's process group, and helpers that do nothing when there is only one process."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # torch hides them from mypy
    PrefixStore,
    Store,
    rendezvous,
)

from weighted_mtp.core.errors import UserError, one_line

GLOO_PAUSE = 0.2
"""Seconds; see `stop`."""

FILE_LAG = 60.0
"""Seconds after which a network file system shows every node what one of them wrote."""

_timeout = timedelta(minutes=10)
"""Of the process group that `start` formed."""
_backend = "gloo"
"""Of the same."""
_abandoned = False
"""Whether `stop` left it standing."""


def start(device: torch.device, timeout_minutes: float = 10.0) -> bool:
    """Join the process group described by torchrun's environment; nothing without torchrun. True if
    it was formed here.

    Args:
        timeout_minutes: how long an exchange may take before it fails, in this group and in those
            that are made from it.

    Raises:
        UserError: the environment is incomplete or the other ranks cannot be reached.
    """
    global _timeout, _backend
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return False
    # gloo beside nccl: offloaded weights and checkpoints are on the CPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    _timeout, _backend = timedelta(minutes=timeout_minutes), backend
    try:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=_timeout)))
        fresh = fresh_store(store, rank, world_size, _timeout)
        dist.init_process_group(
            backend, store=fresh, rank=rank, world_size=world_size, timeout=_timeout
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"rank {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']} could not join the "
            f"{backend} process group ({error}); start with torchrun"
        ) from error
    return True


def fresh_store(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of the store in which no process has written before.

    torchrun's outlives its processes, and those that it starts in their place (`--max-restarts`)
    would read the addresses of the dead (pytorch/pytorch#135712; its count of restarts differs from
    node to node). So the first process names the attempt, and tells the name to each that calls
    under a name of its own; a call that was left by a dead process is answered in vain.
    """
    mine, deadline = uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank > 0:
        store.set(f"call {rank}", mine)
        attempt = store.get(f"answer {mine}").decode()
        store.set(f"heard {attempt} {rank}", "")
        return PrefixStore(attempt, store)
    for other in range(1, world_size):
        while not store.check([f"heard {mine} {other}"]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"rank {other} did not come within {timeout}")
            call = store.get(f"call {other}").decode()
            store.set(f"answer {call}", mine)
            time.sleep(0.002)
    return PrefixStore(mine, store)


def another_group() -> dist.ProcessGroup | None:
    """All processes again, for what one thread exchanges while another one does, on the CPU; every
    process calls this. None if there is but one."""
    if not dist.is_initialized():
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_timeout)
    return group


def have_patience(groups: Iterable[dist.ProcessGroup]) -> None:
    """Give groups that were made without it the timeout of the one that `start` formed."""
    for group in groups:
        dist.distributed_c10d._set_pg_timeout(_timeout, group)


def stop(failed: bool = False) -> None:
    """Leave the process group.

    NCCL's end waits for all processes, so that one that failed alone would wait for others that
    wait for it, and say nothing: it leaves the group standing, see `end_if_abandoned`.

    gloo's thread frees the tensors of the last exchange; for that it needs Python's lock. Who frees
    the group waits for that thread, and DDP's reducer does so with the lock held: one of about 75
    ends hung here (torch 2.13; pytorch/pytorch#56297), none of 320 with a pause, in which the
    thread comes to its end.
    """
    global _abandoned
    if not dist.is_initialized():
        return
    if failed and "nccl" in _backend:
        _abandoned = True
        return
    time.sleep(GLOO_PAUSE)
    dist.destroy_process_group()


def end_if_abandoned(error: BaseException) -> None:
    """Where `stop` left the process group standing, say what went wrong and end this process at
    once: the end of the interpreter would wait for the other processes too."""
    if not _abandoned:
        return
    if isinstance(error, UserError):
        sys.stderr.write(f"error: {error}\n")
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if isinstance(error, UserError) else 1)


@contextmanager
def speaking_up(step: Callable[[], int]) -> Iterator[None]:
    """Say which process is where, shortly before an exchange by NCCL may time out inside: there
    PyTorch's watchdog ends the process, and no exception comes."""
    if "nccl" not in _backend or not dist.is_initialized():
        yield
        return
    seconds = 0.9 * _timeout.total_seconds()

    def speak() -> None:
        sys.stderr.write(
            f"rank {rank()} of {world_size()}, step {step()}: has taken {seconds:.0f} s; if NCCL's "
            "watchdog ends this process now, another one ended, hangs or is slow: its own output "
            "says why; continue with --resume\n"
        )
        sys.stderr.flush()

    timer = threading.Timer(seconds, speak)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def rank() -> int:
    """Number of this process, 0 without torchrun; known before the group forms and after it."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """True on the rank that writes files and speaks."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, on all ranks (in place)."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on all ranks if `flag` is true on any: ranks must agree before they leave a loop."""
    if not dist.is_initialized():
        return flag
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device)).item())


def from_main(number: int) -> int:
    """What the main process gives, on all ranks: where files are looked for, one may not see yet
    what another one sees."""
    told = torch.tensor(number)
    if dist.is_initialized():
        dist.broadcast(told, src=0)
    return int(told)


def check_shared(path: Path) -> None:
    """Does this process see a file that the main one sees? Network file systems may take a while.

    Raises:
        UserError: it does not.
    """
    deadline = time.monotonic() + FILE_LAG
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{path}: rank {rank()} of {world_size()} does not find it, the main process does; "
                "--output-dir must be on a file system that all nodes share"
            )
        time.sleep(0.1)


def is_lost(error: BaseException) -> bool:
    """Whether an exchange failed because another process ended, or did not answer in time."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


@contextmanager
def report_lost_rank(step: Callable[[], int] | None = None) -> Iterator[None]:
    """Report which process lost the others, and in which step, where an exchange fails inside.

    Args:
        step: None before the first one and after the last.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        when = f"step {step()}" if step is not None else "before or after the training steps"
        processes = os.environ.get("WORLD_SIZE", "1")  # the group may be gone
        raise UserError(
            f"rank {rank()} of {processes}, {when}: another process ended, or did not answer "
            f"within runtime.timeout_minutes ({one_line(error, 200)}); its own "
            "output says why; the last complete checkpoint is untouched: continue with --resume"
        ) from error


def launch() -> str | None:
    """A name that the processes of one node share with those that torchrun starts in their place
    after a failure (`--max-restarts`), and with no others; None without torchrun.

    Its id may be the same each time ("none"), and in a container so is torchrun's process number;
    on Linux its start and the machine's tell one from another.
    """
    run, parent = os.environ.get("TORCHELASTIC_RUN_ID"), os.getppid()
    if run is None:
        return None
    try:
        status = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8")
        started = status.rpartition(")")[2].split()[19]  # proc(5): field 22, starttime
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (OSError, IndexError):
        started = boot = ""
    return f"{run} {parent} {started} {boot}"


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()
