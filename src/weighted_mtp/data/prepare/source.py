"""What a source is: a function from one record to a problem and its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from weighted_mtp.core.types import Row

Record: TypeAlias = Mapping[str, Any]
"""One line of a JSONL file, or one row of a table."""
Problem: TypeAlias = dict[str, Any]
"""A line of `problems.SPLIT.jsonl`: `task_id`, `instruction`, `tests`, … (docs/data.md)."""


class BadRecordError(Exception):
    """A record that cannot be used; the message says why, in words for a person."""


class Place(NamedTuple):
    """Where a record stands: a file, and a line or a row of it, counted from 1."""

    file: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


class Outcome(NamedTuple):
    """What became of a record.

    Attributes:
        problem: None for sources that know no tests.
        rows: those kept.
        drops: how many solutions were left out on purpose, by reason.
        split: of the record, where it tells itself and the file's name does not.
        ignored: fields that were not looked at.
    """

    problem: Problem | None
    rows: list[Row]
    drops: Counter[str]
    split: str | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A kind of data set.

    Attributes:
        name: of the sub-command.
        summary: for its help.
        convert: raises `BadRecordError`, and nothing else, whatever the record.
        columns: those read of a table; None reads all.
        default_split: of files whose names tell none; None asks for `--split`.
        finds_split: `convert` tells the split of a record whose file does not.
        bundled: a file that comes with a package, for when no source is given.
    """

    name: str
    summary: str
    convert: Callable[[Record, Place], Outcome]
    columns: tuple[str, ...] | None = None
    default_split: str | None = None
    finds_split: bool = False
    bundled: Callable[[], Path] | None = None


def text_field(record: Record, name: str) -> str:
    """A field that must be text with something in it.

    Raises:
        BadRecordError: it is missing, empty or no text.
    """
    value = record.get(name)
    if value is None:
        raise BadRecordError(f"the field {name!r} is missing")
    if not isinstance(value, str):
        raise BadRecordError(f"the field {name!r} should be text, it is {type(value).__name__}")
    if not value.strip():
        raise BadRecordError(f"the field {name!r} is empty")
    return value


def text_list(record: Record, name: str) -> list[str]:
    """A field that is a list of texts; a missing one is empty.

    Raises:
        BadRecordError: it is something else.
    """
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRecordError(f"the field {name!r} should be a list of texts")
    return value
