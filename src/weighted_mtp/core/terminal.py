"""Standard streams: text that others wrote cannot steer a terminal, and a stream that is closed
does not end a program."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO, cast

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Format characters that change the order in which text is shown."""


def printable(text: str, keep: str = "") -> str:
    """`text` with control characters, line separators, bidirectional overrides and lone surrogates
    written as escapes (`\\x1b`, `\\u202e`), but for those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or not _steers(char) else _escape(char) for char in text)


def _steers(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


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


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what is printed: it is for people, and may repeat file names, keys and programs."""
    with redirect_stdout(cast(TextIO, _Escaping(sys.stdout))):
        yield


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
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def drop_unwritten_output() -> None:
    """Discard what standard output cannot take any more, so that the interpreter does not try to
    write it again, and fail, when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
