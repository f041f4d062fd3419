"""The native layout: `configs/params.json`, `safetensors/`, `tokenizer/`, `metadata.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.layouts.atomic import copy_files
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
from weighted_mtp.models.meta_mtp.layouts.params import read_params, write_params
from weighted_mtp.models.meta_mtp.layouts.side_files import CONFIG_FIELDS
from weighted_mtp.models.meta_mtp.layouts.skeleton import build_skeleton
from weighted_mtp.models.meta_mtp.layouts.source import (
    EMBEDDING,
    Source,
    assemble,
    index_parts,
)
from weighted_mtp.models.meta_mtp.layouts.tensor_files import open_weights, write_safetensors
from weighted_mtp.models.meta_mtp.transformer import Transformer

FORMAT_VERSION = 1
METADATA = "metadata.json"


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
    model = build_skeleton(args, params.path, len(index))
    return assemble("native", model, files, folder)


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
    """Write the layout into `directory`; last `metadata.json`, with the sums of all files."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    (directory / "configs").mkdir()
    (directory / "safetensors").mkdir()
    write_json(directory / "configs" / "params.json", write_params(model.args))
    write_safetensors(state, directory / "safetensors", max_shard_bytes)
    if tokenizer_files or config_fields:
        (directory / "tokenizer").mkdir()
        copy_files(tokenizer_files, directory / "tokenizer")
    if config_fields:
        write_json(directory / CONFIG_FIELDS, dict(config_fields))
    metadata = {
        "format_version": FORMAT_VERSION,
        "layout": "native",
        "dtype": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in state.values()})),
        "parameters": sum(t.numel() for t in state.values()),
        "sha256": {
            str(path.relative_to(directory).as_posix()): sha256(path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        },
        "extra": dict(extra_metadata),
    }
    write_json(directory / METADATA, metadata)


def verify_sums(directory: Path) -> int:
    """Compare every file with its SHA-256 in `metadata.json`.

    Returns:
        How many files were compared; 0 where no sums were stored.

    Raises:
        UserError: a file is missing or not what was written.
    """
    if not (directory / METADATA).is_file():
        return 0
    sums = JsonFile.read(directory / METADATA).get("sha256", dict, {})
    for name, expected in sums.items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path}: is missing, but {METADATA} lists it; copy it again")
        if sha256(path) != expected:
            raise UserError(
                f"{path}: its SHA-256 is not the one in {METADATA}; copy the checkpoint again"
            )
    return len(sums)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
