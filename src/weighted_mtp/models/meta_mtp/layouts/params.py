"""`params.json`: Meta's configuration file, which the native layout shares and extends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.json_file import LARGEST, JsonFile
from weighted_mtp.models.meta_mtp.rotary import RopeScaling

log = get_logger(__name__)

_REQUIRED = ("dim", "n_layers", "n_heads")
_COUNTS = (
    "n_kv_heads",
    "multiple_of",
    "n_future_tokens",
    "max_batch_size",
    "max_seq_len",
    "ffn_hidden_dim",
)
_NUMBERS = ("ffn_dim_multiplier", "norm_eps", "rope_theta")
_SCALING = ("use_scaled_rope", "rope_scaling_factor", "rope_high_freq_factor")
_OTHER_MODELS = (  # these change the arithmetic
    "moe",
    "moe_args",
    "sliding_window",
    "lora_args",
    "quantization_args",
    "vision_chunk_size",
    "use_qk_norm",
)


def read_params(params: JsonFile, embedding_rows: int) -> ModelArgs:
    """The model that a `params.json` describes.

    Args:
        embedding_rows: the vocabulary, where the file leaves it open (-1, as Llama 2's does).

    Raises:
        UserError: a field is missing, of the wrong type or size, or asks for another architecture.
    """
    for key in _OTHER_MODELS:
        if params.fields.get(key):
            raise params.error(key, "asks for an architecture that is not Llama's; not supported")
    values: dict[str, Any] = {key: params.count(key) for key in _REQUIRED}
    values["vocab_size"] = _vocabulary(params, embedding_rows)
    for key in _COUNTS:
        if params.fields.get(key) is not None:
            values[key] = params.count(key)
    for key in _NUMBERS:
        if params.fields.get(key) is not None:
            values[key] = params.positive(key)
    if params.fields.get("hidden_dim") is not None:  # Mistral's name for it
        values["ffn_hidden_dim"] = params.count("hidden_dim")
    values["tie_embeddings"] = params.get("tie_embeddings", bool, False)
    values["rope_scaling"] = _rope_scaling(params)
    _log_unused(params)
    args = build_args(values, params)
    _check_head_dim(params, args)
    return args


def build_args(values: dict[str, Any], config: JsonFile) -> ModelArgs:
    """`ModelArgs` of these values; what it refuses becomes a `UserError` naming the file."""
    try:
        args = ModelArgs(**values)
        if args.ffn_dim >= LARGEST:
            raise ValueError("the feed-forward width is too large; see ffn_dim_multiplier")
        return args
    except (ValueError, OverflowError) as error:
        raise UserError(f"{config.path}: {error}; correct it") from error


def write_params(args: ModelArgs) -> dict[str, Any]:
    """The fields of a native `params.json`: all of `args`, in its order."""
    return asdict(args)


def _vocabulary(params: JsonFile, embedding_rows: int) -> int:
    left_open = params.get("vocab_size", int, -1) == -1
    return embedding_rows if left_open else params.count("vocab_size")


def _check_head_dim(params: JsonFile, args: ModelArgs) -> None:
    head_dim = params.optional("head_dim", int)
    if head_dim not in (None, args.head_dim):
        raise params.error(
            "head_dim", f"{head_dim} is not dim / n_heads ({args.head_dim}); not supported"
        )


def _rope_scaling(params: JsonFile) -> RopeScaling | None:
    own = params.nested("rope_scaling")
    if own is not None:
        return RopeScaling(
            factor=own.positive("factor"),
            low_freq_factor=own.positive("low_freq_factor"),
            high_freq_factor=own.positive("high_freq_factor"),
            original_max_seq_len=own.count("original_max_seq_len"),
        )
    if not params.get("use_scaled_rope", bool, False):
        return None
    usual = RopeScaling()
    return RopeScaling(
        factor=params.positive("rope_scaling_factor", usual.factor),
        high_freq_factor=params.positive("rope_high_freq_factor", usual.high_freq_factor),
    )


def _log_unused(params: JsonFile) -> None:
    known: Sequence[str] = [field.name for field in fields(ModelArgs)]
    known = [*known, *_SCALING, *_OTHER_MODELS, "hidden_dim", "head_dim"]
    unused = [key for key in params.fields if key not in known]
    if unused:
        log.debug("%s: not used: %s", params.path, ", ".join(unused))
