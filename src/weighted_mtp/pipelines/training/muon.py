"""Muon: momentum whose update of each matrix is made orthogonal (Jordan et al. 2024).

PyTorch has it since 2.9, but multiplies in bfloat16 whatever the device: a CPU without AVX-512 then
takes 50 to 100 times as long, and longer than for the rest of the step. Here a CPU takes float32,
and matrices of one shape are multiplied together.

Letters: M matrices of one shape, A rows, B columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, by Jordan et al.: steep at 0, and kept near 1."""
_ITERATIONS = 5
_TOGETHER = 1 << 22  # numbers that are multiplied together, so that copies stay small


class Muon(torch.optim.Optimizer):
    """Muon for matrices, with Nesterov momentum and decoupled weight decay, its updates scaled to
    the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4). A state that `torch.optim.Muon`
    has saved is taken up.

    Args:
        params: matrices `[A, B]`.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices, not shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # PyTorch overloads it by whether there is a closure
        """Update every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in _of_one_shape(group["params"]):
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        momentum, rate, (A, B) = group["momentum"], float(group["lr"]), parameters[0].shape
        ahead = torch.stack([self._ahead(parameter, momentum) for parameter in parameters])
        size = 0.2 * max(A, B) ** 0.5  # AdamW's updates have a root mean square of about 0.2
        for parameter, update in zip(parameters, orthogonal(ahead), strict=True):
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.add_(update, alpha=-rate * size)

    def _ahead(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient with Nesterov momentum."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


class Scratch(NamedTuple):
    """Numbers that a step holds beside weights, gradients and momentum, at most.

    Attributes:
        together: of the matrices that are multiplied together, which are there three times: as they
            were, and as they are before and after an iteration.
        gram: of their Gram matrices, which are there twice.
    """

    together: int
    gram: int


def scratch_of(shapes: Iterable[tuple[int, int]]) -> Scratch:
    """What Muon takes for matrices of these shapes."""
    counts = Counter(shapes)
    found = [Scratch(0, 0)]
    for (A, B), count in counts.items():
        M = min(count, _together(A * B))
        found.append(Scratch(M * A * B, M * min(A, B) ** 2))
    return max(found, key=lambda each: 3 * each.together + 2 * each.gram)


def orthogonal(x: Tensor) -> Tensor:
    """For matrices `[M, A, B]`, the nearest ones with singular values of about 1 (0.7 to 1.2).

    On a CPU in float32 at least, elsewhere in bfloat16, as the iteration was designed for.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    x = wide if x.device.type == "cpu" else x.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT  # [M, A, A]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _of_one_shape(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Those with a gradient, as many at a time as may be multiplied together."""
    shapes: dict[tuple[torch.Size, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            shapes.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
    for (shape, _), found in shapes.items():
        count = _together(shape.numel())
        yield from (found[at : at + count] for at in range(0, len(found), count))


def _together(size: int) -> int:
    """M, for matrices of so many numbers."""
    return max(1, _TOGETHER // size)
