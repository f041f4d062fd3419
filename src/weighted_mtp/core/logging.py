"""Plain `logging`, set up once, quiet on every rank but the first."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

ROOT = "weighted_mtp"


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time, not to what it was."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute of the base class
        return sys.stderr


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
    handler.setFormatter(logging.Formatter(prefix + "%(message)s"))
    root.addHandler(handler)
    root.setLevel(level if rank == 0 else logging.WARNING)
    root.propagate = False
