"""One object that says where this process runs: rank, world, device, seed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from weighted_mtp.core.device import resolve_device
from weighted_mtp.runtime import distributed


@dataclass(frozen=True)
class Environment:
    """Where this process runs.

    Attributes:
        device: of this rank.
        rank, world_size: 0 and 1 without torchrun.
    """

    device: torch.device
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and speaks."""
        return self.rank == 0


@contextmanager
def environment(
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    timeout_minutes: float = 10.0,
) -> Iterator[Environment]:
    """Set up seeds, threads and (under torchrun) the process group; take the group down again.

    Every rank starts from the same seed: what must differ between ranks (which rows they read) is
    decided by rank explicitly, and what must not (fresh weights) cannot.

    Raises:
        UserError: the device is not there, or the process group cannot be formed.
    """
    chosen = resolve_device(device)
    if chosen.type == "cpu":
        # PyTorch's bfloat16 products on the CPU keep one compiled kernel for each shape met: with
        # batches of all lengths that grew by 11 MB a step. Only the most recent ones are worth it.
        for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
            os.environ.setdefault(name, "128")
    if threads is not None:
        torch.set_num_threads(threads)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cuda.matmul.allow_tf32 = True
    seed_everything(seed)
    ours = distributed.start(chosen, timeout_minutes)
    try:
        yield Environment(chosen, distributed.rank(), distributed.world_size())
    except BaseException:
        if ours:
            distributed.stop()
        raise
    # Ranks leave together: gloo's threads must not free their last tensors in a dying interpreter.
    distributed.barrier()
    if ours:
        distributed.stop()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, torch.Tensor]:
    """PyTorch's generator states of this process, for a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Continue from `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
