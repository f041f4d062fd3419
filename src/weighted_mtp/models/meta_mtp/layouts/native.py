"""The native layout: `configs/params.json`, `safetensors/`, `tokenizer/`, `metadata.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighted_mtp.core.sums import Sums, fields_digest, sums_of, verifying
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
from weighted_mtp.models.meta_mtp.layouts.params import is_extended, read_params, write_params
from weighted_mtp.models.meta_mtp.layouts.side_files import write_tokenizer_folder
from weighted_mtp.models.meta_mtp.layouts.skeleton import check_size
from weighted_mtp.models.meta_mtp.layouts.source import (
    EMBEDDING,
    Source,
    assemble,
    formats_of,
    index_parts,
)
from weighted_mtp.models.meta_mtp.layouts.tensor_files import open_weights, write_safetensors

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    from weighted_mtp.models.meta_mtp.transformer import Transformer

FORMAT_VERSION = 2
"""Written for families other than Meta's architecture, which version 1 knew alone."""
METADATA = "metadata.json"
ORDER_HEAD_FILE = "order_head.safetensors"
"""The second unembedding of the objective `top` (order_head.py)."""


def read_native(directory: Path) -> Source:
    """What a native checkpoint holds.

    Raises:
        UserError: anything is missing, damaged or does not fit together; file and key are named.
    """
    _check_version(directory)
    params = JsonFile.read(directory / "configs" / "params.json")
    folder = directory / "safetensors"
    files = open_weights(folder, "model.safetensors")
    index = index_parts(files)
    embedding = index[EMBEDDING][0].shape if EMBEDDING in index else ()
    args = read_params(params, embedding[0] if embedding else 1)
    check_size(args, params.path, len(index))
    source = assemble("native", args, files, folder)
    if verifying() or (directory / METADATA).is_file():
        source.attach_sums(Sums.read(directory, METADATA))
    return source


def _check_version(directory: Path) -> None:
    if not (directory / METADATA).is_file():
        return
    metadata = JsonFile.read(directory / METADATA)
    version = metadata.get("format_version", int, FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise metadata.error(
            "format_version", f"{version} is newer than {FORMAT_VERSION}; update weighted-mtp"
        )


def write_native(
    model: Transformer,
    directory: Path,
    tokenizer_files: Sequence[Path],
    max_shard_bytes: int,
    extra_metadata: Mapping[str, str],
    config_fields: Mapping[str, Any],
) -> None:
    """Write the layout into `directory`; last `metadata.json`, with the sums of all files and a
    digest of itself."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    (directory / "configs").mkdir()
    (directory / "safetensors").mkdir()
    write_json(directory / "configs" / "params.json", write_params(model.args))
    write_safetensors(state, directory / "safetensors", max_shard_bytes)
    write_tokenizer_folder(directory, tokenizer_files, config_fields)
    metadata = {
        "format_version": FORMAT_VERSION if is_extended(model.args) else 1,
        "layout": "native",
        "dtype": ", ".join(sorted(set(formats_of(model).values()))),
        "parameters": sum(t.numel() for t in state.values()),
        "sha256": sums_of(directory, (p for p in directory.rglob("*") if p.is_file())),
        "extra": dict(extra_metadata),
    }
    write_json(directory / METADATA, {**metadata, "digest": fields_digest(metadata)})
