"""Rows from families: problems drawn by seed, every label from running the program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Judge, Program, Row, Verdict
from weighted_mtp.data.micro_tasks.families import FAMILIES
from weighted_mtp.data.micro_tasks.family import SPLITS, Family, Problem, Split, Task, pose
from weighted_mtp.data.micro_tasks.mutations import Mutation, mutations


def generate(
    n_problems: int,
    seed: int,
    judge: Judge,
    split: Split = "train",
    correct_per_problem: int = 1,
    incorrect_per_problem: int = 0,
    families: Sequence[Family] = FAMILIES,
) -> list[Row]:
    """Generate labelled solutions to `n_problems` different problems of one split.

    The same arguments give the same rows on every machine. A problem belongs to one split,
    whatever the seed, and all rows of a problem share instruction and tests.

    Args:
        n_problems: how many, spread evenly over the families while they last.
        seed: chooses problems, wording, names, inputs, styles and mutations.
        judge: runs the programs; every row's label is its verdict.
        split: "train", "validation" or "test".
        correct_per_problem: right solutions of each problem, each in another style.
        incorrect_per_problem: wrong solutions of each problem, mutants of right ones.
        families: where the problems come from.

    Raises:
        UserError: more is asked for than the families hold.
        RuntimeError: a solution that should be right failed its tests.
    """
    _check(n_problems, split, correct_per_problem, incorrect_per_problem, families)
    tasks = [
        pose(problem, Random(f"pose/{seed}/{problem.task_id}"))
        for problem in draw_problems(n_problems, seed, split, families)
    ]
    right = _correct_rows(tasks, seed, judge, correct_per_problem)
    wrong = _incorrect_rows(tasks, seed, judge, incorrect_per_problem)
    return [row for pair in zip(right, wrong, strict=True) for rows in pair for row in rows]


def draw_problems(
    count: int, seed: int, split: Split, families: Sequence[Family] = FAMILIES
) -> list[Problem]:
    """Different problems of one split, taken from the families in turn."""
    queues = []
    for family in families:
        problems = [problem for problem in family.problems() if problem.split == split]
        Random(f"draw/{seed}/{split}/{family.name}").shuffle(problems)
        queues.append(problems)
    Random(f"families/{seed}/{split}").shuffle(queues)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    drawn = list(itertools.islice((problem for problem in turns if problem is not None), count))
    if len(drawn) < count:
        raise UserError(
            f"micro tasks: split {split!r} holds {len(drawn)} problems, {count} were asked for"
        )
    Random(f"order/{seed}/{split}").shuffle(drawn)
    return drawn


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
    verdicts = iter(judge(programs))
    rows: list[list[Row]] = []
    for task, styles in zip(tasks, chosen, strict=True):
        rows.append([])
        for style in styles:
            source, verdict = task.solutions[style], next(verdicts)
            if not verdict.passed:
                seen = f"{verdict.status}: {verdict.detail}"
                raise RuntimeError(
                    f"{task.problem.task_id}, {style}, is not right: {seen}\n{source}"
                )
            rows[-1].append(_row(task, source, verdict, style=style))
    return rows


def _incorrect_rows(tasks: Sequence[Task], seed: int, judge: Judge, count: int) -> list[list[Row]]:
    """`count` wrong solutions of each task; mutants that pass are not wrong and are dropped."""
    rows: list[list[Row]] = [[] for _ in tasks]
    candidates = [_candidates(task, seed) for task in tasks]
    open_tasks = list(range(len(tasks))) if count else []
    while open_tasks:
        batch: list[tuple[int, Mutation, str]] = []
        for index in open_tasks:
            tried = list(itertools.islice(candidates[index], count - len(rows[index])))
            if not tried:
                raise UserError(
                    f"micro tasks: {tasks[index].problem.task_id} has only {len(rows[index])} "
                    f"wrong variants, incorrect_per_problem={count} was asked for"
                )
            batch += [(index, mutation, source) for mutation, source in tried]
        verdicts = judge([Program(source, tasks[index].tests) for index, _, source in batch])
        for (index, mutation, source), verdict in zip(batch, verdicts, strict=True):
            if not verdict.passed:
                row = _row(tasks[index], source, verdict, mutation.style, mutation.operator)
                rows[index].append(row)
        open_tasks = [index for index in open_tasks if len(rows[index]) < count]
    return rows


def _candidates(task: Task, seed: int) -> Iterator[tuple[Mutation, str]]:
    """Different mutants of a task's solutions, the operators taking turns."""
    rng = Random(f"mutate/{seed}/{task.problem.task_id}")
    by_operator: dict[str, list[Mutation]] = {}
    for style, source in task.solutions.items():
        for mutation in mutations(style, source):
            by_operator.setdefault(mutation.operator, []).append(mutation)
    queues = list(by_operator.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
    seen = set(task.solutions.values())
    for mutation in itertools.chain.from_iterable(itertools.zip_longest(*queues)):
        if mutation is not None and (source := mutation.source()) not in seen:
            seen.add(source)
            yield mutation, source


def _row(task: Task, source: str, verdict: Verdict, style: str, mutation: str | None = None) -> Row:
    family = task.problem.family
    metadata: dict[str, Any] = {
        "source": "micro",
        "family": family.name,
        "difficulty": family.difficulty,
        "has_tests": True,
        "split": task.problem.split,
        "entry_point": task.entry_point,
        "tests": list(task.tests),
        "style": style,
    }
    if mutation is not None:
        metadata["mutation"] = mutation
    return Row(
        instruction=task.instruction,
        input="",
        output=source,
        task_id=task.problem.task_id,
        is_correct=verdict.passed,
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
