"""The sandbox's server: runs one program per request, each in a fresh fork of this process.

A stand-alone script, standard library only: `Sandbox` starts it with `python -I -S -B`, an empty
environment and one argument, its settings as JSON. It speaks JSON lines: first a greeting that
says what the kernel lets it isolate, then one reply per request read from standard input.

    request  {"source": "...", "tests": "..."}
    reply    {"status": "passed", "detail": "", "seconds": 0.002}

A program reports through a pipe, signed with a token drawn for that run, after its last test.
No signed report means that it did not get there, whatever else it did.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import importlib
import json
import os
import resource
import secrets
import selectors
import shutil
import signal
import sys
import time
import types
from contextlib import suppress
from typing import Any, NoReturn

CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x08000000,
    0x10000000,
    0x20000000,
    1 << 30,
)
PR_SET_PDEATHSIG = 1
MAX_FILE_BYTES = 16 << 20
MAX_OPEN_FILES = 64
MAX_PROCESSES = 256
MAX_REPORT_BYTES = 4096
MAX_DETAIL = 300
FIRST_FREE_FD, LAST_FD = 3, 256
PRELOADED = (
    "bisect", "collections", "copy", "datetime", "functools", "hashlib", "heapq", "itertools",
    "math", "operator", "random", "re", "statistics", "string", "typing",
)  # fmt: skip
"""Imported once here, so that a program's own import of them costs nothing."""


# --- isolation, once per worker --------------------------------------------------------------


