"""One object between the trainer and however its module is spread over processes.

The trainer calls `module`, then `backward` inside `micro_batch`, `clip`, and its optimizer; it does
not know which of the modes it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from weighted_mtp.runtime import distributed

Fill = Callable[[], None]
"""Gives a module that has memory its weights; each process keeps its part of them."""


class Parallel:
    """A module on one process.

    Args:
        module: on the meta device if there is a `fill`, else with its weights.
        device: where the weights are to be.

    Attributes:
        module: what to call.
        weights: the parameters that are trained and saved, or this process's part of each (then a
            `DTensor`), by their names in the module that was wrapped. Tied ones are there once.
    """

    sharded: ClassVar[bool] = False

    def __init__(self, module: nn.Module, device: torch.device, fill: Fill | None = None) -> None:
        if fill is not None:
            module.to_empty(device=device)
            fill()
        self.module = module
        self.weights: dict[str, nn.Parameter] = dict(module.named_parameters())

    @property
    def trained(self) -> list[nn.Parameter]:
        """Those that have a gradient."""
        return [weight for weight in self.weights.values() if weight.requires_grad]

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch; gradients are exchanged in the `last` of a step,
        and only added up before."""
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss whose denominators count all processes. Every engine averages
        gradients over processes, where the loss contract wants their sum."""
        (loss * distributed.world_size()).backward()  # type: ignore[no-untyped-call]  # torch

    def clip(self, largest: float) -> float:
        """Scale the gradient so that its norm over all weights, on all processes, is at most
        `largest`; returns the norm it had."""
        return float(torch.nn.utils.clip_grad_norm_(self.trained, largest))
