"""Plain `logging`, set up once, quiet on every rank but the first."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

from weighted_mtp.core.terminal import printable
from weighted_mtp.core.urls import without_credentials

ROOT = "weighted_mtp"


class _StandardError(logging.StreamHandler[TextIO]):
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
