"""Where prepared data is kept between runs, and how it gets there.

What stands there can always be built again from the user's files: deleting the folder costs time
and nothing else.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.sums import Sums, sums_of, verifying, write_sums

CACHE_VARIABLE = "WEIGHTED_MTP_CACHE"
_FOLDER = "weighted-mtp"
_log = get_logger(__name__)

Kept = TypeVar("Kept")


def cache_root(given: Path | None = None) -> Path:
    """The folder of prepared data: the given one, else the environment's, else the user's own.

    Without ``given`` it is ``$WEIGHTED_MTP_CACHE``, else ``$XDG_CACHE_HOME/weighted-mtp``, else
    ``~/.cache/weighted-mtp``; an empty variable counts as unset. The folder is not created here.
    """
    if given is not None:
        return given.expanduser()
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / _FOLDER
    return Path.home() / ".cache" / _FOLDER


def kept(
    folder: Path, opened: Callable[[Path], Kept], make: Callable[[Path], None], what: str
) -> Kept:
    """What a folder of the cache holds, made first if it is not there or damaged, which the SHA-256
    sums of its files tell.

    Of several processes that want it one makes it and the others wait. It is made beside its place
    and moved there once it is whole and on the disk; a process that is stopped leaves nothing that
    is trusted.

    Args:
        folder: its name says all that the content depends on.
        opened: looks at a folder that is there; raises what reading files raises, or `UserError`,
            if something is missing or damaged.
        make: writes files into an empty folder.
        what: is kept, in words, plural.

    Raises:
        UserError: the cache cannot be written; and whatever `make` raises, except an `OSError`.
    """
    try:
        found = _found(folder, opened, logging.DEBUG)
        if found is not None:
            return found
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, what):
            found = _found(folder, opened, logging.WARNING)  # another may have made it meanwhile
            if found is None:
                _make_whole(folder, make)
                found = opened(folder)
            return found
    except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
        raise UserError(
            f"{folder.parent}: {what} cannot be stored ({_brief(error)}); make room there, or set "
            f"data.cache_dir (or {CACHE_VARIABLE}) to another folder"
        ) from error


def _found(folder: Path, opened: Callable[[Path], Kept], level: int) -> Kept | None:
    if not folder.exists():
        return None
    try:
        if verifying():
            _compare(folder)
        return opened(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
        _log.log(level, "%s: damaged (%s), rebuilding it", folder, _brief(error))
        return None


def _compare(folder: Path) -> None:
    try:
        Sums.read(folder).verify()
    except UserError as error:  # nobody has to do what it advises: it is made again
        raise ValueError(str(error).partition(";")[0]) from None


@contextmanager
def _alone(folder: Path, what: str) -> Iterator[None]:
    """One process at a time."""
    from multiprocessing import current_process

    from filelock import FileLock, Timeout  # where the folder exists, its import is not needed

    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        # So multiprocessing itself tells a new process that is still running the user's script
        # again. The one that started it waits for it, maybe with the lock in its hands.
        if getattr(current_process(), "_inheriting", False):
            raise UserError(
                f"{what}: the process that makes them was started by a script that runs again in "
                'each of its processes; put what the script does below `if __name__ == "__main__":`'
            ) from error
        _log.info("%s: another process makes them; waiting", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make_whole(folder: Path, make: Callable[[Path], None]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir()
        make(partial)
        write_sums(partial, sums_of(partial, partial.iterdir()))
        for path in partial.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)  # what is there is damaged
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _brief(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or error.__cause__ or error
    return one_line(reason, 160)
