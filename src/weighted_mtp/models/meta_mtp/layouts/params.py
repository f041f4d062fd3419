"""`params.json`: Meta's configuration file, which the native layout shares and extends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.models.meta_mtp.args import Family, ModelArgs, RopeFrequencies, RopeScaling
from weighted_mtp.models.meta_mtp.layouts.json_file import LARGEST, JsonFile

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
    values["family"] = _family(params, values)
    _log_unused(params)
    return build_args(values, params)


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
    """The fields of a native `params.json`: all of `args`, in its order; of a family only what
    differs from Meta's architecture."""
    found = asdict(args)
    usual = asdict(Family())
    changed = {key: value for key, value in found.pop("family").items() if value != usual[key]}
    return {**found, "family": changed} if changed else found


def is_extended(args: ModelArgs) -> bool:
    """Whether versions that knew Meta's architecture only would misread the model."""
    return args.family != Family() or isinstance(args.rope_scaling, RopeFrequencies)


def _vocabulary(params: JsonFile, embedding_rows: int) -> int:
    left_open = params.get("vocab_size", int, -1) == -1
    return embedding_rows if left_open else params.count("vocab_size")


def _family(params: JsonFile, values: dict[str, Any]) -> Family:
    own = params.nested("family")
    if own is None:  # Mistral's params.json names the width of a head
        if params.optional("head_dim", int) is None:
            return Family()
        head_dim = params.count("head_dim")
        usual = head_dim * values["n_heads"] == values["dim"]
        return Family() if usual else Family(head_dim=head_dim)
    known = {item.name for item in fields(Family)}
    for key in own.fields:
        if key not in known:
            raise own.error(key, "is not known; update weighted-mtp")
    usual_family = Family()
    found: dict[str, Any] = {"name": own.get("name", str, usual_family.name)}
    for key in ("qkv_bias", "output_bias", "mlp_bias", "qk_norm"):
        found[key] = own.get(key, bool, False)
    for key in ("head_dim", "sliding_window", "rotary_dim"):
        found[key] = None if own.optional(key, int) is None else own.count(key)
    for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
        found[key] = own.positive(key, 1.0)
    if own.optional("attention_multiplier", float) is not None:
        found["attention_multiplier"] = own.positive("attention_multiplier")
    found["no_rope_layers"] = tuple(layer_numbers(own, "no_rope_layers"))
    return Family(**found)


def layer_numbers(config: JsonFile, key: str) -> list[int]:
    """The list of whole numbers in a field, empty where it is absent or null."""
    numbers = config.optional(key, list) or []
    if not all(type(number) is int and 0 <= number < LARGEST for number in numbers):
        raise config.error(key, "must be a list of whole numbers of 0 or more")
    return numbers


def _frequencies(own: JsonFile) -> RopeFrequencies:
    inverse = own.get("inverse", list)
    if not all(type(x) in (int, float) and math.isfinite(x) for x in inverse):
        raise own.error("inverse", "must be a list of numbers")
    length = None if own.optional("valid_length", int) is None else own.count("valid_length")
    described = own.optional("described", dict) or {}
    return RopeFrequencies(
        tuple(map(float, inverse)), own.positive("amplitude", 1.0), length, described
    )


def _rope_scaling(params: JsonFile) -> RopeScaling | RopeFrequencies | None:
    own = params.nested("rope_scaling")
    if own is not None and "inverse" in own.fields:
        return _frequencies(own)
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
