"""Judge programs: two zygotes run them and their tests; this process reads the results.

No code of a program runs in this process. Its output is compared here, so that the verdict is never
reached in a process that runs the program. Faults of the machine are distinguished from faults of
the program: a child reports when it is set up, and in doubt a program known to be right is run too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from weighted_mtp.evaluation.sandbox import kernel as kernel
from weighted_mtp.evaluation.sandbox.errors import rebuild_error
from weighted_mtp.evaluation.sandbox.testing import MAX_DETAIL, outcome
from weighted_mtp.evaluation.sandbox.watch import Watch, compare, how_it_ended
from weighted_mtp.evaluation.sandbox.wire import GoneError, Line
from weighted_mtp.evaluation.sandbox.zygote import (
    END,
    LAST_FD,
    NOT_SET_UP,
    START,
    STATUS,
    Settings,
    zygote,
)

LINE, REPORT = 3, 4
"""Descriptors of a child: the line to the other one, and that of the tests to this process."""
DEATH_TENTHS = 5
"""Tenths of a second that a process which cut its line has to end by itself."""
CANARY_TIME = 5.0


class MachineFaultError(Exception):
    """A failure that says nothing about the program."""


class Zygote:
    """A zygote, seen from the worker.

    Args:
        ways: how far to set it apart: "files" (and processes), "processes" or "" (neither).
        play: what its children do.
    """

    def __init__(
        self, role: str, settings: dict[str, Any], ways: list[str], play: Callable[[], int]
    ) -> None:
        self.role = role
        for way in ways:
            self.control, there = socket.socketpair()
            self.pid = os.fork()
            if self.pid == 0:
                os.dup2(there.fileno(), LINE)
                os.closerange(LINE + 1, LAST_FD)
                _live(socket.socket(fileno=LINE), role, settings, way, play)
            there.close()
            if greeting := self.control.makefile("rb").readline():
                self.walls: dict[str, bool] = json.loads(greeting)
                return
            self.control.close()
            os.waitpid(self.pid, 0)
        raise MachineFaultError(f"the process that starts {role} cannot be set up")

    def start(self, descriptors: list[int]) -> None:
        """Fork a child with these descriptors."""
        socket.send_fds(self.control, [START], descriptors)

    def ask_end(self, tenths: int = 0) -> None:
        """End the child and all it started, after giving it this long to end on its own."""
        self.control.sendall(END + bytes([tenths]))

    def end(self) -> int:
        """Return the child's wait status, or `STILL_RUNNING`.

        Raises:
            MachineFaultError: the child could not be set up, or the zygote has died.
        """
        data = self.control.recv(STATUS.size, socket.MSG_WAITALL)
        if len(data) < STATUS.size:
            raise MachineFaultError(f"the process that starts {self.role} died")
        status, size = STATUS.unpack(data)
        reason = self.control.recv(size, socket.MSG_WAITALL) if size else b""
        if status == NOT_SET_UP:
            text = reason.decode("utf-8", "replace")
            raise MachineFaultError(f"no process for {self.role} could be set up: {text}")
        return int(status)

    def close(self) -> None:
        """End the zygote and what it started, and reap it."""
        self.control.close()  # it serves until this ends
        deadline = time.monotonic() + 1
        while not os.waitpid(self.pid, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return
            time.sleep(0.001)


def _live(
    control: socket.socket, role: str, settings: dict[str, Any], way: str, play: Callable[[], int]
) -> None:
    """Run a zygote's process: enter its namespaces, which takes one fork, and serve."""
    code = 1
    try:
        if way:
            kernel.die_with_parent()
            kernel.unshare(kernel.CLONE_NEWPID | (kernel.CLONE_NEWNS if way == "files" else 0))
            pid = os.fork()
            if pid != 0:
                control.close()
                os.waitpid(pid, 0)
                os._exit(0)
        workspace = os.path.join(settings["directory"], role)
        root = os.path.join(settings["directory"], "root") if way == "files" else ""
        limits = Settings(settings["timeout"], settings["memory"], workspace)
        limits.own_user = settings["own_user"]
        zygote(control, limits, role, root, play)
        code = 0
    finally:
        os._exit(code)


