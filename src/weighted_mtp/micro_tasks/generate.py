"""Rows from problems: put into words, solved rightly and wrongly, every label from running."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Judge, Program, Row
from weighted_mtp.micro_tasks.catalogue import FAMILIES, draw_problems
from weighted_mtp.micro_tasks.family import SPLITS, Family, Split, Task
from weighted_mtp.micro_tasks.mutations import Mutation, mutations
from weighted_mtp.micro_tasks.originals import pose_problem
from weighted_mtp.micro_tasks.packing import Outcome, run_packed

AT_ONCE = 500
"""Problems between two reports of progress."""
ROUNDS = 4
"""How often a problem is asked for more mutants while its wrong solutions are not near misses."""


def generate(
    n_problems: int,
    seed: int,
    judge: Judge,
    split: Split = "train",
    correct_per_problem: int = 1,
    incorrect_per_problem: int = 0,
    families: Sequence[Family] = FAMILIES,
    on_progress: Callable[[int], object] | None = None,
) -> list[Row]:
    """Generate labelled solutions to `n_problems` different problems of one split.

    The same arguments give the same rows on every machine. A problem belongs to one split,
    whatever the seed, and all rows of a problem share instruction and tests.

    Args:
        n_problems: how many, spread evenly over the families while they last.
        seed: chooses problems, wording, names, inputs, styles and mutations.
        judge: runs the programs; every row's label is its verdict.
        split: "train", "validation", "test" or "compositions".
        correct_per_problem: right solutions of each problem, each in another style.
        incorrect_per_problem: wrong solutions of each problem, mutants of right ones, those
            preferred that still pass some of the tests.
        families: where the problems come from.
        on_progress: told now and then how many more problems are done.

    Raises:
        UserError: more is asked for than the families hold.
        RuntimeError: a solution that should be right failed its tests.
    """
    _check(n_problems, split, correct_per_problem, incorrect_per_problem, families)
    problems = draw_problems(n_problems, seed, split, families)
    rows: list[Row] = []
    for start in range(0, len(problems), AT_ONCE):
        part = problems[start : start + AT_ONCE]
        tasks = [pose_problem(x, seed) for x in part]
        right = _correct_rows(tasks, seed, judge, correct_per_problem)
        wrong = _incorrect_rows(tasks, seed, judge, incorrect_per_problem)
        rows += [row for both in zip(right, wrong, strict=True) for some in both for row in some]
        if on_progress is not None:
            on_progress(len(part))
    return rows


def _correct_rows(tasks: Sequence[Task], seed: int, judge: Judge, count: int) -> list[list[Row]]:
    """`count` right solutions of each task."""
    chosen = []
    for task in tasks:
        rng = Random(f"styles/{seed}/{task.problem.task_id}")
        chosen.append(rng.sample(sorted(task.solutions), count))
    programs = [
        Program(task.solutions[style], task.tests)
        for task, styles in zip(tasks, chosen, strict=True)
        for style in styles
    ]
    outcomes = iter(run_packed(judge, programs))
    rows: list[list[Row]] = []
    for task, styles in zip(tasks, chosen, strict=True):
        rows.append([])
        for style in styles:
            source, outcome = task.solutions[style], next(outcomes)
            if not outcome.passed:
                raise RuntimeError(
                    f"{task.problem.task_id}, {style}, is not right: {outcome}\n{source}"
                )
            rows[-1].append(_row(task, source, outcome, style=style))
    return rows


def _incorrect_rows(tasks: Sequence[Task], seed: int, judge: Judge, count: int) -> list[list[Row]]:
    """`count` wrong solutions of each task; mutants that pass are not wrong and are dropped."""
    searches = [_Search(task, seed, count) for task in tasks]
    while open_searches := [search for search in searches if not search.done]:
        batch = [(search, *tried) for search in open_searches for tried in search.more()]
        programs = [Program(source, search.task.tests) for search, _, source in batch]
        for (search, mutation, source), outcome in zip(
            batch, run_packed(judge, programs), strict=True
        ):
            search.saw(mutation, source, outcome)
    return [search.rows() for search in searches]


class _Search:
    """The hunt for one task's wrong solutions, a few mutants at a time."""

    def __init__(self, task: Task, seed: int, count: int) -> None:
        self.task, self.count = task, count
        self._candidates = _candidates(task, seed)
        self._wrong: list[tuple[int, Mutation, str, Outcome]] = []
        self._rounds = 0
        self.done = count == 0

    def more(self) -> list[tuple[Mutation, str]]:
        """The next mutants to try; none left is an error where wrong ones are missing."""
        tried = list(itertools.islice(self._candidates, self.count + 1))
        self._rounds += 1
        if not tried:
            self.done = True
            if len(self._wrong) < self.count:
                raise UserError(
                    f"micro tasks: {self.task.problem.task_id} has only {len(self._wrong)} wrong "
                    f"variants, incorrect_per_problem={self.count} was asked for"
                )
        return tried

    def saw(self, mutation: Mutation, source: str, outcome: Outcome) -> None:
        """Take note of a mutant; the search ends with enough near misses, or enough rounds."""
        if outcome.passed:
            return
        self._wrong.append((_miss(outcome), mutation, source, outcome))
        near = sum(miss == 0 for miss, *_ in self._wrong)
        patient = self._rounds < ROUNDS
        self.done = near >= self.count or (not patient and len(self._wrong) >= self.count)

    def rows(self) -> list[Row]:
        """The nearest misses, early ones first."""
        best = sorted(self._wrong, key=lambda entry: entry[0])[: self.count]
        return [
            _row(self.task, source, outcome, mutation.style, mutation.operator)
            for _, mutation, source, outcome in best
        ]


