"""DistributedDataParallel around the one module whose forward returns the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from weighted_mtp.runtime.parallel import Fill, Parallel


class Replicated(Parallel):
    """The whole module on every process. Arguments as for `Parallel`."""

    def __init__(self, module: nn.Module, device: torch.device, fill: Fill | None = None) -> None:
        super().__init__(module, device, fill)
        ids = [device] if device.type == "cuda" else None
        self._ddp = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
        self.module = self._ddp

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        if last:
            yield
            return
        with self._ddp.no_sync():
            yield
