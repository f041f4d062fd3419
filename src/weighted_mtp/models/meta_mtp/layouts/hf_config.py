"""Hugging Face's `config.json` of Llama and its relatives, as transformers 4 and 5 spell it.

Letters: L blocks that transformers counts (trunk and next-token head), D model width, H attention
heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.logging import get_logger, warn_once
from weighted_mtp.models.meta_mtp.args import Family, ModelArgs, RopeFrequencies, RopeScaling
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile
from weighted_mtp.models.meta_mtp.layouts.params import build_args, layer_numbers

log = get_logger(__name__)

HEADS_KEY = "mtp_n_future_tokens"
SUMS_KEY = "mtp_sums"
"""Says that the export was written with SHA-256 sums of its files."""


class _Kind(NamedTuple):
    """What transformers assumes of a family where its config.json does not say.

    Attributes:
        kv_heads, head_dim: None is as many as query heads, and D / H.
        biases: of "attention_bias" and "mlp_bias", the fields that the family has.
        windows: "always" if `sliding_window` holds by itself, "asked" if `use_sliding_window` must
            be true, "never".
    """

    architecture: str
    kv_heads: int | None = None
    head_dim: int | None = None
    positions: int = 2048
    theta: float = 10000.0
    eps: float = 1e-6
    tied: bool = False
    biases: tuple[str, ...] = ()
    windows: str = "never"
    window: int | None = None


_BIASES = ("attention_bias", "mlp_bias")
KINDS = {
    "llama": _Kind("LlamaForCausalLM", biases=_BIASES),
    "mistral": _Kind(
        "MistralForCausalLM", kv_heads=8, positions=131072, windows="always", window=4096
    ),
    "qwen2": _Kind("Qwen2ForCausalLM", kv_heads=32, positions=32768, windows="asked", window=4096),
    "qwen3": _Kind(
        "Qwen3ForCausalLM",
        kv_heads=32,
        head_dim=128,
        positions=32768,
        biases=_BIASES[:1],
        windows="asked",
        window=4096,
    ),
    "granite": _Kind("GraniteForCausalLM", biases=_BIASES),
    "smollm3": _Kind(
        "SmolLM3ForCausalLM",
        kv_heads=4,
        positions=32768,
        theta=2e6,
        tied=True,
        biases=_BIASES,
        windows="asked",
    ),
    "phi3": _Kind("Phi3ForCausalLM", positions=4096, eps=1e-5, windows="always"),
}
"""By `model_type`."""

_REFUSED = {
    "quantization_config": "its weights are quantised; take the original ones, or dequantise them "
    "with transformers (model.dequantize(), then save_pretrained)",
    "attn_logit_softcapping": "soft caps of logits are not supported",
    "final_logit_softcapping": "soft caps of logits are not supported",
    "num_experts": "mixtures of experts are not supported",
    "num_local_experts": "mixtures of experts are not supported",
}
_SCALED = ("linear", "dynamic", "yarn")
"""Rotary kinds whose frequencies transformers computes."""


def read_config(config: JsonFile) -> ModelArgs:
    """The model that a `config.json` describes; absent fields have transformers' defaults.

    Raises:
        UserError: a field is missing, of the wrong type, or asks for what is not supported.
    """
    name = _family_name(config)
    kind = KINDS[name]
    for key, reason in _REFUSED.items():
        if config.fields.get(key):
            raise config.error(key, f"is set: {reason}")
    activation = config.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        raise config.error("hidden_act", f"= {activation!r}; only 'silu' is supported")
    n = config.count(HEADS_KEY, 1)
    heads = config.count("num_attention_heads")
    kv_heads = heads if "num_key_value_heads" in config.fields else kind.kv_heads or heads
    values: dict[str, Any] = {
        "dim": config.count("hidden_size"),
        "n_layers": config.count("num_hidden_layers") + n - 1,
        "n_heads": heads,
        "n_kv_heads": config.count("num_key_value_heads", kv_heads),
        "vocab_size": config.count("vocab_size"),
        "ffn_hidden_dim": config.count("intermediate_size"),
        "norm_eps": config.positive("rms_norm_eps", kind.eps),
        "n_future_tokens": n,
        "max_seq_len": config.count("max_position_embeddings", kind.positions),
        "tie_embeddings": config.get("tie_word_embeddings", bool, kind.tied),
    }
    values["family"] = _read_family(config, name, values)
    args = build_args(values, config)  # checks the sizes that the frequencies depend on
    theta, scaling = _read_rope(config, args, kind)
    return build_args({**values, "rope_theta": theta, "rope_scaling": scaling}, config)


def _family_name(config: JsonFile) -> str:
    architectures = config.get("architectures", list, [])
    name = config.optional("model_type", str)
    if name is None and "LlamaForCausalLM" in architectures:
        name = "llama"
    if name not in KINDS:
        experts = "; mixtures of experts are not supported" if "moe" in str(name) else ""
        raise config.error("model_type", f"= {name!r} is not one of {', '.join(KINDS)}{experts}")
    if architectures and KINDS[name].architecture not in architectures:
        raise config.error(
            "architectures", f"= {architectures}; only {KINDS[name].architecture} is supported"
        )
    return name


def _read_family(config: JsonFile, name: str, values: Mapping[str, Any]) -> Family:
    kind, D, H = KINDS[name], values["dim"], values["n_heads"]
    bias, mlp_bias = (key in kind.biases and config.get(key, bool, False) for key in _BIASES)
    head_dim = config.count("head_dim", kind.head_dim or max(1, D // H))
    has_own = head_dim * H != D and (kind.head_dim or config.fields.get("head_dim")) is not None
    found: dict[str, Any] = {
        "name": name,
        "head_dim": head_dim if has_own else None,
        "qkv_bias": bias or name == "qwen2",
        "output_bias": bias,
        "mlp_bias": mlp_bias,
        "qk_norm": name == "qwen3",
        "sliding_window": _read_window(
            config, kind, values["n_layers"] - values["n_future_tokens"] + 1
        ),
        "rotary_dim": _read_rotary_dim(config, name, head_dim),
    }
    if name == "granite":
        for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            found[key] = config.positive(key, 1.0)
        found["attention_multiplier"] = config.positive("attention_multiplier", 1.0)
    if name == "smollm3":
        found["no_rope_layers"] = _read_no_rope(config)
    return Family(**found)


def _read_window(config: JsonFile, kind: _Kind, blocks: int) -> int | None:
    """The sliding window of all blocks, None without one."""
    if kind.windows == "never":
        return None
    if kind.windows == "asked" and not config.get("use_sliding_window", bool, False):
        return None
    if "sliding_window" not in config.fields:
        return kind.window
    if config.optional("sliding_window", int) is None:
        return None
    kinds = set(config.get("layer_types", list, []))
    first = config.optional("max_window_layers", int)  # blocks from here on have a window
    if kind.windows == "asked":
        full = 28 if first is None else first
        if kinds == {"full_attention"} or (not kinds and full >= blocks):
            return None
        if kinds != {"sliding_attention"} and (kinds or full > 0):
            raise config.error(
                "use_sliding_window",
                "with full attention in some blocks is not supported; set it to false, or "
                "max_window_layers to 0",
            )
    return config.count("sliding_window")


def _read_rotary_dim(config: JsonFile, name: str, head_dim: int) -> int | None:
    """How many features of a head are rotated; None: all."""
    factor = 1.0
    for part in (config, config.nested("rope_scaling"), config.nested("rope_parameters")):
        if part is None or part.fields.get("partial_rotary_factor") is None:
            continue
        factor = part.positive("partial_rotary_factor")
        if factor > 1 or (factor != 1 and name != "phi3"):
            raise part.error(
                "partial_rotary_factor", f"= {factor:g}; {name} rotates all features (1)"
            )
    rotated = int(head_dim * factor)
    return None if rotated == head_dim else rotated


def _read_no_rope(config: JsonFile) -> tuple[int, ...]:
    """Blocks of SmolLM3 without rotation. Its `no_rope_layers` has a 1 for each block that rotates
    and a 0 for each that does not."""
    blocks = config.count("num_hidden_layers")
    rotates = layer_numbers(config, "no_rope_layers")
    if not rotates:
        interval = config.count("no_rope_layer_interval", 4)
        rotates = [int((i + 1) % interval != 0) for i in range(blocks)]
    if len(rotates) != blocks or not set(rotates) <= {0, 1}:
        raise config.error("no_rope_layers", f"must be {blocks} numbers, each 0 or 1")
    return tuple(i for i, each in enumerate(rotates) if not each)


def _read_rope(
    config: JsonFile, args: ModelArgs, kind: _Kind
) -> tuple[float, RopeScaling | RopeFrequencies | None]:
    """Base and scaling, from `rope_scaling` and `rope_theta` (transformers 4) or `rope_parameters`
    (transformers 5). Where several say different things the order is that of transformers 5:
    `rope_scaling` unless it is empty, the base inside before the one outside, `rope_type` before
    `type`."""
    theta = config.positive("rope_theta", kind.theta)
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
    name = rope.optional("rope_type", str) or rope.optional("type", str) or "default"
    if name == "default":
        return theta, None
    if name in _SCALED:
        return theta, _frequencies(name, rope, config, args, theta)
    if name != "llama3":
        known = ", ".join(("default", "llama3", *_SCALED))
        raise rope.error("rope_type", f"= {name!r} is not supported; only {known} are")
    return theta, RopeScaling(
        factor=rope.positive("factor"),
        low_freq_factor=rope.positive("low_freq_factor"),
        high_freq_factor=rope.positive("high_freq_factor"),
        original_max_seq_len=_original_length(rope, config, args),
    )


def _original_length(rope: JsonFile, config: JsonFile, args: ModelArgs) -> int:
    """The context before scaling: a field outside `rope_parameters` comes first (Phi-3 has one),
    and where no field names it, transformers takes the present context."""
    key = "original_max_position_embeddings"
    if config.fields.get(key) is not None:
        return config.count(key)
    return rope.count(key, args.max_seq_len)


def _frequencies(
    name: str, rope: JsonFile, config: JsonFile, args: ModelArgs, theta: float
) -> RopeFrequencies:
    """What transformers computes for this kind of scaling."""
    rope.positive("factor")
    if name == "yarn":  # transformers falls back to the context after scaling, with a warning
        _original_length(rope, config, args)
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    described = {key: value for key, value in rope.fields.items() if key != "rope_theta"}
    described["rope_type"] = name
    described.pop("type", None)
    key = "original_max_position_embeddings"
    outside: dict[str, Any] = {}
    if config.fields.get(key) is not None:
        outside[key] = config.count(key)
    partial = args.rotary_dim / args.head_dim
    scaling = {**outside, **described, "rope_theta": theta, "partial_rotary_factor": partial}
    settings: dict[str, Any] = {
        "hidden_size": args.dim,
        "num_attention_heads": args.n_heads,
        "head_dim": args.head_dim,
        "max_position_embeddings": args.max_seq_len,
        "rope_theta": theta,
        "partial_rotary_factor": partial,
        "rope_scaling": scaling,
        **outside,
    }
    try:
        stand_in = LlamaConfig(**settings)
        inverse, amplitude = ROPE_INIT_FUNCTIONS[name](stand_in, torch.device("cpu"))
        numbers = tuple(inverse.double().tolist())
        amplitude = float(amplitude)
    except UserError:
        raise
    except Exception as error:  # transformers checks the fields in its own words
        raise rope.error("rope_type", f"= {name!r}: {one_line(error, 160)}") from error
    if not all(math.isfinite(x) and x > 0 for x in numbers) or not 0 < amplitude < math.inf:
        raise rope.error("factor", "gives frequencies that are not finite numbers above 0")
    # A dynamic scaling changes with the length of the sequence once that exceeds the original one.
    length = args.max_seq_len if name == "dynamic" else None
    return RopeFrequencies(numbers, amplitude, length, {**outside, **described})


def write_config(args: ModelArgs, number_format: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` for the trunk and next-token head, in the spelling both versions read.

    Args:
        number_format: of the weights, a name such as "bfloat16".
        fields: token ids and generation settings (`read_config_fields`). The ids of BOS, EOS and
            padding are null where they are not given: absent ones would be Llama 2's.
    """
    kind = KINDS[args.family.name]
    return {
        "architectures": [kind.architecture],
        "model_type": args.family.name,
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
        "rope_scaling": _written_scaling(args),
        **_written_family(args, kind),
        "tie_word_embeddings": args.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **fields,
        "torch_dtype": number_format,
        "dtype": number_format,
        HEADS_KEY: args.n_future_tokens,
        SUMS_KEY: True,
    }


