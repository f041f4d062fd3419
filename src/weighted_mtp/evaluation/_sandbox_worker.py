"""The sandbox's server: judges one program per request.

`Sandbox` starts it as a process of its own, with an empty environment and the standard library
alone; nothing but this file may execute code. It speaks JSON lines: first a greeting that says
which walls the kernel lets it put up, then one reply per request read from standard input.

    request  {"source": "...", "tests": "...", "stdin": null, "expected_stdout": null}
    reply    {"status": "passed", "detail": "", "seconds": 0.002}

Every program runs in a fresh child of one zygote (`_sandbox_zygote`), its tests in a child of
another, with a line between the two (`_sandbox_program`, `_sandbox_tests`). What a program should
print is compared here. So a verdict is never reached in a process that runs the program.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
import tempfile
import time
import types
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from weighted_mtp.evaluation import _sandbox_kernel as kernel
from weighted_mtp.evaluation._sandbox_program import play_program
from weighted_mtp.evaluation._sandbox_tests import outcome, play_tests
from weighted_mtp.evaluation._sandbox_watch import Watch, compare, how_it_ended
from weighted_mtp.evaluation._sandbox_wire import GoneError, Line, rebuild_error
from weighted_mtp.evaluation._sandbox_zygote import (
    END,
    LAST_FD,
    START,
    STATUS,
    Settings,
    zygote,
)

LINE, REPORT = 3, 4
"""Descriptors of a child: the line to the other one, and that of the tests to this process."""
DEATH_TENTHS = 5
"""Tenths of a second that a process which cut its line has to end by itself."""
PRELOADED = (
    "abc", "array", "base64", "bisect", "cmath", "collections", "collections.abc", "contextlib",
    "copy", "ctypes", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "hashlib", "heapq", "io", "itertools", "math", "numbers", "operator", "queue", "random", "re",
    "statistics", "string", "struct", "textwrap", "threading", "typing", "unicodedata",
)  # fmt: skip
"""Imported once here, so that a program's own import of them costs nothing."""


def run_code(code: types.CodeType, space: dict[str, Any]) -> None:
    """Execute code, in a confined child: this is its purpose."""
    exec(code, space)  # noqa: S102


def allow_long_integers() -> None:
    """Print and read integers of any length, as Python did before it had a limit of 4300 digits.

    In the children alone: they have a deadline, this process must not be kept busy.
    """
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)


def program_child() -> int:
    """What a child of the programs' zygote does."""
    allow_long_integers()
    return play_program(Line(LINE), run_code)


def tests_child() -> int:
    """What a child of the tests' zygote does."""
    gc.disable()  # it lives for moments only
    allow_long_integers()
    report = Line(REPORT)
    task = report.receive()
    status, detail = play_tests(Line(LINE), task["source"], task["tests"], run_code)
    report.send({"status": status, "detail": detail})
    return 0


class Zygote:
    """A zygote, seen from the worker.

    Args:
        ways: how far to set it apart: "files" (and processes), "processes" or "" (neither).
    """

    def __init__(self, role: str, settings: dict[str, Any], ways: list[str]) -> None:
        play = program_child if role == "program" else tests_child
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
        raise RuntimeError(f"the sandbox cannot start a process for {role}")

    def start(self, descriptors: list[int]) -> None:
        """Fork a child that has these descriptors."""
        socket.send_fds(self.control, [START], descriptors)

    def ask_end(self, tenths: int = 0) -> None:
        """Have the child and all it started ended; it may take so long to do so by itself."""
        self.control.sendall(END + bytes([tenths]))

    def end(self) -> int:
        """The child's wait status, or `STILL_RUNNING`.

        Raises:
            RuntimeError: the zygote is no more.
        """
        data = self.control.recv(STATUS.size, socket.MSG_WAITALL)
        if len(data) < STATUS.size:
            raise RuntimeError("a zygote died")
        return int(STATUS.unpack(data)[0])


def _live(
    control: socket.socket, role: str, settings: dict[str, Any], way: str, play: Callable[[], int]
) -> None:
    """What a zygote's process does: step into its namespaces, which takes one fork, and serve."""
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
        zygote(control, limits, role, root, play)
        code = 0
    finally:
        os._exit(code)


