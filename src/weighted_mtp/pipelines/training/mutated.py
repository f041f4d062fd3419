"""Rows of micro tasks in which the mutated tokens are no targets.

A wrong program is a right one with one change, and the generator can tell which: it poses the
problem again, and the tokens in which the two programs differ are the mistake.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Row
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.examples import Example
from weighted_mtp.data.loading import Examples
from weighted_mtp.data.rows.metadata import Indices
from weighted_mtp.data.rows.store import RowStore
from weighted_mtp.micro_tasks.family import Problem
from weighted_mtp.micro_tasks.originals import pose_problem

Span = tuple[int, int]


class WithoutMutations:
    """Tokenised rows; in those of wrong programs the mutated tokens are holes."""

    def __init__(self, examples: Examples, spans: dict[int, Span]) -> None:
        self.examples, self.spans = examples, spans

    def __getitem__(self, row: int) -> Example:
        example = self.examples[row]
        if row not in self.spans:
            return example
        first, end = self.spans[row]
        end = min(end, len(example.ids))
        return example._replace(holes=(*example.holes, (first, end))) if first < end else example


def mutated_spans(
    store: RowStore,
    used: Indices,
    collator: AlpacaCollator,
    problems: dict[str, Problem],
    seed: int,
) -> dict[int, Span]:
    """Find the mutated tokens of wrong programs.

    Args:
        used: numbers of the rows to look at; right ones are passed over.
        collator: that made the examples.
        problems: of the data set, by `task_id`.
        seed: of the data set.

    Returns:
        for each wrong row the first mutated token of its sequence and the one after the last.

    Raises:
        UserError: a row does not come from these problems.
    """
    whole = copy.copy(collator)
    whole.max_length = sys.maxsize  # what follows the mistake must not be cut off
    wrong = used[~np.asarray(store.metadata.is_correct)[used]]
    spans = {}
    for number, row in zip(wrong.tolist(), store.rows(wrong), strict=True):
        original = original_row(row, problems, seed)
        if original is None:
            raise UserError(
                f"{store.path}: row {number} was not generated with these settings of data.micro "
                "by this version; remove the file to have it generated again"
            )
        spans[number] = changed_span(whole.encode(original).ids, whole.encode(row).ids)
    return spans


def changed_span(right: Sequence[int], wrong: Sequence[int]) -> Span:
    """Where `wrong` differs from `right`: all but the longest beginning and the longest end they
    share. At least one token: if something was only removed, the first one that should not have
    come yet."""
    shorter = min(len(right), len(wrong))
    first = next((i for i in range(shorter) if right[i] != wrong[i]), shorter)
    left = shorter - first
    shared = next((i for i in range(left) if right[-1 - i] != wrong[-1 - i]), left)
    return first, max(len(wrong) - shared, first + 1)


def original_row(row: Row, problems: dict[str, Problem], seed: int) -> Row | None:
    """The row with the right program that was mutated; None if these problems have none."""
    problem, style = problems.get(row["task_id"]), str(row["metadata"].get("style"))
    if problem is None or style not in problem.family.styles:
        return None
    task = pose_problem(problem, seed)
    if task.instruction != row["instruction"]:
        return None
    original = row.copy()
    original["output"] = task.solutions[style]
    return original