def _written_scaling(args: ModelArgs) -> dict[str, Any] | None:
    scaling = args.rope_scaling
    if scaling is None:
        return None
    if isinstance(scaling, RopeFrequencies):
        return dict(scaling.described)
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
    }


def _written_family(args: ModelArgs, kind: _Kind) -> dict[str, Any]:
    family = args.family
    blocks = args.n_layers - args.n_future_tokens + 1
    biases = dict(zip(_BIASES, (family.output_bias, family.mlp_bias), strict=True))
    found: dict[str, Any] = {key: biases[key] for key in kind.biases}
    if kind.windows == "asked":
        found["use_sliding_window"] = family.sliding_window is not None
        found["max_window_layers"] = 0 if family.sliding_window is not None else blocks
    if kind.windows != "never":
        found["sliding_window"] = family.sliding_window
    if family.name == "granite":
        found |= {
            "embedding_multiplier": family.embedding_multiplier,
            "residual_multiplier": family.residual_multiplier,
            "logits_scaling": family.logits_scaling,
            "attention_multiplier": family.attention_multiplier or args.head_dim**-0.5,
        }
    if family.name == "smollm3":
        found["no_rope_layers"] = [int(i not in family.no_rope_layers) for i in range(blocks)]
    if family.name == "phi3":
        found["partial_rotary_factor"] = args.rotary_dim / args.head_dim
        found["original_max_position_embeddings"] = args.max_seq_len
        if isinstance(args.rope_scaling, RopeFrequencies):
            key = "original_max_position_embeddings"
            found[key] = args.rope_scaling.described.get(key, args.max_seq_len)
    return found
