"""Tiny checkpoints in every layout, for the tests of reading, writing and converting them."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import save_native
from weighted_mtp.models.meta_mtp.layouts.json_file import write_json
from weighted_mtp.models.meta_mtp.transformer import Transformer

ARGS = ModelArgs(
    dim=32,
    n_layers=4,
    n_heads=4,
    n_kv_heads=4,
    vocab_size=40,
    multiple_of=8,
    n_future_tokens=3,
    rope_theta=5000.0,
    max_seq_len=32,
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def tiny(**changes) -> Transformer:
    """A random model, its weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    model = Transformer(replace(ARGS, **changes))
    model.init_weights(std=0.2)
    return model.eval()


def some_tokens(length: int = 9) -> Tensor:
    return torch.randint(ARGS.vocab_size, (2, length), generator=torch.manual_seed(1))


def write_native(directory: Path, **changes) -> Path:
    save_native(tiny(**changes), directory)
    return directory


def split(name: str, weight: Tensor, shards: int, by_vocabulary: bool) -> list[Tensor]:
    """A parameter as fairscale's model-parallel ranks hold it."""
    if name.endswith("norm.weight"):
        return [weight] * shards
    by_column = name.endswith(("attention.wo.weight", "feed_forward.w2.weight"))
    if name == "tok_embeddings.weight":
        by_column = not by_vocabulary
    return list(weight.chunk(shards, dim=1 if by_column else 0))


def write_meta(
    directory: Path, model: Transformer | None = None, shards: int = 1, by_vocabulary: bool = False
) -> Path:
    """Meta's layout: `params.json` as released (vocabulary left open), a `rope.freqs` buffer."""
    model = model or tiny()
    directory.mkdir(parents=True)
    keys = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "norm_eps", "rope_theta")
    params = {key: asdict(model.args)[key] for key in keys}
    params["vocab_size"] = -1
    if model.args.n_future_tokens > 1:
        params["n_future_tokens"] = model.args.n_future_tokens
    write_json(directory / "params.json", params)
    states: list[dict[str, Tensor]] = [{"rope.freqs": torch.ones(4)} for _ in range(shards)]
    for name, weight in model.state_dict().items():
        for state, part in zip(states, split(name, weight, shards, by_vocabulary), strict=True):
            state[name] = part.clone()
    for rank, state in enumerate(states):
        single = shards == 1 and model.args.n_future_tokens > 1
        name = "consolidated.pth" if single else f"consolidated.{rank:02d}.pth"
        torch.save(state, directory / name)
    return directory


def hf_model(**changes) -> LlamaForCausalLM:
    fields = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.1,
        "attn_implementation": "eager",
        **changes,
    }
    rope = fields.get("rope_parameters")
    if rope is not None and transformers.__version__.startswith("4."):  # which spells it in two
        scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
        fields["rope_theta"] = rope["rope_theta"]
        fields["rope_scaling"] = None if rope["rope_type"] == "default" else scaled
        del fields["rope_parameters"]
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**fields)).eval()


def write_hf(directory: Path, **changes) -> Path:
    hf_model(**changes).save_pretrained(directory)
    return directory
