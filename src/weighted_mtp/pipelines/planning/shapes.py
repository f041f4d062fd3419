"""Models that can be planned for by name, without a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import is_hub_id
from weighted_mtp.data.tokens.tokenizers import make_tokenizer
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.pipelines.resolve import model_args

_LLAMA_3: dict[str, Any] = {
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "n_future_tokens": 4,
    "max_seq_len": 8192,
    "rope_theta": 500000.0,
}

MODELS = {
    "7b": ModelArgs(vocab_size=32000, n_future_tokens=4),
    "8b": ModelArgs(**_LLAMA_3, ffn_hidden_dim=14336),
    "13b": ModelArgs(dim=5120, n_layers=40, n_heads=40, vocab_size=32000, n_future_tokens=4),
    "70b": ModelArgs(**_LLAMA_3, dim=8192, n_layers=80, n_heads=64, ffn_hidden_dim=28672),
}
"""Meta's released shape, the next one up, and Llama 3.1's with four heads. `micro` is the
preset's."""


def model_names() -> list[str]:
    """Models that can be planned for by name."""
    return ["micro", *MODELS]


def shape_of(name: str) -> ModelArgs | None:
    """Shape of a model by name; None for a checkpoint."""
    if name == "micro":
        preset = load_recipe("baseline", "micro")
        return model_args(preset, make_tokenizer("micro").vocab_size)
    return MODELS.get(name)


def args_of(name: str, flag: str) -> ModelArgs:
    """Shape of a model by name, or of a checkpoint."""
    shape = shape_of(name)
    if shape is not None:
        return shape
    check_there(name, flag)
    return inspect_checkpoint(name).args


def check_there(name: str, flag: str) -> None:
    if not Path(name).exists() and not is_hub_id(name):
        raise UserError(
            f"{flag} {name!r}: no model of that name ({', '.join(model_names())}) and no directory"
        )
