"""What to say when memory runs out: an allocator's message names no remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.runtime import distributed

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
"""What PyTorch's allocators say on CUDA and MPS, on Linux and macOS, on Windows."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator could not give what was asked for."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def naming_remedies(step: Callable[[], int], device: torch.device) -> Iterator[None]:
    """Say in which step memory ran out, and which settings take less of it.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"rank {distributed.rank()}, step {step()}: out of memory on {device} "
            f"({one_line(error, 120)}); what takes less: "
            "training.activation_checkpointing=selective or full, a smaller "
            "training.micro_batch_size, shorter rows (data.max_length), runtime.parallel=fsdp; "
            "weighted-mtp plan tells what fits; "
            "checkpoints are untouched: continue with --resume --set KEY=VALUE"
        ) from error
