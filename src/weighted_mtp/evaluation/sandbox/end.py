"""End a confined child and everything it started."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

STILL_RUNNING = -1
"""Wait status of a child that had to be killed."""


def descendants() -> list[int]:
    """List every process below this one, according to /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{int(name)}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, waiting = [], [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def kill_all(pid: int, alone: bool) -> None:
    """Kill a child and everything it started, even in other sessions."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if alone:  # all processes of the namespace but this one
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    elif os.path.isdir("/proc/self"):
        for _ in range(100):
            if not (left := descendants()):
                break
            for other in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(other, signal.SIGKILL)
            reap()


def reap() -> None:
    """Reap every child that has ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end(pid: int, patience: float, alone: bool) -> int:
    """Wait briefly for a child, then kill what is left; return its wait status."""
    deadline = time.monotonic() + patience
    ended, status = os.waitpid(pid, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    kill_all(pid, alone)
    with suppress(ChildProcessError):
        while alone:  # all of them are dying
            os.waitpid(-1, 0)
    return status if ended else STILL_RUNNING
