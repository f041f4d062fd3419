"""Work shared out among processes, a few pieces at a time, so that memory does not grow with it.

The processes are started afresh (`spawn`): a fork of a process with threads may hang. Each runs the
user's script again, which must have its `if __name__ == "__main__"`, as with all of
`multiprocessing`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from weighted_mtp.core.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
_START = "spawn"
_AHEAD = 2
"""Pieces handed out for each process."""


def available_cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    died: str,
    remedy: str,
    in_order: bool = True,
) -> Generator[tuple[Item, Result], None, None]:
    """Apply a function to every item; gives each with its result. Close it if you leave it early:
    the processes end then, in the middle of their work.

    Args:
        function: can be pickled; sent once to each process.
        workers: 1 stays in this process.
        died, remedy: what to say if a process dies, for instance when it runs out of memory.
        in_order: of the items; otherwise as they are finished.

    Raises:
        UserError: a process died; and whatever the function raises.
    """
    if workers == 1:
        for item in items:
            yield item, function(item)
        return
    context = get_context(_START)
    alive, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _become_worker, (function, alive))
    waiting: dict[Future[Result], Item] = {}
    try:
        for item in items:
            waiting[pool.submit(_apply, item)] = item
            if len(waiting) > _AHEAD * workers:
                yield from _finished(waiting, in_order)
        while waiting:
            yield from _finished(waiting, in_order)
    except BrokenProcessPool as error:
        raise UserError(
            f"{died}, perhaps because it ran out of memory ({remedy}), or because the script that "
            'runs has no `if __name__ == "__main__":`'
        ) from error
    except BaseException:  # Ctrl-C too: a piece may take minutes
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        alive.close()


def end_with_parent(_worker: int = 0) -> None:
    """For a process that makes batches: leave Ctrl-C to the parent, and end if it is killed. (The
    watch that PyTorch keeps looks at the wrong process where a fork server started this one.)"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _finished(
    waiting: dict[Future[Result], Item], in_order: bool
) -> Generator[tuple[Item, Result], None, None]:
    """The first, or those that are done: at least one."""
    first = next(iter(waiting))
    for future in [first] if in_order else wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


# --- in a worker process -------------------------------------------------------------------------

_function: Callable[[Any], Any]


def _become_worker(function: Callable[[Any], Any], alive: connection.Connection) -> None:
    """Leave Ctrl-C to the parent, and end when it closes its end of the pipe, or is killed."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core is our share
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: connection.Connection | int) -> None:
    connection.wait([alive])
    os._exit(1)


def _apply(item: Any) -> Any:
    return _function(item)
