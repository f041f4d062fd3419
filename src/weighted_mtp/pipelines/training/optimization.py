"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import nn

from weighted_mtp.core.config.sections import TrainingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.training.muon import Muon


class Optimizer(Protocol):
    """The interface the trainer needs; `torch.optim.Optimizer` implements it."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Optimizers:
    """Several optimizers with separate parameters, used as one."""

    def __init__(self, **parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups: list[dict[str, Any]] = [
            group for part in parts.values() for group in part.param_groups
        ]

    def step(self) -> None:
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [g for part in self.parts.values() for g in part.param_groups]


def make_optimizer(
    module: nn.Module, config: TrainingConfig, value_learning_rate: float | None = None
) -> Optimizer:
    """Build the optimizer of a recipe; norms, biases and embeddings are never decayed.

    `adamw` is AdamW (Loshchilov & Hutter 2019) for everything; `adamw_8bit` keeps its moving
    averages in 8 bits, in blocks of 256 (Dettmers et al. 2022, arXiv 2110.02861). `muon`
    orthogonalises the updates of the blocks' matrices (`Muon`), with AdamW for the rest; one
    learning rate serves both.

    Build it after wrapping or sharding the module: sharding replaces the parameters.

    Args:
        value_learning_rate: of the value head, which AdamW trains; None takes the others'. Both
            follow one schedule, so their ratio is constant.

    Raises:
        UserError: torchao, which `adamw_8bit` needs, is missing.
    """
    blocks: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    value: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if "value_head." in name:
            value.append(parameter)
        elif parameter.ndim < 2 or "tok_embeddings" in name:
            plain.append(parameter)
        elif ".layers." in name or ".extra_heads." in name:
            blocks.append(parameter)
        else:
            matrices.append(parameter)
    scale = (value_learning_rate or config.learning_rate) / config.learning_rate
    if config.optimizer != "muon":
        return _adamw(blocks + matrices, plain, value, scale, config)
    adamw = _adamw(matrices, plain, value, scale, config)
    if not blocks:
        return adamw
    muon = Muon(blocks, config.learning_rate, config.weight_decay)
    return Optimizers(muon=muon, adamw=adamw)


def _adamw(
    decayed: list[nn.Parameter],
    plain: list[nn.Parameter],
    value: list[nn.Parameter],
    value_scale: float,
    config: TrainingConfig,
) -> torch.optim.Optimizer:
    """Build AdamW; `lr_scale` of a group multiplies the schedule's rate."""
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if value:
        head = {"params": value, "weight_decay": 0.0, "lr_scale": value_scale}
        groups.append(head | {"lr": value_scale * config.learning_rate})
    if config.optimizer == "adamw_8bit":
        return _adamw_8bit(groups, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "training.optimizer adamw_8bit needs the package torchao: pip install torchao; or use "
            "adamw"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(
        groups, lr=config.learning_rate, betas=config.betas
    )
    return optimizer


def set_rates(optimizer: Optimizer, rate: float) -> None:
    """Give every group its learning rate. torchao keeps rates in tensors, of which its compiled
    step has the addresses."""
    for group in optimizer.param_groups:
        own = rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Compute the rate of step s = 0 … N − 1, from `learning_rate` (peak) to `final_learning_rate`.

    With W = round(warmup_fraction · N), step P = max(W, 1) − 1 has the peak rate, the last step
    exactly the final one (`constant` stays at the peak), also where both are the same step:

        s < P    peak · (s + 1) / (P + 1)
        s ≥ P    final + shape · (peak − final),  with p = (s − P) / (N − 1 − P), p = 1 at the
                 last step, and shape = (1 + cos πp) / 2 (cosine), 1 − p (linear), 1 (constant),
                 min(1, (1 − p) / decay_fraction) (wsd; Hu et al. 2024, arXiv 2404.06395)
    """
    last = config.steps - 1
    warmup = round(config.warmup_fraction * config.steps)
    peak_step = min(max(warmup, 1) - 1, last)
    if step < peak_step:
        return config.learning_rate * (step + 1) / (peak_step + 1)
    progress = (step - peak_step) / (last - peak_step) if step < last else 1.0
    shape = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "constant": 1.0,
        "wsd": min(1.0, (1.0 - progress) / config.decay_fraction),
    }[config.schedule]
    peak, final = config.learning_rate, config.final_learning_rate
    if shape < 0.5:  # interpolate from the nearer end, so that both ends are exact
        return final + shape * (peak - final)
    return peak - (1.0 - shape) * (peak - final)
