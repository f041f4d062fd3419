"""The optimizer of a checkpoint, whatever number of processes wrote it in whatever mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import is_sharded
from weighted_mtp.pipelines.checkpoint_utils import (
    damaged,
    load_saved,
    reading,
    restore_optimizer,
    restore_rng,
    saved_state,
)
from weighted_mtp.pipelines.checkpointing.sharded import load_shards, optimizer_names, stored_shapes
from weighted_mtp.pipelines.training.optimization import Optimizer
from weighted_mtp.runtime.parts import copy_whole, is_part


def restore_any(
    checkpoint: Path, optimizer: Optimizer, weights: Mapping[str, nn.Parameter]
) -> dict[str, Any]:
    """Load optimizer and generator states of a checkpoint that was written in whatever mode; return
    the rest, `step` among it. Every process calls this.

    Args:
        weights: as the optimizer has them, by their names in the adapter.

    Raises:
        UserError: a file is missing or damaged.
    """
    if is_sharded(checkpoint):
        path = checkpoint / "shards"
        state = optimizer.state_dict()
        if "state" not in state:
            raise UserError(f"{path}: made with training.optimizer adamw; it cannot be changed")
        state["state"] = _from_shards(path, optimizer, weights)
    else:
        path = checkpoint / "optimizer.pt"
        spread = any(is_part(weight) for weight in weights.values())
        on_cpu = all(weight.device.type == "cpu" for weight in weights.values())
        state = load_saved(path, mmap=spread or not on_cpu)
        if not isinstance(state, dict):
            raise damaged(path, TypeError(f"it holds a {type(state).__name__}"))
        if spread and "state" not in state:
            raise UserError(f"{path}: made with training.optimizer muon; it cannot be changed")
        if spread:
            names = optimizer_names(optimizer, weights)
            with reading(path):
                state["state"] = _spread(state["state"], names, weights)
    restore_optimizer(path, optimizer, state)
    restore_rng(checkpoint)
    return saved_state(checkpoint)


def _from_shards(
    folder: Path, optimizer: Optimizer, weights: Mapping[str, nn.Parameter]
) -> dict[int, dict[str, Tensor]]:
    """The optimizer's states by number, each like its weight (or one number)."""
    shapes = stored_shapes(folder)
    states: dict[int, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for index, name in enumerate(optimizer_names(optimizer, weights)):
        weight, prefix = weights[name].detach(), f"optimizer.{name}."
        for stored in (stored for stored in shapes if stored.startswith(prefix)):
            alike = shapes[stored] == weight.shape
            kept = torch.zeros_like(weight) if alike else torch.zeros(shapes[stored])
            states.setdefault(index, {})[stored.removeprefix(prefix)] = tensors[stored] = kept
    load_shards(tensors, folder)
    return states


def _spread(
    states: Mapping[int, Mapping[str, Tensor]],
    names: Sequence[str],
    weights: Mapping[str, nn.Parameter],
) -> dict[int, dict[str, Tensor]]:
    """Whole states, cut as their weights are; a number that no weight has is left as it is."""
    spread: dict[int, dict[str, Tensor]] = {}
    for index, kept in states.items():
        if index >= len(names):
            spread[index] = dict(kept)
            continue
        weight = weights[names[index]].detach()
        spread[index] = dict(kept)
        for key, value in kept.items():
            if value.shape == weight.shape:
                spread[index][key] = torch.empty_like(weight)
                copy_whole(value, spread[index][key])
    return spread
