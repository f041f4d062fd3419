"""Rows as columns: those of the Arrow files, and the small ones that are sampled by.

Letters: N rows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weighted_mtp.core.types import Row
from weighted_mtp.data.rows.metadata import Metadata

LARGEST_FLOAT = 3e38
"""About where float32 ends."""
COLUMNS = {
    "instruction": "string",
    "input": "string",
    "output": "string",
    "task_id": "string",
    "is_correct": "bool",
    "metadata": "string",
    "difficulty": "string",
    "cf_rating": "float32",
    "length": "int32",
    "messages": "string",
}
"""Of an Arrow file: the fields of a row, `metadata` and `messages` as JSON text (empty for a row
without messages), and what is sampled by."""
_SMALL: dict[str, type] = {
    "is_correct": np.bool_,
    "problem": np.int32,
    "difficulty": np.int32,
    "difficulty_number": np.float32,
    "cf_rating": np.float32,
    "length": np.int32,
}
"""The arrays of `Metadata`."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_table(rows: Sequence[Row], schema: Any) -> Any:
    """`pyarrow.Table` of the columns."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        "instruction": [row["instruction"] for row in rows],
        "input": [row["input"] for row in rows],
        "output": [row["output"] for row in rows],
        "task_id": [row["task_id"] for row in rows],
        "is_correct": [row["is_correct"] for row in rows],
        "metadata": [_encode(row["metadata"]) for row in rows],
        "difficulty": [difficulty(row["metadata"]) for row in rows],
        "cf_rating": [cf_rating(row["metadata"]) for row in rows],
        "length": [sum(map(len, texts(row))) for row in rows],
        "messages": [_encode(row["messages"]) if "messages" in row else "" for row in rows],
    }
    return pa.table(columns, schema=schema)


def texts(row: Row) -> tuple[str, ...]:
    """All text of a row: instruction, input and output, or the contents of its messages."""
    said = (message["content"] for message in row.get("messages", ()))
    return (row["instruction"], row["input"], row["output"], *said)


def difficulty(metadata: dict[str, Any]) -> str | None:
    """The label of a row: text as it is, a number as text (3.0 like 3); None for anything else."""
    value = metadata.get("difficulty")
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value) or None


def cf_rating(metadata: dict[str, Any]) -> float | None:
    """The Codeforces rating; None where it is 0, absent or no number."""
    value = metadata.get("cf_rating")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < abs(value) < LARGEST_FLOAT else None


def write_metadata(path: Path, tables: Sequence[Path]) -> None:
    """One record batch of the small columns of all `tables`, so that it maps to plain arrays."""
    import pyarrow as pa

    names = ["is_correct", "task_id", "difficulty", "cf_rating", "length"]
    streams = [pa.ipc.open_stream(pa.memory_map(str(table))) for table in tables]
    table = pa.concat_tables([stream.read_all().select(names) for stream in streams])
    problem, _ = _encoded(table["task_id"])
    found, labels = _encoded(table["difficulty"])
    order = sorted(range(len(labels)), key=lambda i: _natural(labels[i]))
    rank = np.empty(len(labels) + 1, np.int32)  # one more, for −1
    rank[order], rank[-1] = np.arange(len(labels)), -1
    difficulty = rank[found]
    numbers = np.array([*map(_number, labels), math.nan], np.float32)
    columns = {
        "is_correct": table["is_correct"].to_numpy().astype(np.uint8),  # Arrow's bools are bits
        "problem": problem,
        "difficulty": difficulty,
        "difficulty_number": numbers[found],
        "cf_rating": table["cf_rating"].to_numpy().astype(np.float32),
        "length": table["length"].to_numpy(),
    }
    batch = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
    header = {"difficulties": json.dumps([labels[i] for i in order])}
    schema = batch.schema.with_metadata(header)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(header))


def read_metadata(path: Path) -> Metadata:
    """The small columns, memory-mapped.

    Raises:
        OSError, ValueError, KeyError: missing or damaged.
    """
    import pyarrow as pa

    file = pa.ipc.open_file(pa.memory_map(str(path)))
    batch = file.get_batch(0)
    # Not by to_numpy, which imports pandas.
    arrays: dict[str, Any] = {
        name: np.frombuffer(batch[name].buffers()[1], kind, len(batch))
        for name, kind in _SMALL.items()
    }
    labels = json.loads(file.schema.metadata[b"difficulties"])
    return Metadata(difficulties=tuple(labels), **arrays)


def _encoded(column: Any) -> tuple[np.ndarray[Any, np.dtype[np.int32]], list[str]]:
    """`[N]` index of each text among the distinct ones in order of appearance, −1 for none."""
    chunks = column.dictionary_encode().unify_dictionaries().chunks
    indices = [chunk.indices.fill_null(-1).to_numpy() for chunk in chunks]
    return np.concatenate(indices), chunks[0].dictionary.to_pylist()


def _number(label: str) -> float:
    """The number a label spells, NaN if it spells none."""
    spelled = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?", label)
    number = float(label) if spelled else math.nan
    return number if abs(number) < LARGEST_FLOAT else math.nan


def _natural(label: str) -> tuple[bool, float, str]:
    """Sorts numbers by value and before other labels."""
    number = _number(label)
    return (math.isnan(number), 0.0 if math.isnan(number) else number, label)
