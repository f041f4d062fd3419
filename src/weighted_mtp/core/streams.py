"""Standard streams: text that others wrote cannot steer a terminal, and a stream that is closed or
full does not end a program."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from weighted_mtp.core.logging import note
from weighted_mtp.core.terminal import printable


class _Escaping:
    """A text stream in whose place control characters are written as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what `printable` makes of `text`."""
        self._stream.write(printable(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Tolerant:
    """A text stream that drops what it is given once its file is closed or full, and says so in
    the run's log file; characters that its encoding lacks are written as escapes."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._lost = stream, name, False

    def write(self, text: str) -> int:
        """Write `text` if it can be written."""
        if not self._lost:
            try:
                self._write(text)
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush if it can be done."""
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def isatty(self) -> bool:
        """Whether it is a terminal; a closed stream is none."""
        with suppress(ValueError):
            return not self._lost and self._stream.isatty()
        return False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _lose(self, error: Exception) -> None:
        self._lost = True
        drop_unwritten_output(self._stream)
        note(
            f"{self._name} cannot be written any more ({error}); the work continues without it",
            logging.WARNING,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_streams(output: bool) -> Iterator[None]:
    """Let no closed pipe, full disk or narrow encoding behind standard error (and, if `output`,
    standard output) raise an exception."""
    with ExitStack() as replaced:
        error = cast(TextIO, _Tolerant(sys.stderr, "standard error"))
        replaced.enter_context(redirect_stderr(error))
        if output:
            stream = cast(TextIO, _Tolerant(sys.stdout, "standard output"))
            replaced.enter_context(redirect_stdout(stream))
        yield


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what is printed: it is for people, and may repeat file names, keys and programs."""
    with redirect_stdout(cast(TextIO, _Escaping(sys.stdout))):
        yield


CLOSED: set[str] = set()
"""Names of the standard streams that were closed when the process began."""


def open_missing_streams() -> None:
    """Open /dev/null in place of standard streams that were closed (`2>&-`): Python then has None
    there, and the next file that is opened would receive what C libraries print."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            CLOSED.add(name)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def drop_unwritten_output(stream: TextIO | None = None) -> None:
    """Discard what a stream (standard output if None) cannot take any more, so that the interpreter
    does not try to write it again, and fail, when it ends."""
    stream = sys.stdout if stream is None else stream
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
