"""The sandbox's server: judges one program per request.

`Sandbox` starts it as a separate process with an empty environment and only the standard library;
only this file may execute code. It speaks JSON lines: first a greeting that lists the confinement
the kernel allows, then one reply per request read from standard input.

    request  {"source": "...", "tests": "...", "stdin": null, "expected_stdout": null}
    reply    {"status": "passed", "detail": "", "seconds": 0.002}
             {"fault": "..."} if this machine cannot judge programs; then it ends

Every program runs in a fresh child of one zygote (`zygote.py`), its tests in a child of
another, with a connection between the two (`program.py`, `testing.py`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import time
import types
from contextlib import suppress
from typing import Any

from weighted_mtp.evaluation.sandbox import kernel as kernel
from weighted_mtp.evaluation.sandbox.files import empty
from weighted_mtp.evaluation.sandbox.judge import LINE, REPORT, Judge, MachineFaultError
from weighted_mtp.evaluation.sandbox.program import play_program
from weighted_mtp.evaluation.sandbox.testing import play_tests
from weighted_mtp.evaluation.sandbox.watch import CallerGoneError
from weighted_mtp.evaluation.sandbox.wire import Line
from weighted_mtp.evaluation.sandbox.zygote import LAST_FD, MIN_OPEN_FILES

PRELOADED = (
    "abc", "array", "base64", "bisect", "cmath", "collections", "collections.abc", "contextlib",
    "copy", "ctypes", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "hashlib", "heapq", "io", "itertools", "math", "numbers", "operator", "queue", "random", "re",
    "statistics", "string", "struct", "textwrap", "threading", "typing", "unicodedata",
)  # fmt: skip
"""Imported once here, so that importing them in a program is free."""


def run_code(code: types.CodeType, space: dict[str, Any]) -> None:
    """Execute code, in a confined child only."""
    exec(code, space)  # noqa: S102


def allow_long_integers() -> None:
    """Print and read integers of any length, as before Python limited them to 4300 digits.

    Only in children, which have a deadline: this process must stay responsive.
    """
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)


def program_child() -> int:
    """Run a program, in a child of the programs' zygote."""
    allow_long_integers()
    return play_program(Line(LINE), run_code)


def tests_child() -> int:
    """Run tests, in a child of the tests' zygote."""
    gc.disable()  # the process is short-lived
    allow_long_integers()
    report = Line(REPORT)
    task = report.receive()
    status, detail = play_tests(Line(LINE), task, run_code)
    report.send({"status": status, "detail": detail})
    return 0


def _check_limits(settings: dict[str, Any]) -> None:
    """Refuse to work under resource limits lower than those of programs.

    Raises:
        MachineFaultError: names the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = LAST_FD if hard == resource.RLIM_INFINITY else min(LAST_FD, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if hard != resource.RLIM_INFINITY and hard < MIN_OPEN_FILES:
        raise MachineFaultError(f"only {hard} files may be open; raise `ulimit -n`")
    for name, wanted, option in (
        ("RLIMIT_AS", settings["memory"], "-v"),
        ("RLIMIT_CPU", int(settings["timeout"]) + 1, "-t"),
        ("RLIMIT_FSIZE", 1 << 20, "-f"),
    ):
        _, hard = resource.getrlimit(getattr(resource, name))
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise MachineFaultError(
                f"a program may use {wanted}, but the limit here is {hard}; raise `ulimit {option}`"
            )


def set_up(settings: dict[str, Any], caller: int) -> tuple[Judge, dict[str, Any]]:
    """Start the judge and try it; also return the confinement in force.

    Raises:
        MachineFaultError: it does not work here.
    """
    _check_limits(settings)
    for name in PRELOADED:
        importlib.import_module(name)
    for name in ("program", "tests", "root"):
        os.mkdir(os.path.join(settings["directory"], name), 0o700)
    network, ways, settings["own_user"] = False, [""], False
    if sys.platform.startswith("linux"):
        if settings["namespaces"]:
            network, settings["own_user"] = kernel.enter_namespaces()
        if network:
            ways = ["files", "processes", ""]
        kernel.hide_memory()
    gc.freeze()
    judge = Judge(settings, ways, (program_child, tests_child), caller)
    judge.check()
    return judge, {**judge.walls, "network": network or judge.walls["calls"]}


def main(argument: str) -> None:
    """Serve requests until standard input ends, then delete the directory."""
    settings = json.loads(argument)
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    judge = None
    try:
        judge, reply = set_up(settings, requests.fileno())
        while True:
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()
            line = requests.readline()
            if not line:
                break
            start = time.monotonic()
            status, detail = judge(json.loads(line))
            reply = {"status": status, "detail": detail, "seconds": time.monotonic() - start}
    except CallerGoneError:
        pass
    except (MachineFaultError, OSError) as error:
        with suppress(OSError):
            replies.write(json.dumps({"fault": str(error)}).encode() + b"\n")
            replies.flush()
    finally:
        for zygote in judge.zygotes if judge is not None else ():
            zygote.close()
        with suppress(OSError):
            empty(settings["directory"])
            os.rmdir(settings["directory"])
