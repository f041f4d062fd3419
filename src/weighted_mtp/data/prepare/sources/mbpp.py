"""MBPP (Austin et al. 2021, arXiv:2108.07732), full or sanitized: short problems with asserts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from weighted_mtp.core.types import Row
from weighted_mtp.data.prepare.python_source import (
    NotPythonError,
    called,
    functions,
    parse,
    tidy,
    unix_lines,
)
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

_SPLITS = (("prompt", 10), ("test", 510), ("validation", 600), ("train", 974))
"""Last task of each split, as the paper cuts them."""


def convert(record: Record, place: Place) -> Outcome:
    """One problem, one row: the reference solution. The instruction names the function, which the
    text alone does not."""
    task = _task(record)
    text = unix_lines(text_field(record, "text" if record.get("text") else "prompt")).strip()
    tests = [unix_lines(test).strip() for test in text_list(record, "test_list")]
    if not any(tests):
        raise BadRecordError("the field 'test_list' holds no tests")
    try:
        code = tidy(text_field(record, "code"))
    except NotPythonError as error:
        raise BadRecordError(f"the field 'code' is no Python 3 ({error.reason})") from error
    entry_point = find_entry_point(code, tests)
    task_id = f"mbpp/{task}"
    instruction = (
        f"{text}\nName the function `{entry_point}`. This test, for one, must pass:\n{tests[0]}"
    )
    row: Row = {
        "instruction": instruction,
        "input": "",
        "output": code,
        "task_id": task_id,
        "is_correct": True,
        "metadata": {"source": "mbpp", "has_tests": True, "entry_point": entry_point},
    }
    problem: Problem = {
        "task_id": task_id,
        "style": "asserts",
        "instruction": instruction,
        "input": "",
        "source": "mbpp",
        "entry_point": entry_point,
        "tests": tests,
        "challenge_test_list": text_list(record, "challenge_test_list"),
        "test_setup_code": _setup(record),
        "canonical_solution": code,
    }
    return Outcome(problem, [row], Counter(), _split(task))


def find_entry_point(code: str, tests: list[str]) -> str:
    """The function of `code` that the first test calls.

    Raises:
        BadRecordError: it calls none, or is no Python.
    """
    try:
        wanted, there = called(parse(tests[0])), functions(parse(code))
    except NotPythonError as error:
        raise BadRecordError(f"the first test is no Python 3 ({error.reason})") from error
    found = [name for name in wanted if name in there]
    if not found:
        raise BadRecordError("the first test calls no function that 'code' defines")
    return found[0]


def _task(record: Record) -> int:
    task: Any = record.get("task_id")
    if isinstance(task, bool) or not isinstance(task, int):
        raise BadRecordError("the field 'task_id' should be a number")
    return task


def _setup(record: Record) -> str:
    """What runs before the tests: full MBPP has code, sanitized MBPP a list of imports."""
    code = record.get("test_setup_code")
    if code is not None and not isinstance(code, str):
        raise BadRecordError("the field 'test_setup_code' should be text")
    parts = [*text_list(record, "test_imports"), unix_lines(code or "")]
    return "\n".join(part for part in parts if part)


def _split(task: int) -> str:
    return next((name for name, last in _SPLITS if task <= last), "train")


SOURCE = Source(
    "mbpp",
    "MBPP: short problems, each with a right solution and asserts",
    convert,
    columns=(
        *("task_id", "text", "prompt", "code", "test_list", "test_setup_code", "test_imports"),
        "challenge_test_list",
    ),
    finds_split=True,
)
