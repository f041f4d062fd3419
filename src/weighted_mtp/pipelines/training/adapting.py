"""Which weights a run trains, and in what format it keeps the others.

Frozen weights have no gradient and no optimizer state. Where nothing of the trunk learns, autograd
builds no graph through it: its forward pass keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.config.sections import LoRAConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.lora import (
    LoRA,
    add_adapters,
    find_targets,
    plain_name,
)
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.objectives import Objective


def freeze(adapter: MetaLlamaMTPAdapter, recipe: Recipe, objective: Objective) -> None:
    """Freeze what `training.adapt` leaves out, after the objective has frozen its own, and add the
    adapters of `lora`.

    Raises:
        UserError: nothing would be left to train.
    """
    adapt = recipe.training.adapt
    if adapt == "heads":
        _freeze_trunk(adapter, objective)
    elif adapt == "lora":
        _adapt(adapter.transformer, recipe.training.lora, objective)


def _freeze_trunk(adapter: MetaLlamaMTPAdapter, objective: Objective) -> None:
    if not objective.runs_heads:
        raise UserError(
            "training.adapt heads trains prediction heads, which this critic does not run; set "
            "training.adapt=full (objective.value.trunk says what a critic trains)"
        )
    heads = list(adapter.transformer.extra_heads)[: objective.heads - 1]
    if not heads:
        raise UserError(
            "training.adapt heads trains heads 2 to n, and n is 1; add heads: "
            "--set model.add_heads=3"
        )
    learns = {id(p) for head in heads for p in head.parameters() if p.requires_grad}
    for parameter in adapter.transformer.parameters():
        parameter.requires_grad_(id(parameter) in learns)


def _adapt(transformer: Transformer, config: LoRAConfig, objective: Objective) -> None:
    """Put adapters on the matrices that the objective trains, and train beside them what the recipe
    names: whole heads, norms, embeddings."""
    learns = {name for name, p in transformer.named_parameters() if p.requires_grad}
    candidates = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name != "output" and f"{name}.weight" in learns
    ]
    if config.heads == "full":
        candidates = [name for name in candidates if not name.startswith("extra_heads.")]
    if not candidates:
        raise UserError(
            "training.adapt lora finds no matrix that the objective trains (objective.value.trunk "
            f"is {objective.config.value.trunk}); set objective.value.trunk=top, or "
            "training.adapt=full"
        )
    add_adapters(transformer, lora_of(config), find_targets(config.targets, candidates))
    for name, parameter in transformer.named_parameters():
        if plain_name(name) in learns:
            whole = config.heads == "full" and name.startswith("extra_heads.")
            norm = config.norms and name.endswith("norm.weight")
            root = config.embeddings and name.startswith(("tok_embeddings.", "output."))
            parameter.requires_grad_(whole or norm or root)


def lora_of(config: LoRAConfig) -> LoRA:
    """Size and scale of a recipe's adapters."""
    return LoRA(config.rank, config.alpha, config.dropout, config.rslora)


def halve_frozen(
    adapter: MetaLlamaMTPAdapter, recipe: Recipe, formats: Mapping[str, torch.dtype]
) -> None:
    """Keep frozen matrices in bfloat16 (`training.frozen_dtype`); on the meta device, before they
    get their values. Products are the same: autocast would round these weights every time.

    Args:
        formats: of the stored weights, by name; what is stored more finely, `auto` does not round.
    """
    transformer = adapter.transformer
    halved = 0
    for name, parameter in list(transformer.named_parameters()):
        stored = formats.get(plain_name(name), torch.float32)  # fresh weights have no other
        if parameter.requires_grad or not is_halved(recipe, parameter, stored):
            continue
        path, _, leaf = name.rpartition(".")
        half = nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False)
        setattr(transformer.get_submodule(path), leaf, half)
        halved += 1
    if halved:
        transformer.stream_dtype = torch.float32
        if transformer.args.tie_embeddings:
            transformer.output.weight = transformer.tok_embeddings.weight


def is_halved(recipe: Recipe, parameter: nn.Parameter, stored: torch.dtype | None) -> bool:
    """Whether a frozen weight is kept in bfloat16.

    Args:
        stored: its format in the checkpoint; None for one that is not known yet (a plan).
    """
    asked = recipe.training.frozen_dtype
    if recipe.runtime.compute_dtype == "float32" or parameter.ndim < 2 or asked == "float32":
        return False
    return asked == "bfloat16" or stored in (None, torch.bfloat16)
