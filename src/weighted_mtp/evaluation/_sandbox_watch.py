"""What a program prints, how long it takes, and what its end says."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import time
from contextlib import suppress

from weighted_mtp.evaluation._sandbox_end import STILL_RUNNING
from weighted_mtp.evaluation._sandbox_files import holds_more_than
from weighted_mtp.evaluation._sandbox_tests import MAX_DETAIL

MAX_PRINTED = 64 << 20
MAX_FILES = 5_000
"""Files and directories a program may have where no file system of its own limits it."""
MAX_DEPTH = 200
"""Directories it may have in each other there."""
LOOK_AGAIN = 0.1
"""Seconds after which its files are counted again."""

STALL = 1.0
"""Seconds past the end of the time after which this process itself must have been stopped."""


class CallerGoneError(Exception):
    """Whoever asked for the verdict is no more."""


class Watch:
    """Reads what a program prints and waits for a word from its judge, until time is up.

    Args:
        keep: bytes of output to keep.
        first: keep the first bytes, not the last.
        caller: a descriptor that has something to read only when the caller has gone.
        files: a directory whose files are to be counted, or None.
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
        """Whether the program printed more than any needs to."""
        return self.size > MAX_PRINTED

    @property
    def stopped(self) -> bool:
        """Whether the program had to be stopped."""
        return self.timed_out or self.flooded or self.littered

    def wait(self, report: int, deadline: float) -> bool:
        """Whether the report arrived or ended, before the deadline and any limit.

        Raises:
            CallerGoneError: nobody waits for the verdict any more.
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
        """Take what is there; False at the end of the output."""
        data = os.read(self.output, 65536)
        self.size += len(data)
        if not self.first:
            self.printed = (self.printed + data)[-self.keep :]
        elif len(self.printed) < self.keep:
            self.printed += data
        return bool(data)

    def drain(self) -> None:
        """Take all that was printed before now."""
        with suppress(BlockingIOError):
            while not self.flooded and self.read():
                pass

    def last_line(self) -> str:
        """The end of the output, in a line."""
        lines = self.printed[-4096:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:MAX_DETAIL] if lines else ""


def compare(printed: str, expected: str) -> tuple[str, str]:
    """Status and detail of an output; whitespace at the ends of lines and of the whole is free."""
    seen, wanted = ([line.rstrip() for line in text.split("\n")] for text in (printed, expected))
    for lines in (seen, wanted):
        while lines and not lines[-1]:
            lines.pop()
    if seen == wanted:
        return "passed", ""
    shared = min(len(seen), len(wanted))
    number = next((n for n in range(shared) if seen[n] != wanted[n]), shared)
    left, right = (
        repr(lines[number][:100]) if number < len(lines) else "nothing" for lines in (seen, wanted)
    )
    return "failed", f"line {number + 1}: printed {left}, expected {right}"


def how_it_ended(watch: Watch, wait_status: int, reason: str) -> tuple[str, str]:
    """Status and detail of a program that ended, or was ended, before its judge was done."""
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
