"""Fast-LLM's `mtp_llama` layout: a Llama in Hugging Face's names with all heads in its files.

`model.layers` ends with the next-token head, `model.mtp_heads` holds the others, and every head has
a final norm of its own (`model.mtp_norms`). Our heads share one norm: it is written n times, and n
equal ones are read as one.

Fast-LLM's `configuration_mtp_llama.py` and `modeling_mtp_llama.py`, put into the folder, open it in
transformers (`trust_remote_code=True`). They are not written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import InvalidTextError, read_json
from weighted_mtp.core.sums import Sums, sums_of, write_sums
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.atomic import copy_files
from weighted_mtp.models.meta_mtp.layouts.hf_config import HEADS_KEY, read_config, write_config
from weighted_mtp.models.meta_mtp.layouts.huggingface import (
    MTP_FOLDER,
    SUMS_FILE,
    WEIGHT_FILES,
    hf_name,
    in_hf_order,
    is_rope_table,
    rotary_heads,
)
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
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
from weighted_mtp.models.meta_mtp.layouts.tensor_files import open_weights, write_safetensors

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    from torch import Tensor

    from weighted_mtp.models.meta_mtp.transformer import Transformer

MODEL_TYPE, ARCHITECTURE = "mtp_llama", "MTPLlamaForCausalLM"
PREDICTION_HEADS = "prediction_heads"
_AUTO_MAP = {
    "AutoConfig": "configuration_mtp_llama.MTPLlamaConfig",
    "AutoModel": "modeling_mtp_llama.MTPLlamaModel",
    "AutoModelForCausalLM": "modeling_mtp_llama.MTPLlamaForCausalLM",
}


def is_mtp_llama(config: Path) -> bool:
    """Whether this `config.json` names the layout; False where it cannot be read."""
    try:
        fields = read_json(config)
    except (InvalidTextError, OSError, UserError):
        return False
    return isinstance(fields, dict) and fields.get("model_type") == MODEL_TYPE


def read_mtp_llama(directory: Path) -> Source:
    """What a checkpoint in Fast-LLM's `mtp_llama` layout holds.

    Raises:
        UserError: anything is missing, damaged, or not representable (heads whose final norms
            differ); file and key are named.
    """
    config = JsonFile.read(directory / "config.json")
    args = _read_args(config)
    files = open_weights(directory, *WEIGHT_FILES)
    index = index_parts(files)
    check_size(args, config.path, len(index))
    own_norms = [norm_name(head) for head in range(1, args.n_future_tokens)]

    def store(name: str, shape: tuple[int, ...], parts: tuple[Part, ...]) -> Stored:
        return Stored(parts[:1], heads=rotary_heads(_as_layer(name), args))

    def ignored(key: str) -> bool:
        return is_rope_table(key) or key in own_norms

    source = assemble("mtp_llama", args, files, directory, mtp_llama_name, ignored, store)
    _check_norms(index, own_norms, directory)
    if (directory / SUMS_FILE).is_file():
        source.attach_sums(Sums.read(directory, SUMS_FILE))
    return source


def norm_name(head: int) -> str:
    """Key of the final norm of a head, the next-token head being 0."""
    return f"model.mtp_norms.{head}.weight"


def mtp_llama_name(name: str) -> str:
    """The layout's key of a parameter; the shared norm has that of the first head."""
    if name == "norm.weight":
        return norm_name(0)
    key = hf_name(_as_layer(name), ModelArgs())
    if name.startswith("extra_heads."):
        return key.replace("model.layers.", "model.mtp_heads.", 1)
    return key


def write_mtp_llama(
    model: Transformer,
    directory: Path,
    tokenizer_files: Sequence[Path],
    max_shard_bytes: int,
    config_fields: Mapping[str, Any],
) -> None:
    """Write the whole layout into a directory, and the sums of all that is in it.

    Raises:
        UserError: the model is of another family than Llama.
    """
    args = model.args
    check_llama(args, MODEL_TYPE)
    state, layers = {}, {}
    for name, parameter in model.named_parameters():
        key = mtp_llama_name(name)
        state[key] = parameter.detach()
        layers[key] = _as_layer(name)
    for head in range(1, args.n_future_tokens):
        state[norm_name(head)] = model.norm.weight.detach().clone()

    def transform(key: str, tensor: Tensor) -> Tensor:
        return in_hf_order(tensor, layers[key], args) if key in layers else tensor

    config = _written_config(args, common_format(formats_of(model)), config_fields)
    write_json(directory / "config.json", config)
    write_safetensors(state, directory, max_shard_bytes, transform, always_index=True)
    copy_files(tokenizer_files, directory)
    (directory / MTP_FOLDER).mkdir(exist_ok=True)
    files = (path for path in directory.rglob("*") if path.is_file())
    write_sums(directory, sums_of(directory, files), SUMS_FILE)


def check_llama(args: ModelArgs, layout: str) -> None:
    """Raise `UserError` unless the model is a Llama, the one family that `layout` has."""
    if args.family.name != "llama":
        raise UserError(
            f"--to {layout}: the model's family is {args.family.name}, but {layout} describes "
            "Llama only; choose --to hf or --to native"
        )


def _read_args(config: JsonFile) -> ModelArgs:
    architectures = config.get("architectures", list, [])
    if architectures and ARCHITECTURE not in architectures:
        raise config.error("architectures", f"= {architectures}; only {ARCHITECTURE} is supported")
    heads = config.count(PREDICTION_HEADS, 1)
    plain = {
        **config.fields,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        HEADS_KEY: heads,
    }
    return read_config(JsonFile(config.path, plain))


def _written_config(
    args: ModelArgs, number_format: str, config_fields: Mapping[str, Any]
) -> dict[str, Any]:
    fields = write_config(args, number_format, config_fields)
    del fields[HEADS_KEY]
    return {
        **fields,
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "auto_map": _AUTO_MAP,
        PREDICTION_HEADS: args.n_future_tokens,
    }


def _as_layer(name: str) -> str:
    """The name that a head's parameter would have in `layers`: it is stored in the same way."""
    return name.replace("extra_heads.", "layers.", 1) if name.startswith("extra_heads.") else name


def _check_norms(
    index: Mapping[str, tuple[Part, ...]], own_norms: Sequence[str], directory: Path
) -> None:
    """Raise `UserError` unless every head's final norm is that of the first head. They are read at
    once: n vectors."""
    first = index[norm_name(0)][0]
    wanted = first.numbers() if own_norms else []
    for key in own_norms:
        if key not in index:
            raise UserError(f"{directory}: lacks key {key}; copy the checkpoint again")
        other = index[key][0]
        if other.shape != first.shape or other.numbers() != wanted:
            raise UserError(
                f"{other} differs from {first.key}, but the heads of this library share one final "
                "norm; the checkpoint cannot be represented"
            )
