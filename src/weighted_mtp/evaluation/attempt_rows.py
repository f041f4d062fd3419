"""Labelled rows made of the programs that a model wrote and the sandbox judged."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json_lines
from weighted_mtp.core.types import Row
from weighted_mtp.evaluation.result_files import JOURNAL, PROBLEMS


@dataclass(frozen=True)
class Selection:
    """Which attempts become rows.

    Attributes:
        per_problem: maximum number of correct, and of incorrect, programs of a problem.
        mixed: leave out problems of which all programs are alike (critics and preferences learn
            nothing from them).
        seed: of the choice among more programs than `per_problem`.
    """

    per_problem: int = 4
    mixed: bool = False
    seed: int = 0


@dataclass(frozen=True)
class AttemptRows:
    """Rows, and what was left out.

    Attributes:
        duplicates: attempts whose program another attempt of the problem has.
        unwritten: attempts without a program (the prompt was too long, or the answer empty).
        surplus: attempts beyond `Selection.per_problem`, and those that a balance leaves out.
        alike: problems that `Selection.mixed` leaves out.
    """

    rows: list[Row]
    duplicates: int = 0
    unwritten: int = 0
    surplus: int = 0
    alike: int = 0


def results_directory(path: Path) -> Path:
    """Return the results directory of an evaluation that is named by it or by its programs file.

    Raises:
        UserError: it is neither, or the evaluation has not ended.
    """
    folder = path.with_suffix(".evaluation") if path.suffix == ".jsonl" else path
    if not (folder / JOURNAL).is_file():
        raise UserError(
            f"{path}: not the results of an evaluation; give the directory that evaluate names, "
            f"which has a file {JOURNAL} (micro tasks: RUN/evaluation/micro-SPLIT.evaluation)"
        )
    if not (folder / PROBLEMS).is_file():
        raise UserError(
            f"{folder}: the evaluation has not ended, or is of an earlier version; run the same "
            "evaluate command again, which resumes it"
        )
    return folder


def attempt_rows(folders: Iterable[Path], selection: Selection) -> AttemptRows:
    """Make rows of the attempts in results directories.

    A program counts once for a problem. Of a problem with correct and incorrect programs equally
    many of both are kept.

    Raises:
        UserError: a directory is not of an evaluation.
    """
    found: dict[str, dict[str, Row]] = {}
    duplicates = unwritten = 0
    for folder in folders:
        problems = {str(p.get("task_id")): p for p in read_json_lines(folder / PROBLEMS)[0]}
        for attempt in read_json_lines(folder / JOURNAL)[0]:
            task_id, program = str(attempt.get("task_id")), attempt.get("solution")
            problem = problems.get(task_id)
            if problem is None or not isinstance(program, str) or not program.strip():
                unwritten += 1
                continue
            rows = found.setdefault(task_id, {})
            duplicates += program in rows
            rows.setdefault(program, _row(problem, attempt, program))
    return _selected(found, selection, duplicates, unwritten)


def _row(problem: dict[str, Any], attempt: dict[str, Any], program: str) -> Row:
    status = str(attempt.get("status"))
    metadata: dict[str, Any] = {"source": "attempts", "status": status}
    if isinstance(attempt.get("logprob"), (int, float)):
        metadata["logprob"] = attempt["logprob"]
    return {
        "instruction": str(problem.get("instruction", "")),
        "input": str(problem.get("input", "")),
        "output": program,
        "task_id": str(problem["task_id"]),
        "is_correct": status == "passed",
        "metadata": metadata,
    }


def _selected(
    found: dict[str, dict[str, Row]], selection: Selection, duplicates: int, unwritten: int
) -> AttemptRows:
    rows: list[Row] = []
    surplus = alike = 0
    for task_id, by_program in found.items():
        sides = [
            [row for row in by_program.values() if row["is_correct"] == x] for x in (True, False)
        ]
        sizes = [len(side) for side in sides if side]
        if selection.mixed and len(sizes) < 2:
            alike += 1
            continue
        count = min(selection.per_problem, *sizes)
        for side in sides:
            kept = _drawn(side, count, f"{selection.seed}/{task_id}")
            surplus += len(side) - len(kept)
            rows += kept
    return AttemptRows(rows, duplicates, unwritten, surplus, alike)


def _drawn(side: Sequence[Row], count: int, seed: str) -> list[Row]:
    """Draw some, whatever the order in which they were judged, which depends on running times."""
    ordered = sorted(side, key=lambda row: row["output"])
    if len(ordered) <= count:
        return ordered
    places = random.Random(seed).sample(range(len(ordered)), count)
    return [ordered[place] for place in sorted(places)]
