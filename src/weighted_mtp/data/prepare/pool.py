"""Units shared out among processes, a few at a time, so that memory does not grow with the source.

The processes are started afresh (`spawn`): nothing is forked with threads in it. A script that
calls this must have its `if __name__ == "__main__"`, as with all of `multiprocessing`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context
from typing import TypeVar

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.prepare.work import Task

Result = TypeVar("Result")
_AHEAD = 2
"""Units handed out for each process."""


def default_workers() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """Apply a function to every task; results come as they are finished.

    Args:
        function: can be pickled.
        workers: 1 stays in this process.

    Raises:
        UserError: a process died; and whatever the function raises.
    """
    if workers == 1:
        for task in tasks:
            yield task, function(task)
        return
    context = get_context("spawn")
    alive, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (alive,))
    waiting: dict[Future[Result], Task] = {}
    try:
        for task in tasks:
            waiting[pool.submit(function, task)] = task
            if len(waiting) >= _AHEAD * workers:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for want of memory; the same command with fewer "
            "--workers goes on where this one stopped"
        ) from error
    except BaseException:  # Ctrl-C too: a unit may take minutes, and can be done again
        ours.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        ours.close()
        alive.close()


def _finished(waiting: dict[Future[Result], Task]) -> Iterator[tuple[Task, Result]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()


def _start_worker(alive: connection.Connection) -> None:
    """Leave Ctrl-C to the parent, and end when it closes its end of the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: connection.Connection) -> None:
    connection.wait([alive])
    os._exit(1)
