"""Hugging Face's `config.json` for Llama, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from weighted_mtp.core.logging import get_logger, warn_once
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile
from weighted_mtp.models.meta_mtp.layouts.params import build_args
from weighted_mtp.models.meta_mtp.rotary import RopeScaling

log = get_logger(__name__)

HEADS_KEY = "mtp_n_future_tokens"
SUMS_KEY = "mtp_sums"
"""Says that the export was written with SHA-256 sums of its files."""
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_OTHER_MODELS = ("attention_bias", "mlp_bias", "sliding_window", "quantization_config")


def read_config(config: JsonFile) -> ModelArgs:
    """The model that a `config.json` describes; absent fields have transformers' defaults.

    Raises:
        UserError: a field is missing, of the wrong type, or asks for what Llama is not.
    """
    _check_family(config)
    for key in _OTHER_MODELS:
        if config.fields.get(key):
            shown = "is set" if isinstance(config.fields[key], dict) else f"= {config.fields[key]}"
            raise config.error(key, f"{shown}: this model has no such thing; not supported")
    activation = config.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        raise config.error("hidden_act", f"= {activation!r}; only 'silu' is supported")
    n = config.count(HEADS_KEY, 1)
    theta, scaling = _read_rope(config)
    heads = config.count("num_attention_heads")
    values = {
        "dim": config.count("hidden_size"),
        "n_layers": config.count("num_hidden_layers") + n - 1,
        "n_heads": heads,
        "n_kv_heads": config.count("num_key_value_heads", heads),
        "vocab_size": config.count("vocab_size"),
        "ffn_hidden_dim": config.count("intermediate_size"),
        "norm_eps": config.positive("rms_norm_eps", 1e-6),
        "n_future_tokens": n,
        "rope_theta": theta,
        "max_seq_len": config.count("max_position_embeddings", 2048),
        "tie_embeddings": config.get("tie_word_embeddings", bool, False),
        "rope_scaling": scaling,
    }
    args = build_args(values, config)
    head_dim = config.optional("head_dim", int)
    if head_dim not in (None, args.head_dim):
        raise config.error(
            "head_dim",
            f"= {head_dim} is not hidden_size / num_attention_heads ({args.head_dim}); "
            "not supported",
        )
    return args


def _check_family(config: JsonFile) -> None:
    architectures = config.get("architectures", list, [])
    family = config.optional("model_type", str)
    if family is None and "LlamaForCausalLM" in architectures:
        family = "llama"
    if family not in _ARCHITECTURES:
        raise config.error(
            "model_type", f"= {family!r}; only {' and '.join(_ARCHITECTURES)} are supported"
        )
    if architectures and _ARCHITECTURES[family] not in architectures:
        raise config.error(
            "architectures", f"= {architectures}; only {_ARCHITECTURES[family]} is supported"
        )
    if family == "mistral":  # absent, these two have defaults that Llama's arithmetic lacks
        for key in ("sliding_window", "num_key_value_heads"):
            if key not in config.fields:
                raise config.error(key, "is missing; a Mistral config must say it (null or a size)")


def _read_rope(config: JsonFile) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_scaling` and `rope_theta` (transformers 4) or `rope_parameters`
    (transformers 5). Where several say different things the order is that of transformers 5:
    `rope_scaling` unless it is empty, the base inside before the one outside, `rope_type` before
    `type`."""
    theta = config.positive("rope_theta", 10000.0)
    found = [config.nested(key) for key in ("rope_scaling", "rope_parameters")]
    given = [rope for rope in found if rope is not None and rope.fields]
    rope = given[0] if given else JsonFile(config.path, {})
    if len(given) == 2 and given[0].fields != given[1].fields:
        warn_once(
            log,
            f"{config.path}: rope_scaling and rope_parameters differ; rope_scaling is used, as in "
            "transformers",
        )
    theta = rope.positive("rope_theta", theta)
    for part in (rope, config):
        if part.positive("partial_rotary_factor", 1.0) != 1.0:
            raise part.error("partial_rotary_factor", "is not 1; not supported")
    kind = rope.optional("rope_type", str) or rope.optional("type", str) or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise rope.error("rope_type", f"= {kind!r}; only 'default' and 'llama3' are supported")
    return theta, RopeScaling(
        factor=rope.positive("factor"),
        low_freq_factor=rope.positive("low_freq_factor"),
        high_freq_factor=rope.positive("high_freq_factor"),
        original_max_seq_len=_original_length(rope, config),
    )


def _original_length(rope: JsonFile, config: JsonFile) -> int:
    """The context before scaling: a field outside `rope_parameters` comes first (Phi-3 has one),
    and where no field names it, transformers takes the present context."""
    key = "original_max_position_embeddings"
    if config.fields.get(key) is not None:
        return config.count(key)
    return rope.count(key, config.count("max_position_embeddings", 2048))


def write_config(args: ModelArgs, dtype: torch.dtype, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` for the trunk and next-token head, in the spelling both versions read.

    Args:
        fields: token ids and generation settings (`read_config_fields`). The ids of BOS, EOS and
            padding are null where they are not given: absent ones would be Llama 2's.
    """
    scaling = None
    if args.rope_scaling is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": args.rope_scaling.factor,
            "low_freq_factor": args.rope_scaling.low_freq_factor,
            "high_freq_factor": args.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": args.rope_scaling.original_max_seq_len,
        }
    name = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": args.vocab_size,
        "hidden_size": args.dim,
        "intermediate_size": args.ffn_dim,
        "num_hidden_layers": args.n_layers - args.n_future_tokens + 1,
        "num_attention_heads": args.n_heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": args.max_seq_len,
        "rms_norm_eps": args.norm_eps,
        "rope_theta": args.rope_theta,
        "rope_scaling": scaling,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": args.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **fields,
        "torch_dtype": name,
        "dtype": name,
        HEADS_KEY: args.n_future_tokens,
        SUMS_KEY: True,
    }
