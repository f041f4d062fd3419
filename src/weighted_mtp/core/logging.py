"""Plain `logging`, set up once, quiet on every rank but the first."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from weighted_mtp.core.terminal import printable
from weighted_mtp.core.urls import without_credentials

ROOT = "weighted_mtp"
_notes = logging.getLogger(f"{ROOT}.notes")
_notes.propagate = False  # a terminal shows them by other means
_notes.setLevel(logging.INFO)
_notes.addHandler(logging.NullHandler())
_early: deque[str] = deque(maxlen=10)


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # cannot be subscripted before Python 3.11


class _StandardError(_StreamHandler):
    """Writes to what `sys.stderr` is at the time, not to what it was."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute of the base class
        return sys.stderr


class _Shown(logging.Formatter):
    """Lines without credentials, and without control characters but line breaks and tabs."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(without_credentials(super().format(record)), keep="\n\t")


def get_logger(name: str) -> logging.Logger:
    """The library's logger for a module: `get_logger(__name__)`."""
    return logging.getLogger(name if name.startswith(ROOT) else f"{ROOT}.{name}")


_said: set[str] = set()


def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning on the first rank, once in the life of the process."""
    if message not in _said and int(os.environ.get("RANK", "0")) == 0:
        _said.add(message)
        logger.warning("%s", message)


def setup_logging(level: str = "INFO") -> None:
    """Send the library's log lines to standard error; ranks above 0 speak only of warnings."""
    root = logging.getLogger(ROOT)
    root.handlers.clear()
    handler = _StandardError()
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"[rank {rank}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    handler.setFormatter(_Shown(prefix + "%(message)s"))
    root.addHandler(handler)
    root.setLevel(level if rank == 0 else logging.WARNING)
    root.propagate = False


class _RunLog(logging.FileHandler):
    """Appends to a file; a line that cannot be written is dropped."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Ignore it: a log that fails never ends a training."""


@contextmanager
def run_log(path: Path, enabled: bool = True) -> Iterator[None]:
    """Append the library's log lines and progress notes to a file too, each with its time.

    Args:
        enabled: False on every process but the main one.
    """
    if not enabled or (path.exists() and not path.is_file()):  # opening a pipe would wait forever
        yield
        return
    handler = _RunLog(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(_Shown("%(asctime)s %(levelname)s %(message)s"))
    loggers = (logging.getLogger(ROOT), _notes)
    for logger in loggers:
        logger.addHandler(handler)
    while _early:
        note(_early.popleft(), logging.WARNING)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with suppress(OSError):  # what was buffered for a full disk
            handler.close()


def note(line: str, level: int = logging.INFO) -> None:
    """Write a line to the run's log file only, if there is one; a warning waits for one."""
    kept = any(isinstance(handler, _RunLog) for handler in _notes.handlers)
    if level >= logging.WARNING and not kept:
        _early.append(line)
    _notes.log(level, "%s", line)
