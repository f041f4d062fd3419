"""The most memory that any process of a training has taken so far."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from weighted_mtp.runtime import distributed

GIB = 2**30
LITTLE = 2 * GIB
"""Less than this in the host's memory is not worth a line."""


@dataclass(frozen=True)
class PeakMemory:
    """Of the process that took most.

    Attributes:
        rank: which one it is.
        allocated: bytes; on CUDA those of tensors on the device, elsewhere all that the process has
            had resident in the host's memory since it began (0 where the system does not tell).
        reserved: bytes that PyTorch's allocator took from CUDA for them; elsewhere 0.
        on_device: whether they are the device's.
    """

    rank: int
    allocated: int
    reserved: int
    on_device: bool

    @property
    def is_news(self) -> bool:
        """Whether to say it, or leave it to metrics.jsonl."""
        return self.on_device or self.allocated >= LITTLE

    def figures(self) -> dict[str, int]:
        """For metrics.jsonl."""
        figures = {"peak_bytes": self.allocated, "rank": self.rank}
        return {**figures, "reserved_bytes": self.reserved} if self.on_device else figures

    def __str__(self) -> str:
        if not self.on_device:
            return f"peak memory of the process {self.allocated / GIB:.1f} GiB (rank {self.rank})"
        return (
            f"peak memory on the device {self.allocated / GIB:.1f} GiB, "
            f"{self.reserved / GIB:.1f} GiB with what the allocator held (rank {self.rank})"
        )


def reset_peak_memory(device: torch.device) -> None:
    """Reset the counter, on CUDA; a process's own peak stays."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> PeakMemory:
    """The largest over all ranks, on all ranks; every process calls this."""
    cuda, mine = device.type == "cuda", [resident(), 0]
    if cuda:
        mine = [torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)]
    table = torch.zeros(distributed.world_size(), 2, dtype=torch.int64)  # [rank, figure]
    table[distributed.rank()] = torch.tensor(mine)
    rows = distributed.all_reduce_sum(table).tolist()
    rank = max(range(len(rows)), key=lambda number: rows[number])
    allocated, reserved = rows[rank]
    return PeakMemory(rank, allocated, reserved, cuda)


def resident() -> int:
    """The most bytes this process has had in the host's memory; 0 where that is not known."""
    try:
        import resource  # Windows has none
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