class Judge:
    """Judges one request after another.

    Args:
        plays: what the children for the program and for the tests do.
        caller: a descriptor that has something to read only when the caller has gone.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        ways: list[str],
        plays: tuple[Callable[[], int], Callable[[], int]],
        caller: int,
    ) -> None:
        self._settings, self._caller = settings, caller
        self.zygotes = (
            Zygote("program", settings, ways, plays[0]),
            Zygote("tests", settings, ways, plays[1]),
        )
        walls = [zygote.walls for zygote in self.zygotes]
        self.walls = {name: all(wall[name] for wall in walls) for name in walls[0]}
        own_files = walls[0].pop("own_files")
        self._files = None if own_files else os.path.join(settings["directory"], "program")
        del self.walls["own_files"]

    def __call__(self, request: dict[str, Any]) -> tuple[str, str]:
        """Return status and detail of a program.

        Raises:
            MachineFaultError: the machine, as it is now, does not allow a verdict.
        """
        judge = self._by_tests if request["expected_stdout"] is None else self._by_output
        timeout = self._settings["timeout"]
        try:
            status, detail = judge(request, timeout)
            if (status, detail) == ("killed", _KILL):  # by itself, or because memory ran out here
                status, detail = judge(request, timeout)
        except OSError as error:
            raise MachineFaultError(str(error)) from error
        if _doubtful(status, detail):
            self.check()
        return status, one_line(detail)

    def check(self) -> None:
        """Judge a program that is known to be right.

        Raises:
            MachineFaultError: it does not pass.
        """
        try:
            status, detail = self._by_tests(CANARY, CANARY_TIME)
        except OSError as error:
            raise MachineFaultError(str(error)) from error
        if status != "passed":
            raise MachineFaultError(f"a program that is right fails: {detail or status}")

    def _watch(self, output: int, keep: int, first: bool) -> Watch:
        return Watch(output, keep, first, self._caller, self._files)

    def _by_tests(self, request: dict[str, Any], timeout: float) -> tuple[str, str]:
        program, tests = self.zygotes
        deadline = time.monotonic() + timeout
        here, there = socket.socketpair()
        report, report_end = socket.socketpair()
        output, output_end = os.pipe()
        with _input(request["stdin"]) as given, open(os.devnull, "r+b") as nothing:
            program.start([given.fileno(), output_end, output_end, there.fileno()])
            null = nothing.fileno()
            tests.start([null, null, null, here.fileno(), report_end.fileno()])
        for end in (here, there, report_end):
            end.close()
        os.close(output_end)
        watch = self._watch(output, self._settings["output"], first=False)
        answer: dict[str, Any] = {"status": "gone", "detail": ""}
        with suppress(GoneError):  # the tests' process was killed, for its memory say
            line = Line(report.fileno())
            line.send({"source": request["source"], "tests": request["tests"]})
            if watch.wait(report.fileno(), deadline):
                answer = line.receive()
        left = answer["status"] == "gone" and not watch.stopped
        program.ask_end(DEATH_TENTHS if left else 0)
        tests.ask_end(DEATH_TENTHS if left and not answer["detail"] else 0)
        try:
            wait_status = program.end()
        finally:
            tests_status = tests.end()
        watch.drain()
        os.close(output)
        report.close()
        _check_clock(watch)
        if answer["status"] != "gone":
            return answer["status"], answer["detail"]
        if os.WIFSIGNALED(tests_status) and os.WTERMSIG(tests_status) == signal.SIGKILL:
            raise MachineFaultError("the tests' process was killed; is there enough memory?")
        return how_it_ended(watch, wait_status, answer["detail"])

    def _by_output(self, request: dict[str, Any], timeout: float) -> tuple[str, str]:
        program, _ = self.zygotes
        deadline = time.monotonic() + timeout
        here, there = socket.socketpair()
        output, output_end = os.pipe()
        with _input(request["stdin"]) as given, open(os.devnull, "wb") as nothing:
            program.start([given.fileno(), output_end, nothing.fileno(), there.fileno()])
        there.close()
        os.close(output_end)
        expected = request["expected_stdout"]
        watch = self._watch(output, 2 * len(expected) + self._settings["output"], first=True)
        line = Line(here.fileno())
        message: dict[str, Any] = {}
        with suppress(GoneError):
            line.send({"source": request["source"], "script": True, "main": True})
            here.setblocking(False)  # what the program sends must not keep this process waiting
            while not _failed(message) and watch.wait(here.fileno(), deadline):
                message = line.receive()  # to the end: one that says it is done may still fail
        program.ask_end(0 if _failed(message) or watch.stopped else DEATH_TENTHS)
        wait_status = program.end()
        watch.drain()
        os.close(output)
        here.close()
        _check_clock(watch)
        if _failed(message) and not watch.stopped:
            with suppress(GoneError, LookupError, TypeError):
                status, detail = outcome(rebuild_error(message), "")
                return status, f"exit status {message['code']}" if "code" in message else detail
            return "exited", "a report that is not the sandbox's own"
        if watch.stopped or wait_status != 0:
            return how_it_ended(watch, wait_status, "")
        if not message:
            return "exited", "left without having come to its end"
        return compare(watch.printed, expected, complete=watch.size == len(watch.printed))


def _check_clock(watch: Watch) -> None:
    """Check that a program had its full time.

    Raises:
        MachineFaultError: it may have been suspended.
    """
    if watch.stalled:
        raise MachineFaultError("the machine was suspended while a program ran")


def _failed(message: dict[str, Any]) -> bool:
    """Whether a script reports that it has failed."""
    return "raised" in message and message.get("code") != 0


_KILL = signal.Signals.SIGKILL.name
CANARY = {
    "source": "import threading\ndef f(x):\n    with open('canary', 'w') as file:\n"
    "        file.write('x' * 65536)\n    thread = threading.Thread(target=print)\n"
    "    thread.start()\n    thread.join()\n    return x + 1\n",
    "tests": "assert f(1) == 2",
    "stdin": None,
}
"""A program that is right: if it fails, that is the machine's fault."""
_MACHINES_OWN = (
    "OSError", "BlockingIOError", "FileNotFoundError", "PermissionError", "MemoryError",
    "RuntimeError: can't start",
)  # fmt: skip


def _doubtful(status: str, detail: str) -> bool:
    """Whether a failure may be the machine's fault."""
    return status in {"exited", "killed", "timeout"} or detail.startswith(_MACHINES_OWN)


def one_line(detail: str) -> str:
    """Shorten a detail to one line of limited length without control characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in detail[:MAX_DETAIL])[
        :MAX_DETAIL
    ]


def _input(text: str | None) -> IO[bytes]:
    """Open a file with the standard input of a program."""
    if not text:
        return open(os.devnull, "rb")
    file: IO[bytes]
    if hasattr(os, "memfd_create"):  # needs no disk
        file = os.fdopen(os.memfd_create("stdin"), "w+b")
    else:
        file = tempfile.TemporaryFile(dir=".")  # noqa: SIM115  (the caller closes it)
    file.write(text.encode("utf-8", "replace"))
    file.seek(0)
    return file
