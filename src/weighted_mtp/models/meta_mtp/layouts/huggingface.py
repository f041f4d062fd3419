"""Hugging Face's Llama layout: `config.json`, `model*.safetensors`, `mtp/mtp_heads.safetensors`.

transformers rotates first half against second half, Meta neighbouring pairs: the rows of `wq` and
`wk` are in another order, and nothing else differs. The extra heads, which transformers does not
know, are in the subfolder `mtp/` under Meta's names and in Meta's order: vLLM reads every
safetensors file at the top of the folder and refuses tensors that it does not know.

Letters: D model width, H attention heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.sums import SUMS, Sums, sums_of, write_sums
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.atomic import copy_files
from weighted_mtp.models.meta_mtp.layouts.hf_config import HEADS_KEY, read_config, write_config
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
from weighted_mtp.models.meta_mtp.layouts.skeleton import build_skeleton
from weighted_mtp.models.meta_mtp.layouts.source import (
    Part,
    Source,
    Stored,
    assemble,
    common_dtype,
    index_parts,
)
from weighted_mtp.models.meta_mtp.layouts.tensor_files import (
    SafetensorsFile,
    TensorFile,
    open_weights,
    write_safetensors,
    write_safetensors_file,
)
from weighted_mtp.models.meta_mtp.transformer import Transformer

HEADS_FILE, VALUE_HEAD_FILE = "mtp_heads.safetensors", "value_head.safetensors"
MTP_FOLDER = "mtp"
SUMS_FILE = f"{MTP_FOLDER}/{SUMS}"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Each may have shards and an index instead; the first that is there is read."""

_ROOT = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def hf_name(name: str) -> str:
    """Hugging Face's key of a parameter; extra heads keep Meta's, in a file of their own."""
    if name.startswith("extra_heads."):
        return name
    stem = name.removesuffix(".weight")
    if stem in _ROOT:
        return f"{_ROOT[stem]}.weight"
    _, number, inner = stem.split(".", 2)
    return f"model.layers.{number}.{_BLOCK[inner]}.weight"


def read_huggingface(directory: Path) -> Source:
    """What a checkpoint in Hugging Face's Llama layout holds.

    Raises:
        UserError: anything is missing, damaged, or not representable; file and key are named.
    """
    config = JsonFile.read(directory / "config.json")
    args = read_config(config)
    ours = (HEADS_FILE, VALUE_HEAD_FILE)
    files = open_weights(directory, *WEIGHT_FILES, ours=ours)
    files += _open_heads(own_file(directory, HEADS_FILE), config, args.n_future_tokens)
    model = build_skeleton(args, config.path, len(index_parts(files)))

    def store(name: str, shape: tuple[int, ...], parts: tuple[Part, ...]) -> Stored:
        return Stored(parts[:1], heads=_rotary_heads(name, args))

    source = assemble("huggingface", model, files, directory, hf_name, _is_rope_table, store)
    if (directory / SUMS_FILE).is_file():
        source.attach_sums(Sums.read(directory, SUMS_FILE))
    return source


def own_file(directory: Path, name: str) -> Path:
    """Where a file that only this project reads is: in `mtp/`, or (old exports) at the top."""
    old = directory / name
    return (
        old
        if old.is_file() and not (directory / MTP_FOLDER / name).is_file()
        else (directory / MTP_FOLDER / name)
    )


def _is_rope_table(key: str) -> bool:
    return key.endswith("rotary_emb.inv_freq")


def _rotary_heads(name: str, args: ModelArgs) -> int:
    """How many heads' rows Hugging Face stores in its own order under this parameter; 0 if none."""
    if name.startswith("layers."):
        if name.endswith("attention.wq.weight"):
            return args.n_heads
        if name.endswith("attention.wk.weight"):
            return args.kv_heads
    return 0


def _open_heads(path: Path, config: JsonFile, n_future_tokens: int) -> list[TensorFile]:
    if not path.is_file():
        if n_future_tokens > 1:
            raise UserError(
                f"{path}: no such file, but {HEADS_KEY} in {config.path.name} is "
                f"{n_future_tokens}; copy it too"
            )
        return []
    if HEADS_KEY not in config.fields:
        raise config.error(
            HEADS_KEY, f"is missing, but {HEADS_FILE} is there; add it (1 + the heads stored)"
        )
    return [SafetensorsFile(path)]


def write_huggingface(
    model: Transformer,
    directory: Path,
    tokenizer_files: Sequence[Path],
    max_shard_bytes: int,
    config_fields: Mapping[str, Any],
) -> None:
    """Write the whole layout into a directory, and the sums of all that is in it."""
    args = model.args
    state = {hf_name(name): parameter.detach() for name, parameter in model.named_parameters()}
    heads = {hf_name(name): _rotary_heads(name, args) for name, _ in model.named_parameters()}
    extra = {name: state.pop(name) for name in list(state) if name.startswith("extra_heads.")}

    def transform(name: str, tensor: Tensor) -> Tensor:
        return _to_halves(tensor, heads[name]) if heads[name] else tensor

    dtype = common_dtype({name: weight.dtype for name, weight in model.named_parameters()})
    write_json(directory / "config.json", write_config(args, dtype, config_fields))
    write_safetensors(state, directory, max_shard_bytes, transform, always_index=True)
    if extra:
        (directory / MTP_FOLDER).mkdir(exist_ok=True)
        write_safetensors_file(extra, directory / MTP_FOLDER / HEADS_FILE)
    copy_files(tokenizer_files, directory)
    (directory / MTP_FOLDER).mkdir(exist_ok=True)
    files = (path for path in directory.rglob("*") if path.is_file())
    write_sums(directory, sums_of(directory, files), SUMS_FILE)


def _to_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of `weight` `[H·d, D]` from pairs side by side to first halves, then second halves."""
    half = weight.shape[0] // (2 * heads)
    pairs = weight.view(heads, half, 2, -1)  # [H, d/2, 2, D]
    return pairs.transpose(1, 2).reshape(weight.shape)
