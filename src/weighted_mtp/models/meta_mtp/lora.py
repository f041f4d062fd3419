"""LoRA (Hu et al. 2021, arXiv 2106.09685) on a transformer, by peft's layers.

A matrix W that is adapted computes W x + s · B A x: W is frozen, A `[r, in]` and B `[out, r]` are
trained, and s is alpha / r, or alpha / √r (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).

peft puts its layer in the place of the `nn.Linear` and the linear inside it: `attention.wq.weight`
becomes `attention.wq.base_layer.weight`, beside `attention.wq.lora_A.default.weight`.
`plain_name` undoes both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.core.errors import UserError, did_you_mean
from weighted_mtp.models.meta_mtp.transformer import Transformer

ADAPTER = "default"
ALL_LINEAR = "all-linear"
_ALIASES = {
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
    "self_attn": "attention",
    "mlp": "feed_forward",
}
"""Hugging Face's names of what our blocks hold."""


@dataclass(frozen=True)
class LoRA:
    """Size and scale of adapters.

    Attributes:
        rank: r, columns of B.
        alpha: numerator of the scale.
        dropout: probability with which an input of A is dropped while training.
        rslora: divide alpha by √r instead of r.
    """

    rank: int
    alpha: int
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def adapted_modules(transformer: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's layers in a transformer, by the names that the linears had."""
    for name, module in transformer.named_modules():
        if hasattr(module, "lora_A"):
            yield name, module


def plain_name(name: str) -> str:
    """The name of a parameter without peft's layers: of a base weight its own name, of an adapter
    `….lora_A.weight` or `….lora_B.weight`."""
    return name.replace(".base_layer.", ".").replace(f".{ADAPTER}.", ".")


def find_targets(targets: Sequence[str], candidates: Sequence[str]) -> list[str]:
    """Which modules the targets name.

    Args:
        targets: `all-linear`, or names of modules or their last parts (`wq`, `attention.wq`,
            `layers.0.feed_forward.w1`), in Meta's words or Hugging Face's (`q_proj`).
        candidates: names of the modules that may be adapted.

    Raises:
        UserError: a target names none of them.
    """
    if ALL_LINEAR in targets:
        return list(candidates)
    chosen: set[str] = set()
    for target in targets:
        words = [_ALIASES.get(word, word) for word in target.removeprefix("model.").split(".")]
        ours = ".".join(words)
        found = [name for name in candidates if f".{name}".endswith(f".{ours}")]
        if not found:
            leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in candidates))
            known = [*leaves, *(k for k, v in _ALIASES.items() if v in leaves), ALL_LINEAR]
            raise UserError(
                f"training.lora.targets: {target!r} matches no trained matrix"
                f"{did_you_mean(target, known)}; there are {', '.join(leaves)} and {ALL_LINEAR}"
            )
        chosen |= set(found)
    return [name for name in candidates if name in chosen]


def add_adapters(transformer: Transformer, lora: LoRA, modules: Sequence[str]) -> None:
    """Put adapters on linear modules and freeze all else. Works on the meta device; adapters there
    get their values from `init_adapters`.

    Args:
        modules: whole names of the linears.

    Raises:
        UserError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError("LoRA needs the package peft: pip install 'weighted-mtp[lora]'") from error
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(modules),
        bias="none",
    )
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # its first values are not kept
        peft.inject_adapter_in_model(config, transformer, ADAPTER)
    for _, module in adapted_modules(transformer):
        module.forward = partial(_forward, module)
    init_adapters(transformer)


def _forward(module: Any, x: Tensor) -> Tensor:
    """W x + B (s · A x), as peft's own forward, which multiplies and adds tensors as wide as the
    output (here one product does both), and casts the input to the adapter's format (here autocast
    decides)."""
    result: Tensor = module.base_layer(x)
    a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    inner = F.linear(module.lora_dropout[ADAPTER](x), a) * module.scaling[ADAPTER]
    out = torch.addmm(result.flatten(0, -2), inner.flatten(0, -2), b.t())
    return out.view_as(result)


@torch.no_grad()
def init_adapters(transformer: nn.Module) -> None:
    """A from U(−1/√in, 1/√in), as peft; B zero, so that the model starts unchanged."""
    for _, module in adapted_modules(transformer):
        a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        bound = 1.0 / math.sqrt(a.shape[1])
        nn.init.uniform_(a, -bound, bound)
        nn.init.zeros_(b)


@torch.no_grad()
def merge_adapters(transformer: Transformer) -> None:
    """Add every adapter to its matrix, in the matrix's format, and put the linears back."""
    for name, module in list(adapted_modules(transformer)):
        linear = module.base_layer
        a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        linear.weight.copy_(merged(linear.weight, a, b, module.scaling[ADAPTER]))
        path, _, leaf = name.rpartition(".")
        setattr(transformer.get_submodule(path), leaf, linear)


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s · B A, computed in float32 or better."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale)


def trained_tensors(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """What was trained, by plain names."""
    return {plain_name(name): p.detach() for name, p in named if p.requires_grad}
