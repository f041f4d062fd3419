"""Meta's layout: `params.json` and `consolidated*.pth`, one file for each model-parallel rank."""

from __future__ import annotations

import re
from pathlib import Path

from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile
from weighted_mtp.models.meta_mtp.layouts.params import read_params
from weighted_mtp.models.meta_mtp.layouts.skeleton import check_size
from weighted_mtp.models.meta_mtp.layouts.source import (
    EMBEDDING,
    Part,
    Source,
    Stored,
    assemble,
    index_parts,
)
from weighted_mtp.models.meta_mtp.layouts.tensor_files import PickleFile, TensorFile

PATTERN = "consolidated*.pth"
_SPLIT_BY_COLUMN = ("attention.wo.weight", "feed_forward.w2.weight")  # their inputs are split


def read_meta(directory: Path) -> Source:
    """What a checkpoint in Meta's layout holds.

    Raises:
        UserError: anything is missing, damaged or does not fit together; file and key are named.
    """
    params = JsonFile.read(directory / "params.json")
    files: list[TensorFile] = [PickleFile(path) for path in _shard_paths(directory)]
    _check_same_keys(files)
    index = index_parts(files)
    if EMBEDDING not in index:
        raise UserError(f"{files[0].path}: lacks key {EMBEDDING}; copy the checkpoint again")
    rows = _embedding_rows(index[EMBEDDING], params.get("dim", int))
    args = read_params(params, rows)
    check_size(args, params.path, len(index))
    return assemble("meta", args, files, directory, ignored=_is_rope_table, store=_merge)


def _is_rope_table(key: str) -> bool:
    return key.endswith("rope.freqs") or key == "freqs_cis"


def _shard_paths(directory: Path) -> list[Path]:
    paths = sorted(directory.glob(PATTERN))
    numbers = [int(n[1]) for p in paths if (n := re.fullmatch(r"consolidated\.(\d+)\.pth", p.name))]
    if not paths:
        raise UserError(f"{directory}: holds params.json but no {PATTERN}; copy the weights too")
    if len(paths) > 1 and sorted(numbers) != list(range(len(paths))):
        names = ", ".join(path.name for path in paths)
        raise UserError(f"{directory}: shards are missing or too many ({names}); copy them again")
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def _check_same_keys(files: list[TensorFile]) -> None:
    first = files[0]
    for file in files[1:]:
        for one, other in ((first, file), (file, first)):
            lacking = [key for key in one.header if key not in other.header]
            if lacking:
                raise UserError(
                    f"{other.path}: lacks key {lacking[0]}, which {one.path.name} holds "
                    f"({len(lacking)} in all); copy the shards again"
                )


def _embedding_rows(parts: tuple[Part, ...], dim: int) -> int:
    rows = [part.shape[0] if part.shape else 0 for part in parts]
    return sum(rows) if _split_by_vocabulary(parts, dim) else rows[0]


def _split_by_vocabulary(parts: tuple[Part, ...], dim: int) -> bool:
    """Llama 3 cuts the embedding by tokens, earlier releases by width: a shard's width tells."""
    return len(parts[0].shape) > 1 and parts[0].shape[1] == dim


def _merge(name: str, shape: tuple[int, ...], parts: tuple[Part, ...]) -> Stored:
    if name.endswith("norm.weight"):  # every rank has the whole
        return Stored(parts[:1])
    if name == EMBEDDING:
        return Stored(parts, dim=0 if _split_by_vocabulary(parts, shape[1]) else 1)
    return Stored(parts, dim=1 if name.endswith(_SPLIT_BY_COLUMN) else 0)
