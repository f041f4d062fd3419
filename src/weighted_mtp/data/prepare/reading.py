"""The records of one unit, and what is wrong with those that are none."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import InvalidTextError, open_regular, parse_json, read_json
from weighted_mtp.data.datasets import read_lines, unreadable
from weighted_mtp.data.prepare.files import Unit, damaged, open_arrow, open_parquet
from weighted_mtp.data.prepare.source import BadRecordError, Record

Entry: TypeAlias = bytes | Record | BadRecordError
"""A line, a row of a table, or why there is none."""

_BATCH_ROWS, _BATCH_BYTES = 1024, 16 << 20
"""Of a table, in memory at a time. A row of CodeContests may weigh megabytes."""
_LARGEST_ARRAY = 512 << 20


def entries(unit: Unit, columns: Sequence[str] | None) -> Iterator[tuple[int, Entry]]:
    """Number and content of every record.

    Args:
        columns: those to read of a table; None reads all.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(unit.path)
    try:
        if unit.form == "parquet":
            yield from _parquet(unit, columns)
        elif unit.form == "arrow":
            table = open_arrow(path).slice(unit.start, unit.stop - unit.start)
            table = table.select(
                [c for c in columns or table.column_names if c in table.column_names]
            )
            yield from _numbered(table.to_batches(_BATCH_ROWS), unit.first)
        elif unit.form == "json":
            yield from _array(path)
        elif unit.form == "gzip":
            with gzip.open(path, "rb") as packed:
                yield from read_lines(cast(BinaryIO, packed), path)
        else:
            with open_regular(path) as file:
                file.seek(unit.start)
                yield from read_lines(file, path, unit.first, unit.stop - unit.start)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, "a gzip file", error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def decode(entry: Entry, renamed: Mapping[str, str]) -> Record:
    """The record of an entry.

    Args:
        renamed: our name of a field (`metadata.NAME` too) to the name it has in the source.

    Raises:
        BadRecordError: there is none.
    """
    if isinstance(entry, BadRecordError):
        raise entry
    record = _decode_line(entry) if isinstance(entry, bytes) else entry
    return _rename(record, renamed) if renamed else record


def excerpt(entry: Entry, length: int = 200) -> str:
    """The beginning of an entry, for a person to recognise it by."""
    if isinstance(entry, BadRecordError):
        return ""
    if isinstance(entry, bytes):
        return entry[:length].decode("utf-8", errors="replace").strip()
    shown = {str(name): f"{value!r:.60}" for name, value in entry.items()}
    return str(shown)[:length]


def _parquet(unit: Unit, columns: Sequence[str] | None) -> Iterator[tuple[int, Entry]]:
    import pyarrow

    with open_parquet(Path(unit.path)) as file:
        there = file.schema_arrow.names
        group = file.metadata.row_group(unit.start)
        weight = group.total_byte_size // max(1, group.num_rows)
        batches = file.iter_batches(
            max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, weight))),
            row_groups=list(range(unit.start, unit.stop)),
            columns=[name for name in columns or there if name in there],
            use_threads=False,
        )
        try:
            yield from _numbered(batches, unit.first)
        except (pyarrow.ArrowException, OSError) as error:
            where = f"{unit.path}, row group {unit.start}"
            raise damaged(where, "readable", error) from error


def _numbered(batches: Iterable[Any], first: int) -> Iterator[tuple[int, Entry]]:
    for batch in batches:
        for offset in range(batch.num_rows):
            yield first + offset, _table_row(batch.slice(offset, 1))
        first += batch.num_rows


def _table_row(row: Any) -> Entry:
    """One row as Python values; text that is no UTF-8 shows only now."""
    try:
        values: dict[str, Any] = row.to_pylist()[0]
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        return BadRecordError(f"cannot be read: {' '.join(str(error).split())[:120]}")
    return values


def _array(path: Path) -> Iterator[tuple[int, Entry]]:
    """A JSON file that is one list, as sanitized MBPP is published."""
    if path.stat().st_size > _LARGEST_ARRAY:
        raise UserError(f"{path}: one list of over 512 MiB; write it as JSONL, one object a line")
    try:
        items = read_json(path)
    except InvalidTextError as error:
        raise UserError(f"{path}: {error}") from error
    for number, item in enumerate(items, start=1):
        kind = type(item).__name__
        yield number, item if isinstance(item, dict) else BadRecordError(f"no object, but {kind}")


def _decode_line(line: bytes) -> Record:
    try:
        record = parse_json(line)
    except InvalidTextError as error:
        raise BadRecordError(str(error)) from error
    if not isinstance(record, dict):
        raise BadRecordError(f"a record is a JSON object, this is {type(record).__name__}")
    return record


def _rename(record: Record, renamed: Mapping[str, str]) -> Record:
    result = {name: value for name, value in record.items() if name not in renamed.values()}
    for ours, theirs in renamed.items():
        if theirs not in record:
            continue
        if ours.startswith("metadata."):
            metadata = result.get("metadata") or {}
            if not isinstance(metadata, dict):
                raise BadRecordError("the field 'metadata' should be an object")
            result["metadata"] = {**metadata, ours.removeprefix("metadata."): record[theirs]}
        else:
            result[ours] = record[theirs]
    return result
