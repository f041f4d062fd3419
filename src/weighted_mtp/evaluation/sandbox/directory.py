"""The directory of a worker, which is deleted with it, or by the next start where both were killed.

A file in it is locked by the worker and by the process that started it. The kernel gives the lock
up when both have ended, however they did: that is what proves a directory to be left over.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress

from weighted_mtp.evaluation.sandbox.files import empty

try:
    import fcntl
except ImportError:  # not a POSIX system: no sandbox there
    fcntl = None  # type: ignore[assignment]  # never used then

PREFIX = "weighted-mtp-sandbox-"
_LOCK = "in-use"


def make_directory() -> tuple[str, int]:
    """Create a directory; return it and the descriptor that keeps its lock.

    Raises:
        OSError: there is no room, or no directory for temporary files.
    """
    directory = tempfile.mkdtemp(prefix=PREFIX)
    lock = -1
    try:
        os.chmod(directory, 0o711)  # whoever a program becomes must get to its own part
        new = os.path.join(directory, f"{_LOCK}.new")
        lock = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, os.path.join(directory, _LOCK))  # under this name it is always locked
    except OSError:
        if lock >= 0:
            os.close(lock)
        remove_directory(directory)
        raise
    return directory, lock


def remove_directory(directory: str) -> None:
    """Delete a worker's directory, as far as that is possible."""
    with suppress(OSError):
        empty(directory)
        os.rmdir(directory)


def remove_left_over() -> list[str]:
    """Delete the directories of this user's workers that ended without doing so; return them."""
    parent = tempfile.gettempdir()
    removed = []
    with suppress(OSError):
        for name in os.listdir(parent):
            directory = os.path.join(parent, name)
            if name.startswith(PREFIX) and _is_left_over(directory):
                remove_directory(directory)
                removed.append(directory)
    return removed


def _is_left_over(directory: str) -> bool:
    """Whether this is a directory of ours whose lock nobody holds."""
    try:
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        lock = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # none, or not ours to open: no proof
        return False
    try:
        held = os.fstat(lock)
        if not stat.S_ISREG(held.st_mode) or held.st_uid != os.geteuid():
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
