"""Watch a program: its output, its duration, and how it ends."""

from __future__ import annotations

import fcntl
import math
import os
import re
import selectors
import signal
import time
from contextlib import suppress
from decimal import Decimal

from weighted_mtp.evaluation.sandbox.end import STILL_RUNNING
from weighted_mtp.evaluation.sandbox.files import holds_more_than
from weighted_mtp.evaluation.sandbox.testing import MAX_DETAIL

MAX_PRINTED = 64 << 20
TOLERANCE, RELATIVE = 1e-5, 1e-12
MAX_NUMBER = 5000
"""Maximum length of a number that is compared by value."""
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?")
MAX_FILES = 5_000
"""Maximum number of files and directories of a program without a file system of its own."""
MAX_DEPTH = 200
"""Maximum depth of its directories there."""
LOOK_AGAIN = 0.1
"""Seconds after which its files are counted again."""

STALL = 1.0
"""Seconds past the deadline after which this process itself must have been suspended."""


class CallerGoneError(Exception):
    """The caller who asked for the verdict has ended."""


class Watch:
    """Reads a program's output and waits for the report of its judge, until the deadline.

    Args:
        keep: bytes of output to keep.
        first: keep the first bytes, not the last.
        caller: a descriptor that has something to read only when the caller has gone.
        files: a directory whose files are counted, or None.
    """

    def __init__(
        self, output: int, keep: int, first: bool, caller: int, files: str | None = None
    ) -> None:
        self.output, self.keep, self.first = output, keep, first
        self.caller, self.files = caller, files
        self.printed, self.size, self.timed_out, self.littered = b"", 0, False, False
        self.stalled = False
        fcntl.fcntl(output, fcntl.F_SETFL, os.O_NONBLOCK)

    @property
    def flooded(self) -> bool:
        """Whether the program printed more than the limit."""
        return self.size > MAX_PRINTED

    @property
    def stopped(self) -> bool:
        """Whether the program had to be stopped."""
        return self.timed_out or self.flooded or self.littered

    def wait(self, report: int, deadline: float) -> bool:
        """Whether the report arrived or ended, before the deadline and any limit.

        Raises:
            CallerGoneError: the caller has ended.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            selector.register(report, selectors.EVENT_READ)
            selector.register(self.caller, selectors.EVENT_READ)
            look = time.monotonic() + LOOK_AGAIN
            while (now := time.monotonic()) < deadline and not self.flooded:
                until = deadline if self.files is None else min(look, deadline)
                ready = [key.fd for key, _ in selector.select(max(0.0, until - now))]
                if self.caller in ready:
                    raise CallerGoneError
                if self.output in ready and not self.read():
                    selector.unregister(self.output)
                if report in ready:
                    return True
                if self.files is not None and time.monotonic() >= look:
                    if holds_more_than(self.files, MAX_FILES, MAX_DEPTH):
                        self.littered = True
                        return False
                    look = time.monotonic() + LOOK_AGAIN
        self.timed_out = not self.flooded
        self.stalled = self.timed_out and time.monotonic() > deadline + STALL
        return False

    def read(self) -> bool:
        """Read what is available; False at the end of the output."""
        data = os.read(self.output, 65536)
        self.size += len(data)
        if not self.first:
            self.printed = (self.printed + data)[-self.keep :]
        elif len(self.printed) < self.keep:
            self.printed += data
        return bool(data)

    def drain(self) -> None:
        """Read everything printed so far."""
        with suppress(BlockingIOError):
            while not self.flooded and self.read():
                pass

    def last_line(self) -> str:
        """Return the end of the output on one line."""
        lines = self.printed[-4096:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:MAX_DETAIL] if lines else ""


def compare(printed: bytes, expected: str, complete: bool) -> tuple[str, str]:
    """Return status and detail of an output, by the rules of CodeContests' own checker.

    Words are compared, ignoring whitespace and the case of ASCII letters. Numbers may differ by
    `TOLERANCE`, or by the rounding of double precision (`RELATIVE`); two integers may not.

    Args:
        complete: False if the output was cut off.
    """
    if not complete:
        return "failed", f"printed more than {len(printed):,} bytes, expected {len(expected):,}"
    wanted_text = expected.encode("utf-8", "surrogatepass")
    seen, wanted = printed.lower().split(), wanted_text.lower().split()
    pairs = enumerate(zip(seen, wanted))  # noqa: B905  (what one has more of is looked at below)
    place = next((n for n, (a, b) in pairs if not _same(a, b)), min(len(seen), len(wanted)))
    if place == len(seen) == len(wanted):
        return "passed", ""
    left, right = (
        repr(words[place][:100].decode("utf-8", "replace")) if place < len(words) else "nothing"
        for words in (seen, wanted)
    )
    line = _line_of(place, wanted_text if place < len(wanted) else printed)
    return "failed", f"line {line}: printed {left}, expected {right}"


def _same(printed: bytes, expected: bytes) -> bool:
    """Whether two words are equal, or are numbers close enough.

    Integers are compared as text: large ones are never converted, and 010 is not 10.
    """
    if printed == expected:
        return True
    pair = (printed, expected)
    if max(map(len, pair)) > MAX_NUMBER or not all(map(_NUMBER.fullmatch, pair)):
        return False
    integers = [number.lstrip(b"+-").isdigit() for number in pair]
    if all(integers):
        plain = [number.removeprefix(b"+") for number in pair]
        return plain[0] == plain[1] or all(number in (b"0", b"-0") for number in plain)
    a, b = map(float, pair)
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    if any(integers) and abs(b) >= 2**53:  # integers that a float cannot distinguish
        return a == b and Decimal(printed.decode()) == Decimal(expected.decode())
    return abs(a - b) <= max(TOLERANCE, RELATIVE * abs(b))


def _line_of(place: int, text: bytes) -> int:
    """Return the line number of a word."""
    line = 0
    for line, words in enumerate(map(bytes.split, text.splitlines()), 1):  # noqa: B007
        place -= len(words)
        if place < 0:
            break
    return line


def how_it_ended(watch: Watch, wait_status: int, reason: str) -> tuple[str, str]:
    """Return status and detail of a program that ended before its judge was done."""
    if watch.timed_out:
        return "timeout", "no result in time"
    if watch.flooded:
        return "killed", f"printed more than {MAX_PRINTED >> 20} MiB"
    if watch.littered:
        return "killed", f"made more than {MAX_FILES} files, or directories too deep in each other"
    if wait_status == STILL_RUNNING or reason:
        return "exited", reason or "cut the line to its tests"
    detail = watch.last_line()
    if not os.WIFSIGNALED(wait_status):
        return "exited", detail or f"exit status {os.WEXITSTATUS(wait_status)}"
    number = os.WTERMSIG(wait_status)
    if number == signal.SIGXCPU:
        return "timeout", "out of CPU time"
    return "killed", detail or signal.Signals(number).name
