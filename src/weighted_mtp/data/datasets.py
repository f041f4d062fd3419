"""Rows from JSONL, and the order in which training reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Row

_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELDS: dict[str, type] = {
    "instruction": str,
    "input": str,
    "output": str,
    "task_id": str,
    "is_correct": bool,
    "metadata": dict,
}
_DEFAULTS: dict[str, Any] = {"input": "", "is_correct": True}


def read_jsonl(path: Path) -> list[Row]:
    """All rows of a JSONL file, each checked against the row schema (docs/data.md).

    `input`, `is_correct` and `metadata` may be missing (empty, true, empty); a missing `task_id`
    becomes the line number. Blank lines, a byte-order mark and CRLF line ends are fine.

    Raises:
        UserError: the file cannot be read, has no rows, or a line is malformed.
    """
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path}: no rows; one JSON object a line is expected")
    return rows


def first_row(path: Path) -> Row:
    """The first row of a JSONL file, for a check that reads no more.

    Raises:
        UserError: as for `read_jsonl`.
    """
    for row in _rows(path):
        return row
    raise UserError(f"{path}: no rows; one JSON object a line is expected")


def write_jsonl(path: Path, rows: list[Row]) -> None:
    """Write rows, replacing the file only once all are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.replace(path)


def _rows(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if line.strip():
                    yield parse_row(line, f"{path}, line {number}", number)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def parse_row(line: bytes, where: str, number: int) -> Row:
    """One JSONL line as a row.

    Raises:
        UserError: not UTF-8, not JSON, not an object, or a field of the wrong type; starts with
            `where`.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; re-save as UTF-8") from error
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, or an endless integer
        raise UserError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a row is a JSON object, this is {type(record).__name__}")
    row = {"task_id": f"line-{number}", "metadata": {}, **_DEFAULTS, **record}
    for name, kind in _FIELDS.items():
        if name not in row:
            raise UserError(f"{where}: the field {name!r} is missing")
        if not isinstance(row[name], kind):
            raise UserError(
                f"{where}: the field {name!r} should be {kind.__name__}, "
                f"it is {type(row[name]).__name__}"
            )
        if isinstance(row[name], str) and _SURROGATE.search(row[name]):
            raise UserError(
                f"{where}: the field {name!r} holds half a surrogate pair, which is no text; "
                "remove it"
            )
    return cast(Row, {name: row[name] for name in _FIELDS})


def step_indices(size: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Row indices of one optimizer step, a pure function of its arguments.

    The rows are read in the order of a fresh permutation each epoch, one epoch after another, so
    every row is seen exactly once an epoch and a batch may span two. Because nothing is remembered,
    resuming at any step, on any number of ranks, continues the same sequence.
    """
    start = step * batch_size
    indices: list[int] = []
    while len(indices) < batch_size:
        epoch, offset = divmod(start + len(indices), size)
        order = _permutation(size, seed, epoch)
        indices += order[offset : offset + batch_size - len(indices)].tolist()
    return indices


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray[Any, np.dtype[np.int64]]] = {}


def _permutation(size: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order of one epoch; the last two are kept, a batch can touch no more."""
    key = (size, seed, epoch)
    if key not in _PERMUTATIONS:
        while len(_PERMUTATIONS) > 1:
            _PERMUTATIONS.pop(next(iter(_PERMUTATIONS)))
        _PERMUTATIONS[key] = np.random.default_rng([seed, epoch]).permutation(size)
    return _PERMUTATIONS[key]
