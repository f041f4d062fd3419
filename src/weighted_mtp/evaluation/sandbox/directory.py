"""The directory of a worker, deleted with it, or by the next start if both were killed.

The worker and the process that started it lock a file in it. The kernel releases the lock when both
have ended, however they ended, which proves that a directory is left over.
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
    """Create a directory; return it and the descriptor that holds its lock.

    Raises:
        OSError: the disk is full, or there is no directory for temporary files.
    """
    directory = tempfile.mkdtemp(prefix=PREFIX)
    lock = -1
    try:
        os.chmod(directory, 0o711)  # a program's own user must reach its directory
        new = os.path.join(directory, f"{_LOCK}.new")
        lock = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, os.path.join(directory, _LOCK))  # a file of this name is always locked
    except OSError:
        if lock >= 0:
            os.close(lock)
        remove_directory(directory)
        raise
    return directory, lock


def remove_directory(directory: str) -> None:
    """Delete a worker's directory as far as possible."""
    with suppress(OSError):
        empty(directory)
        os.rmdir(directory)


def remove_left_over() -> list[str]:
    """Delete the directories that this user's killed workers left; return them."""
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
    """Whether this is a worker's directory whose lock is free."""
    try:
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        lock = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # missing, or not ours to open: no proof
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
