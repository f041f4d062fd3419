"""From the records of a unit to lines of text and counts. Each unit stands for itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from weighted_mtp.core.errors import RowError
from weighted_mtp.core.types import Row
from weighted_mtp.data.prepare.files import Unit
from weighted_mtp.data.prepare.length import LengthLimit, counter
from weighted_mtp.data.prepare.reading import Entry, decode, entries, excerpt
from weighted_mtp.data.prepare.source import BadRecordError, Outcome, Place
from weighted_mtp.data.prepare.sources import SOURCES
from weighted_mtp.data.rows.columns import texts

UNKNOWN_SPLIT = "unknown"
"""Where bad records are counted whose split nobody can tell."""
NO_DIFFICULTY = "(none)"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True)
class Job:
    """What is the same for all units.

    Attributes:
        source: a name in `SOURCES`.
        renamed: pairs of our name of a field and the one it has in the source.
        limit: None keeps rows of any length.
    """

    source: str
    renamed: tuple[tuple[str, str], ...] = ()
    limit: LengthLimit | None = None


class Task(NamedTuple):
    """A unit, and its records where they come from a stream."""

    unit: Unit
    records: tuple[dict[str, Any], ...] | None = None


class Rejection(NamedTuple):
    """A record that could not be used."""

    place: Place
    reason: str
    excerpt: str

    def line(self) -> str:
        """For `rejected.jsonl`."""
        file, unit, number = self.place
        shown = {"file": file, unit: number, "reason": self.reason, "excerpt": self.excerpt}
        return json.dumps(shown) + "\n"  # ASCII: what is bad may not even be text


class Converted(NamedTuple):
    """What became of one record.

    Attributes:
        split: it belongs to.
        outcome: None if it is rejected.
        rows: a line of JSON each.
        codes: of the rows, see `row_code`.
        problem: a line of JSON, "" if the source has none.
    """

    split: str
    outcome: Outcome | None
    rows: list[str]
    codes: list[int]
    problem: str
    rejection: Rejection | None = None


@dataclass
class Tally:
    """Counts of one split.

    Attributes:
        records: read; rejected: of them.
        rows: solutions found in the others; dropped: of them, by reason.
        difficulties: right and wrong rows left, by label.
        problems: with tests.
        ignored: records with a field that is not looked at, by its name.
    """

    records: int = 0
    rejected: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    difficulties: dict[str, list[int]] = field(default_factory=dict)
    problems: int = 0
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, converted: Converted) -> None:
        """Count one record."""
        self.records += 1
        if converted.outcome is None:
            self.rejected += 1
            return
        outcome = converted.outcome
        self.rows += len(outcome.rows) + sum(outcome.drops.values())
        self.dropped.update(outcome.drops)
        self.problems += bool(converted.problem)
        self.ignored.update(outcome.ignored)
        for row in outcome.rows:
            self.count(row, 1)

    def count(self, row: Row, sign: int) -> None:
        """One row more, or less."""
        label = str(row["metadata"].get("difficulty", NO_DIFFICULTY))
        pair = self.difficulties.setdefault(label, [0, 0])
        pair[0 if row["is_correct"] else 1] += sign

    def drop(self, row: Row, reason: str) -> None:
        """A row counted before turns out to be none."""
        self.count(row, -1)
        self.dropped[reason] += 1

    def merge(self, other: Tally) -> None:
        """Add another's counts."""
        self.records += other.records
        self.rejected += other.rejected
        self.rows += other.rows
        self.problems += other.problems
        self.dropped.update(other.dropped)
        self.ignored.update(other.ignored)
        for label, (right, wrong) in other.difficulties.items():
            pair = self.difficulties.setdefault(label, [0, 0])
            pair[0] += right
            pair[1] += wrong

    @property
    def right(self) -> int:
        """Rows left that are right."""
        return sum(pair[0] for pair in self.difficulties.values())

    @property
    def wrong(self) -> int:
        """Rows left that are wrong."""
        return sum(pair[1] for pair in self.difficulties.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))  # `asdict` would spoil the counters

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tally:
        """What `to_json` gave."""
        counters = {name: Counter(values[name]) for name in ("dropped", "ignored")}
        return cls(**{**values, **counters})


def convert_unit(job: Job, task: Task) -> Iterator[Converted]:
    """Every record of a unit, in order.

    Raises:
        UserError: the source cannot be read.
    """
    unit, source = task.unit, SOURCES[job.source]
    renamed = dict(job.renamed)
    columns = source.columns and [renamed.get(name, name) for name in source.columns]
    for number, entry in _entries(task, columns):
        place = Place(unit.path, unit.counted, number)
        try:
            yield _converted(job, unit, source.convert(decode(entry, renamed), place))
        except BadRecordError as error:
            split = unit.split or source.default_split or UNKNOWN_SPLIT
            rejection = Rejection(place, str(error), excerpt(entry))
            yield Converted(split, None, [], [], "", rejection)


def row_code(row: Row) -> int:
    """64 bits: 63 of a hash of instruction, input, output and messages, and whether the row is
    right. Two rows that differ in the last bit only contradict each other.

    Among 4 million rows two different ones share a hash with probability 10⁻⁶.
    """
    parts = [row["instruction"], row["input"], row["output"]]
    for message in row.get("messages", ()):
        parts += [message["role"], message["content"]]
    text = "\0".join(parts)
    number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
    return number >> 1 << 1 | row["is_correct"]


def _entries(task: Task, columns: Sequence[str] | None) -> Iterator[tuple[int, Entry]]:
    if task.records is None:
        yield from entries(task.unit, columns)
    else:
        yield from enumerate(task.records, start=task.unit.first)


def _converted(job: Job, unit: Unit, outcome: Outcome) -> Converted:
    split = unit.split or outcome.split or SOURCES[job.source].default_split or UNKNOWN_SPLIT
    try:
        for row in outcome.rows:  # before a tokenizer counts them
            "".join(texts(row)).encode()
        if job.limit is not None:
            outcome = _within(job.limit, outcome)
        rows = [_encode(row) + "\n" for row in outcome.rows]
        problem = "" if outcome.problem is None else _encode(outcome.problem) + "\n"
        for line in (*rows, problem):
            line.encode()
    except RowError as error:  # of a chat template
        raise BadRecordError(str(error)) from error
    except UnicodeEncodeError as error:
        raise BadRecordError("contains a lone surrogate, which is not valid text") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecordError(f"cannot be written as JSON ({error})") from error
    return Converted(split, outcome, rows, [row_code(row) for row in outcome.rows], problem)


def _within(limit: LengthLimit, outcome: Outcome) -> Outcome:
    """Without the rows that are too long."""
    count = counter(limit)
    kept = [row for row in outcome.rows if count(row) <= limit.max_length]
    outcome.drops["too_long"] += len(outcome.rows) - len(kept)
    return outcome._replace(rows=kept, drops=+outcome.drops)
