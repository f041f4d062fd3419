"""One writer a directory: a lock that names who holds it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.logging import get_logger

log = get_logger(__name__)

LOCK, HOLDER = ".lock", ".lock.json"
_held: dict[Path, FileLock] = {}


@contextmanager
def only_writer(directory: Path, remedy: str) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it is missing.

    The operating system releases the lock when the process ends, however it ends. A process may
    take the same lock again (the second stage of a run). A directory that holds nothing but the
    lock afterwards is removed: a start that failed leaves no trace.

    Args:
        remedy: what the other process's user can do, for the message.

    Raises:
        UserError: another process holds it, or the directory cannot be written.
    """
    key = Path(os.path.realpath(directory))
    outermost = key not in _held
    # O_TRUNC of another attempt would empty the lock file, so the holder has a file of its own.
    lock = _held.setdefault(key, FileLock(key / LOCK, timeout=0, thread_local=False))
    made = [place for place in (key, *key.parents) if not place.exists()]
    try:
        if outermost:
            directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if outermost:
            _write_holder(key)
    except Timeout:
        del _held[key]
        raise UserError(f"{directory}: {_holder(key)} is writing here; {remedy}") from None
    except NotImplementedError:  # a file system without locks
        del _held[key]
        log.warning("%s: its file system has no locks; let one process write there", directory)
        yield
        return
    except OSError as error:
        if outermost:
            del _held[key]
        raise UserError(f"{directory}: cannot be written ({one_line(error, 200)})") from error
    try:
        yield
    finally:
        if outermost:
            del _held[key]
            (key / HOLDER).unlink(missing_ok=True)
            with suppress(OSError):
                if {path.name for path in key.iterdir()} == {LOCK}:
                    (key / LOCK).unlink()
                    for place in made:
                        place.rmdir()
        lock.release()


def _write_holder(directory: Path) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    (directory / HOLDER).write_text(json.dumps(holder) + "\n", encoding="utf-8")


def _holder(directory: Path) -> str:
    """Who holds the lock, in words; it may be about to write its name, or to end."""
    try:
        found = read_json(directory / HOLDER)
        pid, host, since = int(found["pid"]), str(found["host"]), str(found["since"])
    except (OSError, UserError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
    return f"process {pid} on {host} (since {since})"
