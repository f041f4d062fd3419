"""Units shared out among processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from weighted_mtp.core.processes import share_out
from weighted_mtp.data.prepare.work import Task

Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[tuple[Task, Result], None, None]:
    """`share_out` tasks; results come as they are finished.

    Raises:
        UserError: a process died; and whatever the function raises.
    """
    return share_out(
        function,
        tasks,
        workers,
        died="a worker process died",
        remedy="the same command with fewer --workers resumes where this one stopped",
        in_order=False,
    )