def isolate() -> bool:
    """Move into namespaces with no network and no other process; False where not permitted.

    Inside, this process is number 1: nothing a program does can signal it, and no process of a
    program outlives `clean_up`.
    """
    if not sys.platform.startswith("linux"):
        return False
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC) != 0:
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    pid = os.fork()
    if pid != 0:
        os.waitpid(pid, 0)
        os._exit(0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getpid() == 1


# --- the child: confine itself, run, report --------------------------------------------------


def confine(settings: dict[str, Any], directory: str, output: int, report: int) -> None:
    """Give up everything a program has no business with."""
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(FIRST_FREE_FD, report)
    os.closerange(report + 1, LAST_FD)
    cpu = int(settings["timeout"]) + 1
    limits = {
        "RLIMIT_CPU": (cpu, cpu + 1),
        "RLIMIT_AS": (settings["memory"], settings["memory"]),
        "RLIMIT_FSIZE": (MAX_FILE_BYTES, MAX_FILE_BYTES),
        "RLIMIT_NPROC": (MAX_PROCESSES, MAX_PROCESSES),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_NOFILE": (MAX_OPEN_FILES, MAX_OPEN_FILES),
    }
    for name, limit in limits.items():
        if hasattr(resource, name):  # which limits exist, and may be set, differs by system
            with suppress(OSError, ValueError):
                resource.setrlimit(getattr(resource, name), limit)


def last_line(error: BaseException, tests: str) -> str:
    """The one line that says what went wrong: the failing test, or the exception."""
    message = f"{type(error).__name__}: {error}".rstrip(": ").splitlines()[0]
    frame, line = error.__traceback__, 0
    while frame is not None:
        line = frame.tb_lineno if frame.tb_frame.f_code.co_filename == "<tests>" else line
        frame = frame.tb_next
    where = tests.splitlines()[line - 1].strip() if line else ""
    return (f"{message} in: {where}" if where else message)[:MAX_DETAIL]


def execute(source: str, tests: str) -> tuple[str, str]:
    """Run `source`, then `tests`, as the module `__main__`; return status and detail."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    try:
        program = compile(source, "<program>", "exec", dont_inherit=True)
        checks = compile(tests, "<tests>", "exec", dont_inherit=True)
        exec(program, module.__dict__)  # noqa: S102  (the confined child: this is its purpose)
        exec(checks, module.__dict__)  # noqa: S102
    except AssertionError as error:
        return "failed", last_line(error, tests)
    except MemoryError:
        return "killed", "MemoryError"
    except SystemExit:
        return "exited", "SystemExit"
    except BaseException as error:
        return "error", last_line(error, tests)
    return "passed", ""


def child(
    request: dict[str, str],
    settings: dict[str, Any],
    directory: str,
    output: int,
    report: int,
    token: str,
) -> NoReturn:
    """The life of the forked process."""
    write, leave, dumps = os.write, os._exit, json.dumps  # the program may replace the originals
    try:
        confine(settings, directory, output, report)
        status, detail = execute(request["source"], request["tests"])
        write(report, dumps({"token": token, "status": status, "detail": detail}).encode() + b"\n")
    finally:
        leave(0)


# --- the server: watch one child, clean up after it ------------------------------------------


def watch(output: int, report: int, deadline: float, cap: int) -> tuple[bytes, bytes, bool]:
    """Read both pipes until the report ends or time is up: (output tail, report, timed out)."""
    printed, reported = b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        selector.register(report, selectors.EVENT_READ)
        while (remaining := deadline - time.monotonic()) > 0:
            ready = [key.fd for key, _ in selector.select(remaining)]
            if output in ready:
                data = os.read(output, 65536)
                printed = (printed + data)[-cap:]
                if not data:
                    selector.unregister(output)
            if report in ready:
                data = os.read(report, MAX_REPORT_BYTES)
                reported += data
                if not data or b"\n" in data or len(reported) >= MAX_REPORT_BYTES:
                    return printed, reported, False
    return printed, reported, True


def clean_up(pid: int, alone: bool, directory: str) -> int:
    """Kill what the program left running, delete what it wrote; return its wait status."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if alone:  # process 1 of its own namespace: everyone else there is the program's
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    _, wait_status = os.waitpid(pid, 0)
    if alone:
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
    remove(directory)
    return wait_status


def remove(directory: str) -> None:
    """Delete a tree, one whose permissions were taken away too."""
    shutil.rmtree(directory, ignore_errors=True)
    if os.path.exists(directory):
        for parent, _, _ in os.walk(directory):
            with suppress(OSError):
                os.chmod(parent, 0o700)
        shutil.rmtree(directory, ignore_errors=True)


def judge(
    reported: bytes, token: str, timed_out: bool, wait_status: int, printed: bytes
) -> tuple[str, str]:
    """Turn what was seen of a child into status and detail."""
    with suppress(ValueError, TypeError, KeyError):
        report = json.loads(reported)
        if secrets.compare_digest(report["token"], token):
            return report["status"], report["detail"]
    if reported:
        return "exited", "a report that is not the sandbox's own"
    if timed_out:
        return "timeout", "no result in time"
    lines = printed.decode("utf-8", "replace").strip().splitlines()
    detail = lines[-1][:MAX_DETAIL] if lines else ""
    if not os.WIFSIGNALED(wait_status):
        return "exited", detail or f"exit status {os.WEXITSTATUS(wait_status)}"
    number = os.WTERMSIG(wait_status)
    if number == signal.SIGXCPU:
        return "timeout", "out of CPU time"
    return "killed", detail or signal.Signals(number).name


def run(request: dict[str, str], settings: dict[str, Any], alone: bool) -> dict[str, Any]:
    """Judge one program."""
    start = time.monotonic()
    directory = os.path.join(settings["directory"], secrets.token_hex(8))
    os.mkdir(directory, 0o700)
    token = secrets.token_hex(16)
    output, output_end = os.pipe()
    report, report_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(request, settings, directory, output_end, report_end, token)
    os.close(output_end)
    os.close(report_end)
    deadline = start + settings["timeout"]
    printed, reported, timed_out = watch(output, report, deadline, settings["output"])
    wait_status = clean_up(pid, alone, directory)
    os.close(output)
    os.close(report)
    status, detail = judge(reported, token, timed_out, wait_status, printed)
    return {"status": status, "detail": detail, "seconds": time.monotonic() - start}


def main() -> None:
    """Serve requests until standard input ends."""
    settings = json.loads(sys.argv[1])
    alone = isolate()
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    reply: dict[str, Any] = {"isolated": alone}
    while True:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
        line = requests.readline()
        if not line:
            return
        reply = run(json.loads(line), settings, alone)


if __name__ == "__main__":
    main()
