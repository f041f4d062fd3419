"""What is done to a model's blocks before it is wrapped, by the plan the model exports."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module, plan: Sequence[str]) -> None:
    """Keep only the input of each unit; its inside is computed again in the backward pass. Names
    and state dict stay as they are."""
    for name in plan:
        block = model.get_submodule(name)
        recomputed = functools.partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = recomputed  # hooks still see one call


def compile_blocks(model: nn.Module, plan: Sequence[str]) -> None:
    """`torch.compile` each unit in place: alike ones share their code. Dynamic in length."""
    for name in plan:
        model.get_submodule(name).compile(dynamic=True)