def judge_by_tests(
    request: dict[str, Any], settings: dict[str, Any], zygotes: tuple[Zygote, Zygote]
) -> tuple[str, str]:
    """Status and detail of a program with tests."""
    program, tests = zygotes
    deadline = time.monotonic() + settings["timeout"]
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
    watch = Watch(output, settings["output"], first=False)
    answer: dict[str, Any] = {"status": "gone", "detail": ""}
    with suppress(GoneError):  # the tests' process was killed, for its memory say
        line = Line(report.fileno())
        line.send({"source": request["source"], "tests": request["tests"]})
        if watch.wait(report.fileno(), deadline):
            answer = line.receive()
    left = answer["status"] == "gone" and not watch.timed_out and not watch.flooded
    program.ask_end(DEATH_TENTHS if left else 0)
    tests.ask_end()
    wait_status = program.end()
    tests.end()
    watch.drain()
    os.close(output)
    report.close()
    if answer["status"] != "gone":
        return answer["status"], answer["detail"]
    return how_it_ended(watch, wait_status, answer["detail"])


def judge_by_output(
    request: dict[str, Any], settings: dict[str, Any], zygotes: tuple[Zygote, Zygote]
) -> tuple[str, str]:
    """Status and detail of a program that is to print something."""
    program, _ = zygotes
    deadline = time.monotonic() + settings["timeout"]
    here, there = socket.socketpair()
    output, output_end = os.pipe()
    with _input(request["stdin"]) as given, open(os.devnull, "wb") as nothing:
        program.start([given.fileno(), output_end, nothing.fileno(), there.fileno()])
    there.close()
    os.close(output_end)
    expected = request["expected_stdout"]
    watch = Watch(output, 2 * len(expected) + settings["output"], first=True)
    line = Line(here.fileno())
    line.send({"source": request["source"], "script": True})
    here.setblocking(False)  # what the program sends must not keep this process waiting
    message: dict[str, Any] = {}
    with suppress(GoneError):
        if watch.wait(here.fileno(), deadline):
            message = line.receive()
    stopped = watch.timed_out or watch.flooded
    program.ask_end(0 if message or stopped else DEATH_TENTHS)
    wait_status = program.end()
    watch.drain()
    os.close(output)
    here.close()
    if stopped or (not message and wait_status != 0):
        return how_it_ended(watch, wait_status, "")
    if "raised" in message and message.get("code") != 0:
        with suppress(GoneError, LookupError, TypeError):
            status, detail = outcome(rebuild_error(message), "")
            return status, f"exit status {message['code']}" if "code" in message else detail
        return "exited", "a report that is not the sandbox's own"
    return compare(watch.printed, expected, complete=watch.size == len(watch.printed))


def _input(text: str | None) -> IO[bytes]:
    """An open file with what a program is to read."""
    if not text:
        return open(os.devnull, "rb")
    file = tempfile.TemporaryFile(dir=".")  # noqa: SIM115  (the caller closes it)
    file.write(text.encode("utf-8", "replace"))
    file.seek(0)
    return file


def main(argument: str) -> None:
    """Serve requests until standard input ends."""
    settings = json.loads(argument)
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    for name in PRELOADED:
        importlib.import_module(name)
    for name in ("program", "tests", "root"):
        os.mkdir(os.path.join(settings["directory"], name), 0o700)
    network, ways = False, [""]
    if sys.platform.startswith("linux"):
        if settings["namespaces"]:
            network = kernel.enter_namespaces()
        if network:
            ways = ["files", "processes", ""]
        kernel.hide_memory()
    gc.freeze()
    zygotes = (Zygote("program", settings, ways), Zygote("tests", settings, ways))
    walls = {name: all(z.walls[name] for z in zygotes) for name in zygotes[0].walls}
    reply: dict[str, Any] = {**walls, "network": network or walls["calls"]}
    while True:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
        line = requests.readline()
        if not line:
            return
        start = time.monotonic()
        request = json.loads(line)
        judge = judge_by_tests if request["expected_stdout"] is None else judge_by_output
        try:
            status, detail = judge(request, settings, zygotes)
        except (RuntimeError, OSError, GoneError):
            return  # a zygote died: `Sandbox` sees it, and starts another worker
        reply = {"status": status, "detail": detail, "seconds": time.monotonic() - start}
