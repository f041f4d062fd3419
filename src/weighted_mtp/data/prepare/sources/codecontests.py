"""CodeContests (Li et al. 2022, arXiv:2203.07814) as Hugging Face has it: deepmind/code_contests.

A record is a problem with its tests and thousands of right and wrong solutions; kept are those in
Python 3. `difficulty` is a category ("EASY", "HARD", "A" … "V" for the place in a Codeforces
round): its code is not a quantity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from weighted_mtp.core.types import Row
from weighted_mtp.data.prepare.python_source import NotPythonError, digest, unix_lines
from weighted_mtp.data.prepare.source import (
    BadRecordError,
    Outcome,
    Place,
    Problem,
    Record,
    Source,
    text_field,
    text_list,
)

DIFFICULTIES = (
    *("UNKNOWN_DIFFICULTY", "EASY", "MEDIUM", "HARD", "HARDER", "HARDEST", "EXTERNAL"),
    *"ABCDEFGHIJKLMNOPQRSTUV",
)
LANGUAGES = ("UNKNOWN_LANGUAGE", "PYTHON", "CPP", "PYTHON3", "JAVA")
ORIGINS = (
    *("UNKNOWN_SOURCE", "CODECHEF", "CODEFORCES", "HACKEREARTH", "CODEJAM", "ATCODER", "AIZU"),
)
TESTS = ("public", "private", "generated")
_WRONG_LANGUAGE = {"PYTHON": "python2"}


class Solution(NamedTuple):
    """One solution of a problem, as the judge labelled it."""

    language: str
    code: str
    is_correct: bool


def convert(record: Record, place: Place) -> Outcome:
    """The problem with all its tests, and its Python 3 solutions."""
    name = text_field(record, "name").strip()
    description = unix_lines(text_field(record, "description")).strip()
    tests = {kind: _tests(record, f"{kind}_tests") for kind in TESTS}
    difficulty = _named(record, "difficulty", DIFFICULTIES)
    rating = _positive(record.get("cf_rating"))
    solutions = [*_solutions(record, "solutions", True)]
    solutions += _solutions(record, "incorrect_solutions", False)

    task_id = f"codecontests/{name}"
    metadata: dict[str, Any] = {
        "source": "codecontests",
        "origin": _named(record, "source", ORIGINS),
        "difficulty": difficulty,
        "has_tests": any(tests.values()),
    }
    if rating is not None:
        metadata["cf_rating"] = rating
    examples = format_examples(tests["public"])
    kept, drops = choose(solutions)
    rows: list[Row] = [
        {
            "instruction": description,
            "input": examples,
            "output": code,
            "task_id": task_id,
            "is_correct": is_correct,
            "metadata": metadata,
        }
        for code, is_correct in kept
    ]
    problem: Problem = {
        "task_id": task_id,
        "style": "stdio",
        "instruction": description,
        "input": examples,
        **metadata,
        "tests": tests,
        **_limits(record),
        "tags": [tag for tag in text_list(record, "cf_tags") if tag],
        "translated": record.get("is_description_translated") is True,
    }
    return Outcome(problem, rows, drops)


def choose(solutions: Sequence[Solution]) -> tuple[list[tuple[str, bool]], Counter[str]]:
    """The code of solutions that are Python 3, each once; what is both right and wrong goes."""
    drops: Counter[str] = Counter()
    readable: list[tuple[bytes, str, bool]] = []
    for language, code, is_correct in solutions:
        if language != "PYTHON3":
            drops[_WRONG_LANGUAGE.get(language, "other_language")] += 1
            continue
        try:
            readable.append((digest(code), unix_lines(code), is_correct))
        except NotPythonError as error:
            drops[error.reason] += 1
    labels: dict[bytes, set[bool]] = {}
    for key, _, is_correct in readable:
        labels.setdefault(key, set()).add(is_correct)
    kept: list[tuple[str, bool]] = []
    taken: set[bytes] = set()
    for key, code, is_correct in readable:
        if len(labels[key]) > 1:
            drops["contradictory"] += 1
        elif key in taken:
            drops["duplicate"] += 1
        else:
            taken.add(key)
            kept.append((code, is_correct))
    return kept, drops


def format_examples(tests: Sequence[dict[str, str]]) -> str:
    """The public tests as a person reads them."""
    return "\n\n".join(
        f"Input:\n{test['input'].strip()}\nOutput:\n{test['output'].strip()}" for test in tests
    )


def _tests(record: Record, name: str) -> list[dict[str, str]]:
    """Pairs of what is read and what is to be printed."""
    pairs = zip(*_columns(record, name, ("input", "output")), strict=True)
    tests = [{"input": read, "output": printed} for read, printed in pairs]
    if not all(isinstance(value, str) for test in tests for value in test.values()):
        raise BadRecordError(f"the field {name!r} contains a test that is not text")
    return [{key: unix_lines(value) for key, value in test.items()} for test in tests]


def _solutions(record: Record, name: str, is_correct: bool) -> Iterator[Solution]:
    for language, code in zip(*_columns(record, name, ("language", "solution")), strict=True):
        if not isinstance(code, str):
            raise BadRecordError(f"the field {name!r} contains a solution that is not text")
        yield Solution(_name(language, LANGUAGES, name), code, is_correct)


def _columns(record: Record, name: str, keys: Sequence[str]) -> list[list[Any]]:
    """The lists of a struct of lists; a list of structs is read the same."""
    value = record.get(name)
    if value is None:
        return [[] for _ in keys]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {key: [item.get(key) for item in value] for key in keys}
    if not isinstance(value, dict):
        raise BadRecordError(f"the field {name!r} should hold {' and '.join(keys)}")
    columns = [[] if value.get(key) is None else value[key] for key in keys]
    if not all(isinstance(column, list) for column in columns):
        raise BadRecordError(f"the field {name!r} should hold lists of {' and '.join(keys)}")
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{len(c)} {key}" for key, c in zip(keys, columns, strict=True))
        raise BadRecordError(f"the field {name!r} has lists of unequal length ({lengths})")
    return columns


def _named(record: Record, field: str, names: Sequence[str]) -> str:
    value = record.get(field)
    return names[0] if value is None else _name(value, names, field)


def _name(value: Any, names: Sequence[str], field: str) -> str:
    """The name of a code; a name is taken as it is."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return names[value]
    if isinstance(value, str) and value in names:
        return value
    raise BadRecordError(f"the field {field!r} holds {value!r:.40}, a code that is not known")


def _limits(record: Record) -> dict[str, Any]:
    """What a run may use, and the files it reads and writes in place of standard input and
    output, where the problem says so."""
    time = record.get("time_limit")
    time = time if isinstance(time, dict) else {}
    seconds = (_positive(time.get("seconds")) or 0) + (_positive(time.get("nanos")) or 0) / 1e9
    limits: dict[str, Any] = {
        "time_limit_seconds": seconds or None,
        "memory_limit_bytes": _positive(record.get("memory_limit_bytes")),
    }
    for name in ("input_file", "output_file"):
        if isinstance(record.get(name), str) and record[name].strip():
            limits[name] = record[name].strip()
    return limits


def _positive(value: Any) -> int | float | None:
    """A number above 0; CodeContests writes 0 for "not known"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) and value > 0 else None


SOURCE = Source(
    "codecontests",
    "CodeContests: right and wrong Python 3 solutions of contest problems",
    convert,
    columns=(
        *("name", "description", "source", "difficulty", "solutions", "incorrect_solutions"),
        *("public_tests", "private_tests", "generated_tests", "cf_rating", "cf_tags"),
        *("is_description_translated", "time_limit", "memory_limit_bytes"),
        *("input_file", "output_file"),
    ),
)
