"""DistributedDataParallel around the one module whose forward returns the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from weighted_mtp.runtime import distributed


def wrap_ddp(module: nn.Module, device: torch.device) -> nn.Module:
    """Replicate `module` over the ranks; the module itself when there is one process.

    DDP averages gradients over ranks. The loss contract wants their sum (its denominators are
    already global), so the caller multiplies the loss by the world size.
    """
    if distributed.world_size() == 1:
        return module
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


def unwrap(module: nn.Module) -> nn.Module:
    """The module that was wrapped."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Exchange gradients in this backward pass, or only add them up locally: of the micro-batches
    of one step, the last alone needs the exchange."""
    if enabled or not isinstance(module, DistributedDataParallel):
        yield
        return
    with module.no_sync():
        yield
