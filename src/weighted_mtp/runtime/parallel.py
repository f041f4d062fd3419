"""One object between the trainer and however its module is spread over processes.

The trainer calls `module`, then `backward` inside `micro_batch`, `clip`, and its optimizer; it does
not know which of the modes it is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from weighted_mtp.runtime import distributed

NORM_PIECE = 2**16
"""Numbers of a gradient whose squares are added in float32."""

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
        gradients = self._own_gradients()
        if not gradients:
            return 0.0
        norm = math.sqrt(self._sum_over_parts(_sum_of_squares(gradients)))
        if not norm <= largest:  # also where it is NaN
            factor = largest / (norm + 1e-6)
            for gradient in gradients:
                gradient.mul_(factor)
        return norm

    def _own_gradients(self) -> list[Tensor]:
        """What this process holds of the gradient."""
        return [weight.grad for weight in self.trained if weight.grad is not None]

    def _sum_over_parts(self, x: Tensor) -> float:
        """Sum over the processes that hold different parts of the gradient."""
        return float(x)


def _sum_of_squares(gradients: Sequence[Tensor]) -> Tensor:
    """Σ g², a float64 scalar.

    PyTorch's norm of a float32 tensor adds up on the CPU with few accumulators: 0.3 % too little
    for 40 million numbers. Pieces keep seven digits and take no longer.
    """
    pieces: list[Tensor] = []
    for gradient in gradients:
        pieces += torch.split(gradient.flatten(), NORM_PIECE) if gradient.is_cpu else [gradient]
    return torch.stack([norm.double() for norm in torch._foreach_norm(pieces)]).square().sum()
