"""Hugging Face's layout: `config.json`, `model*.safetensors`, `mtp/mtp_heads.safetensors`.

transformers rotates first half against second half, Meta neighbouring pairs: the rows of `wq` and
`wk` (weights, biases, norms of the heads) are in another order. Phi-3 fuses projections. The extra
heads, which transformers does not know, are in the subfolder `mtp/` under Meta's names and in
Meta's order: vLLM reads every safetensors file at the top of the folder and refuses tensors that it
does not know.

Letters: D model width, H attention heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.sums import SUMS, Sums, sums_of, write_sums
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.atomic import copy_files
from weighted_mtp.models.meta_mtp.layouts.hf_config import HEADS_KEY, read_config, write_config
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
from weighted_mtp.models.meta_mtp.layouts.remote_code import AUTO_MAP, write_code
from weighted_mtp.models.meta_mtp.layouts.skeleton import check_size
from weighted_mtp.models.meta_mtp.layouts.source import (
    Part,
    Source,
    Stored,
    assemble,
    common_format,
    formats_of,
    index_parts,
)
from weighted_mtp.models.meta_mtp.layouts.tensor_files import (
    SafetensorsFile,
    TensorFile,
    open_weights,
    write_safetensors,
    write_safetensors_file,
)

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    from torch import Tensor

    from weighted_mtp.models.meta_mtp.transformer import Transformer

HEADS_FILE, VALUE_HEAD_FILE = "mtp_heads.safetensors", "value_head.safetensors"
MTP_FOLDER = "mtp"
SUMS_FILE = f"{MTP_FOLDER}/{SUMS}"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Each may have shards and an index instead; the first that is there is read."""

_ROOT = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
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


_FUSED = {
    "attention.wq": "self_attn.qkv_proj",
    "attention.wk": "self_attn.qkv_proj",
    "attention.wv": "self_attn.qkv_proj",
    "feed_forward.w1": "mlp.gate_up_proj",
    "feed_forward.w3": "mlp.gate_up_proj",
}
"""Of Phi-3, which stores several projections of one input as one tensor, in this order."""


def hf_name(name: str, args: ModelArgs) -> str:
    """Hugging Face's key of a parameter; extra heads keep Meta's, in a file of their own."""
    if name.startswith("extra_heads."):
        return name
    stem, _, leaf = name.rpartition(".")
    if stem in _ROOT:
        return f"{_ROOT[stem]}.{leaf}"
    _, number, inner = stem.split(".", 2)
    names = {**_BLOCK, **_FUSED} if args.family.name == "phi3" else _BLOCK
    return f"model.layers.{number}.{names[inner]}.{leaf}"


def stored_rows(name: str, args: ModelArgs) -> tuple[int, int] | None:
    """Which rows of its stored tensor a parameter is; None: all."""
    inner = name.split(".", 2)[-1].rpartition(".")[0]
    if args.family.name != "phi3" or inner not in _FUSED or not name.startswith("layers."):
        return None
    q, kv, f = args.n_heads * args.head_dim, args.kv_heads * args.head_dim, args.ffn_dim
    return {
        "attention.wq": (0, q),
        "attention.wk": (q, q + kv),
        "attention.wv": (q + kv, q + 2 * kv),
        "feed_forward.w1": (0, f),
        "feed_forward.w3": (f, 2 * f),
    }[inner]


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
    check_size(args, config.path, len(index_parts(files)))

    def store(name: str, shape: tuple[int, ...], parts: tuple[Part, ...]) -> Stored:
        rows = stored_rows(name, args)
        if rows is not None:
            _check_fused(parts[0], name, args)
            parts = (replace(parts[0], rows=rows),)
        return Stored(parts[:1], heads=rotary_heads(name, args), rotary_dim=args.rotary_dim)

    def name_of(name: str) -> str:
        return hf_name(name, args)

    source = assemble("huggingface", args, files, directory, name_of, is_rope_table, store)
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


