"""One object that says where this process runs (rank, world, device), and the settings it runs
under: seeds, threads, number formats, determinism."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from weighted_mtp.core.config.runtime import RuntimeConfig
from weighted_mtp.core.device import resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.peak_memory import reset_peak_memory

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


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
    tf32: bool = True,
    deterministic: bool = False,
    alone: bool = False,
) -> Iterator[Environment]:
    """Set up seeds, threads, numerics and (under torchrun) the process group; take the group and
    the numerics down again.

    Every rank starts from the same seed, and needs no other: once the weights are made, training
    draws no random numbers but LoRA's dropout; the order of the rows is a function of seed and
    position (`data/sampling`), the random weights of the controls one of seed, step, row and
    position (`counter_uniform`). What must differ between ranks, their share of the rows, is
    decided by rank. Checkpoints keep each rank's generator state all the same.

    Args:
        tf32, deterministic: see `RuntimeConfig`.
        alone: form a process group without torchrun too, of one process.

    Raises:
        UserError: the device is not there, or the process group cannot be formed.
    """
    chosen = device_of_this_process(resolve_device(device))
    if chosen.type == "cpu":
        # PyTorch's bfloat16 products on the CPU keep one compiled kernel for each shape met: with
        # batches of all lengths that grew by 11 MB a step. Only the most recent ones are worth it.
        for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
            os.environ.setdefault(name, "128")
    if threads is not None:
        torch.set_num_threads(threads)
    with numerics(tf32 if chosen.type == "cuda" else None, deterministic):
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        reset_peak_memory(chosen)
        seed_everything(seed)
        ours = distributed.start(chosen, timeout_minutes, alone)
        try:
            yield Environment(chosen, distributed.rank(), distributed.world_size())
        except BaseException:
            if ours:
                distributed.stop(failed=True)
            raise
        # Ranks leave together: gloo's threads must not free their last tensors in a dying
        # interpreter.
        distributed.barrier()
        if ours:
            distributed.stop()


def device_of_this_process(chosen: torch.device) -> torch.device:
    """`cuda` is the card of this process's number on its node.

    Raises:
        UserError: there is none, or several processes would share one.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if chosen.type == "mps" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("MPS serves one process; start without torchrun, or runtime.device=cpu")
    if chosen.type != "cuda":
        return chosen
    index = local if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise UserError(
            f"runtime.device {chosen}: this process would need cuda:{index}, but PyTorch sees "
            f"{torch.cuda.device_count()} cards here; start as many processes (--nproc_per_node)"
        )
    if processes > 1 and index != local:
        raise UserError(
            f"runtime.device {chosen} is one card for {processes} processes; leave it at auto"
        )
    return torch.device("cuda", index)


def environment_of(config: RuntimeConfig) -> AbstractContextManager[Environment]:
    """The environment that a recipe asks for."""
    return environment(
        config.device,
        config.seed,
        config.threads,
        config.timeout_minutes,
        config.tf32,
        config.deterministic,
        config.offloads,
    )


@contextmanager
def numerics(tf32: bool | None, deterministic: bool) -> Iterator[None]:
    """How products are computed, put back as it was at the end.

    cuBLAS reads its variable when it is first used: a process that has multiplied on CUDA before
    has to set `CUBLAS_WORKSPACE_CONFIG=:4096:8` itself, or PyTorch refuses its products.

    Args:
        tf32: of matrix products and of cuDNN, on CUDA; None leaves them as they are.
        deterministic: only kernels that give the same bits each time.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    formats = None if tf32 is None else (matmul.allow_tf32, cudnn.allow_tf32)
    strict = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(CUBLAS)
    searching, repeatable = cudnn.benchmark, cudnn.deterministic
    if tf32 is not None:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    if deterministic:
        os.environ.setdefault(CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        if formats is not None:
            matmul.allow_tf32, cudnn.allow_tf32 = formats
        if deterministic:
            torch.use_deterministic_algorithms(strict, warn_only=lenient)
            cudnn.benchmark, cudnn.deterministic = searching, repeatable
            if workspace is None:
                os.environ.pop(CUBLAS, None)


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
