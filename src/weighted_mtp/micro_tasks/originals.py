"""The problems of a generated data set as they were posed, with the right programs that its wrong
ones were made from."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from weighted_mtp.micro_tasks.catalogue import FAMILIES, draw_problems
from weighted_mtp.micro_tasks.family import Family, Problem, Split, Task, pose


def pose_problem(problem: Problem, seed: int) -> Task:
    """The problem as the data set of this seed words it."""
    return pose(problem, Random(f"pose/{seed}/{problem.task_id}"))


def posed_problems(
    n_problems: int, seed: int, split: Split = "train", families: Sequence[Family] = FAMILIES
) -> dict[str, Problem]:
    """The problems that `generate` draws when it is given the same arguments, by `task_id`.

    Raises:
        UserError: more is asked for than the families hold.
    """
    return {x.task_id: x for x in draw_problems(n_problems, seed, split, families)}