def _miss(outcome: Outcome) -> int:
    """How far off a wrong program is: 0 for one that passes some tests and fails the others."""
    if outcome.status == "failed":
        return 0 if outcome.tests_passed else 1
    return 2 if outcome.status == "error" else 3


def _candidates(task: Task, seed: int) -> Iterator[tuple[Mutation, str]]:
    """Different mutants of a task's solutions, one style after the other, operators in turn."""
    rng = Random(f"mutate/{seed}/{task.problem.task_id}")
    seen = set(task.solutions.values())
    for style in rng.sample(sorted(task.solutions), len(task.solutions)):
        by_operator: dict[str, list[Mutation]] = {}
        for mutation in mutations(style, task.solutions[style]):
            by_operator.setdefault(mutation.operator, []).append(mutation)
        queues = list(by_operator.values())
        rng.shuffle(queues)
        for queue in queues:
            rng.shuffle(queue)
        for mutation in itertools.chain.from_iterable(itertools.zip_longest(*queues)):
            if mutation is not None and (source := mutation.source()) not in seen:
                seen.add(source)
                yield mutation, source


def _row(task: Task, source: str, outcome: Outcome, style: str, mutation: str | None = None) -> Row:
    family = task.problem.family
    metadata: dict[str, Any] = {
        "source": "micro",
        "family": family.label,
        "difficulty": family.difficulty,
        "has_tests": True,
        "split": task.problem.split,
        "entry_point": task.entry_point,
        "tests": list(task.tests),
        "style": style,
    }
    if family.parts:
        metadata["parts"] = list(family.parts)
    if mutation is not None:
        metadata["mutation"] = mutation
        metadata["tests_passed"] = outcome.tests_passed
    return Row(
        instruction=task.instruction,
        input="",
        output=source,
        task_id=task.problem.task_id,
        is_correct=outcome.passed,
        metadata=metadata,
    )


def _check(
    n_problems: int, split: str, correct: int, incorrect: int, families: Sequence[Family]
) -> None:
    """Refuse what makes no sense before anything is run."""
    if min(n_problems, correct, incorrect) < 0:
        raise UserError("micro tasks: counts must not be negative")
    if split not in SPLITS:
        raise UserError(f"micro tasks: split {split!r} is none of {', '.join(SPLITS)}")
    for family in families:
        if correct > len(family.styles):
            raise UserError(
                f"micro tasks: correct_per_problem={correct}, but family {family.name!r} has "
                f"{len(family.styles)} styles"
            )
