"""torchrun's process group, and helpers that do nothing when there is only one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from weighted_mtp.core.errors import UserError


def start(device: torch.device, timeout_minutes: float = 10.0) -> bool:
    """Join the process group described by torchrun's environment; nothing without torchrun. True if
    it was formed here. Forming a second one in the same process may hang: torchrun's store keeps
    the addresses of the first.

    Args:
        timeout_minutes: how long an exchange may take before it fails.

    Raises:
        UserError: the environment is incomplete or the other ranks cannot be reached.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return False
    # gloo beside nccl: offloaded weights and checkpoints are on the CPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"rank {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']} could not join the "
            f"{backend} process group ({error}); start with torchrun"
        ) from error
    return True


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


def is_lost(error: BaseException) -> bool:
    """Whether an exchange failed because another process ended, or did not answer in time."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


@contextmanager
def naming_the_step(step: Callable[[], int]) -> Iterator[None]:
    """Say which process lost the others, and in which step, where an exchange fails inside.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise UserError(
            f"rank {rank()} of {world_size()}, step {step()}: another process ended, or did not "
            f"answer within runtime.timeout_minutes ({' '.join(str(error).split())[:200]}); its "
            "own output says why; the last complete checkpoint is untouched: go on with --resume"
        ) from error


def launch() -> str | None:
    """A name that the processes of one node share with those that torchrun starts in their place
    after a failure (`--max-restarts`), and with no others; None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} {os.getppid()}"


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()