def is_rope_table(key: str) -> bool:
    """Whether a stored key is the buffer of rotary frequencies of older exports."""
    return key.endswith("rotary_emb.inv_freq")


def rotary_heads(name: str, args: ModelArgs) -> int:
    """How many heads' rows Hugging Face stores in its own order under this parameter; 0 if none."""
    inner = name.split(".", 2)[-1].rpartition(".")[0] if name.startswith("layers.") else ""
    known = {"wq": args.n_heads, "wk": args.kv_heads, "q_norm": 1, "k_norm": 1}
    return known.get(inner.removeprefix("attention."), 0)


def fused_rows(name: str, args: ModelArgs) -> int:
    """How many rows the fused tensor has that a parameter is a part of."""
    path = name.rsplit(".", 2)[0]
    last = stored_rows(f"{path}.{'wv' if path.endswith('.attention') else 'w3'}.weight", args)
    assert last is not None  # of a parameter that is stored alone
    return last[1]


def _check_fused(part: Part, name: str, args: ModelArgs) -> None:
    """Raise `UserError` unless a fused tensor has the rows of all that it is made of."""
    wanted, rows = fused_rows(name, args), part.shape[0] if part.shape else 0
    if rows != wanted:
        raise UserError(
            f"{part} has {rows} rows, but the configuration asks for {wanted}; correct the "
            "configuration, or copy the checkpoint again"
        )


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
    import torch

    args = model.args
    parts: dict[str, list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        parts.setdefault(hf_name(name, args), []).append((name, parameter.detach()))
    extra = {key: parts.pop(key)[0][1] for key in list(parts) if key.startswith("extra_heads.")}
    state = {key: _frame([weight for _, weight in found]) for key, found in parts.items()}

    def transform(key: str, tensor: Tensor) -> Tensor:
        ordered = sorted(parts[key], key=lambda part: stored_rows(part[0], args) or (0, 0))
        halves = [in_hf_order(weight, name, args) for name, weight in ordered]
        return halves[0] if len(halves) == 1 else torch.cat(halves)

    config = write_config(args, common_format(formats_of(model)), config_fields)
    write_json(directory / "config.json", {**config, "auto_map": AUTO_MAP} if extra else config)
    write_safetensors(state, directory, max_shard_bytes, transform, always_index=True)
    if extra:
        (directory / MTP_FOLDER).mkdir(exist_ok=True)
        write_safetensors_file(extra, directory / MTP_FOLDER / HEADS_FILE)
        write_code(args.family.name, directory)
    copy_files(tokenizer_files, directory)
    (directory / MTP_FOLDER).mkdir(exist_ok=True)
    files = (path for path in directory.rglob("*") if path.is_file())
    write_sums(directory, sums_of(directory, files), SUMS_FILE)


def _frame(weights: Sequence[Tensor]) -> Tensor:
    """A tensor of the size that these have together, without memory where there are several."""
    import torch

    if len(weights) == 1:
        return weights[0]
    rows = sum(len(weight) for weight in weights)
    return torch.empty((rows, *weights[0].shape[1:]), dtype=weights[0].dtype, device="meta")


def in_hf_order(weight: Tensor, name: str, args: ModelArgs) -> Tensor:
    """A parameter with its rows as Hugging Face stores them."""
    heads = rotary_heads(name, args)
    return to_halves(weight, heads, args.rotary_dim) if heads else weight


def to_halves(weight: Tensor, heads: int, r: int) -> Tensor:
    """Rows of `weight` `[H·d, …]` from pairs side by side to first halves, then second halves, of
    the first r features of each head; the others stay."""
    import torch

    by_head = weight.reshape(heads, weight.shape[0] // heads, -1)
    pairs = by_head[:, :r].reshape(heads, r // 2, 2, -1)
    halves = pairs.transpose(1, 2).flatten(1, 2)
    return torch.cat([halves, by_head[:, r:]], 1).reshape(weight.shape)
