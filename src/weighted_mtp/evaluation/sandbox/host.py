"""Judge programs by running them in confined processes.

`Sandbox` keeps one warm worker per core (`worker.py`), which runs each program in a fresh child and
its tests in another. The tests call the program over a connection that carries plain data and
references to objects, so that the program cannot reach the tests or the expected answers, and no
process that runs the program decides the verdict.

On every system a child gets its own session, limits on CPU time, memory, file size, open files,
processes and core dumps, an empty environment, a new working directory that is deleted afterwards,
only the input it is given, capped output and a wall-clock limit. If the kernel allows it (Linux
with user namespaces, or root) it also has no network, sees no other process and no file but the
standard library's, runs as nobody without capabilities, and cannot make the system calls of
`seccomp.py`. `Sandbox.isolation` reports which of these are in force.

A verdict is about the program only. What fails because of the machine (a worker that dies, a full
disk, too few open files) is retried with a new worker, and raises `UserError` if that fails too. A
worker deletes its directory when it ends, even if its caller was killed; the next start deletes
what a killed worker left.

Known gaps: a class whose name the tests use as a class, and a helper that only the program defines,
are believed unless they say yes to everything. Without mount namespaces, disk space is limited per
file, and files to 5,000.
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.processes import available_cores
from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.evaluation.sandbox.directory import (
    make_directory,
    remove_directory,
    remove_left_over,
)

PYTHON = (sys.executable, "-I", "-S", "-B")
PACKAGES = Path(__file__).parents[3]
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from weighted_mtp.evaluation.sandbox import worker; "
    "del sys.path[0]; worker.main(sys.argv[2])"
)
GRACE = 10.0
"""Seconds past a program's own limit (twice, as it may run twice) before its worker is killed."""
CLOSE_PATIENCE = 2.0
"""Seconds that a worker has to end on its own."""
ATTEMPTS = 3
"""Workers tried one after another before judging a program fails."""


_WALLS = {
    "network": ("no network", "the network is within reach"),
    "files": (
        "no files but the standard library and an empty directory",
        "files are protected by their permissions only",
    ),
    "processes": (
        "no process but its own within reach, none left behind",
        "other processes of the user are within reach; one that hides may be left behind",
    ),
    "privileges": ("no privileges", "programs run as root, without its capabilities"),
    "calls": ("dangerous system calls refused", "system calls are not filtered"),
}


@dataclass(frozen=True)
class Isolation:
    """The confinement in force on this machine; `str` describes it in words.

    Attributes:
        network: programs have no network.
        files: they see only the standard library and an empty directory of their own.
        processes: they reach no process but their own, and none of those outlives the run.
        privileges: they are not root.
        calls: system calls that no program needs are refused.
    """

    network: bool
    files: bool
    processes: bool
    privileges: bool
    calls: bool

    def __str__(self) -> str:
        names = [field.name for field in fields(self)]
        return "; ".join(_WALLS[name][0 if getattr(self, name) else 1] for name in names)


class WorkerDiedError(Exception):
    """A worker ended, stopped answering, or found that this machine cannot judge programs."""


class Worker:
    """One server process and the pipes to it.

    Raises:
        WorkerDiedError: it could not be started.
    """

    def __init__(self, timeout: float, memory_mb: int, max_output: int, namespaces: bool) -> None:
        self.patience = 2 * timeout + GRACE
        try:
            self.directory, lock = make_directory()
        except OSError as error:
            raise WorkerDiedError(
                f"no directory for temporary files: {error}; free some space, or set TMPDIR"
            ) from error
        settings = {
            "timeout": timeout,
            "memory": memory_mb << 20,
            "output": max_output,
            "directory": self.directory,
            "namespaces": namespaces,
        }
        try:
            self.process = subprocess.Popen(
                [*PYTHON, "-c", START, str(PACKAGES), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={},
                cwd=self.directory,
                start_new_session=True,
                bufsize=0,
                pass_fds=[lock],
            )
        except OSError as error:
            os.close(lock)
            remove_directory(self.directory)
            raise WorkerDiedError(f"{sys.executable} cannot be started: {error}") from error
        self._lock = lock
        try:
            self.isolation = Isolation(**self.receive())
        except WorkerDiedError:
            self.close()
            raise

    def send(self, request: dict[str, str | None]) -> None:
        """Send one program."""
        assert self.process.stdin is not None
        data = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while data:
                data = data[self.process.stdin.write(data) :]
        except OSError as error:
            raise WorkerDiedError("it has ended") from error

    def receive(self) -> dict[str, Any]:
        """Wait for one reply line."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + self.patience
        reply = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise WorkerDiedError(f"it gave no answer for {self.patience:g} seconds")
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    raise WorkerDiedError("it has ended")
                reply += data
        answer: dict[str, Any] = json.loads(reply)
        if "fault" in answer:
            raise WorkerDiedError(answer["fault"])
        return answer

    def close(self) -> None:
        """End the process and everything it started, and delete its directory."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(CLOSE_PATIENCE)  # it reaps its children, then ends
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if os.getpid() == 1:
            _collect(self.process.pid)
        if self._lock >= 0:
            remove_directory(self.directory)
            os.close(self._lock)
            self._lock = -1


def _collect(group: int) -> None:
    """Wait for processes of a killed worker, now children of process 1."""
    deadline = time.monotonic() + CLOSE_PATIENCE
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if not os.waitpid(-group, os.WNOHANG)[0]:
                time.sleep(0.01)


def _close_all(workers: set[Worker]) -> None:
    while workers:
        workers.pop().close()


class Sandbox:
    """A `Judge`: runs programs in confined child processes, many at a time, verdicts in order.

    Safe to call from several threads. Workers start on first use and end with `close`, on leaving
    the `with` block, or with the interpreter.

    Args:
        timeout: wall-clock seconds one program may take.
        memory_mb: address space one program may use.
        workers: programs run at the same time; default one per core this process may use.
        max_output: bytes of printed output kept for the verdict's detail; the rest is discarded.
    """

    def __init__(
        self,
        timeout: float = 5.0,
        memory_mb: int = 512,
        workers: int | None = None,
        max_output: int = 65536,
    ) -> None:
        if os.name != "posix":
            raise UserError("running programs needs a POSIX system (Linux, macOS, or WSL)")
        count = workers if workers is not None else available_cores()
        for name, value in (
            ("timeout", timeout),
            ("memory_mb", memory_mb),
            ("workers", count),
            ("max_output", max_output),
        ):
            if value <= 0:
                raise UserError(f"sandbox: {name} must be positive, not {value}")
        self._settings = (timeout, memory_mb, max_output, True)
        self._count = count
        self._swept = False
        self._alive: set[Worker] = set()
        self._idle: queue.Queue[Worker | None] = queue.Queue()  # None: not started yet
        for _ in range(count):
            self._idle.put(None)
        self._finalizer = weakref.finalize(self, _close_all, self._alive)

    def __call__(self, programs: Sequence[Program]) -> list[Verdict]:
        """Run every program; the i-th verdict is the i-th program's."""
        if len(programs) <= 1:
            return [self._judge(program) for program in programs]
        with ThreadPoolExecutor(min(self._count, len(programs))) as threads:
            return list(threads.map(self._judge, programs))

    @property
    def isolation(self) -> Isolation:
        """The confinement in force on this machine."""
        try:
            with self._worker() as worker:
                return worker.isolation
        except WorkerDiedError as error:
            raise UserError(f"programs cannot be judged on this machine: {error}") from None

    @property
    def network_isolated(self) -> bool:
        """Whether programs run without network."""
        return self.isolation.network

    def close(self) -> None:
        """End all workers. A later call starts new ones."""
        _close_all(self._alive)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _judge(self, program: Program) -> Verdict:
        tests = "\n".join(program.tests)
        if tests and program.expected_stdout is not None:
            raise ValueError("a program is judged by tests or by expected_stdout, not by both")
        for text in (program.source, tests):
            if (reason := _unreadable(text)) is not None:
                return Verdict(False, "error", reason)
        request = {
            "source": program.source,
            "tests": tests,
            "stdin": program.stdin,
            "expected_stdout": program.expected_stdout,
        }
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._worker() as worker:
                    worker.send(request)
                    reply = worker.receive()
                break
            except WorkerDiedError as error:  # says nothing about the program
                if attempt == ATTEMPTS:
                    raise UserError(f"programs cannot be judged on this machine: {error}") from None
        passed = reply["status"] == "passed"
        return Verdict(passed, reply["status"], reply["detail"], reply["seconds"])

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """Borrow an idle worker, starting one if needed; one that fails is not returned."""
        worker = self._idle.get()
        try:
            if worker is None or worker.process.poll() is not None:
                worker = self._replace(worker)
            yield worker
        except BaseException:  # its next reply would answer this request
            if worker is not None:
                self._discard(worker)
            worker = None
            raise
        finally:
            self._idle.put(worker)

    def _replace(self, worker: Worker | None) -> Worker:
        if worker is not None:
            self._discard(worker)
        if not self._swept:
            self._swept = True
            remove_left_over()
        fresh = Worker(*self._settings)
        self._alive.add(fresh)
        return fresh

    def _discard(self, worker: Worker) -> None:
        self._alive.discard(worker)
        worker.close()


def _unreadable(text: str) -> str | None:
    """Say why a text cannot be Python source, before anything is run."""
    if "\0" in text:
        return "SyntaxError: source contains NUL bytes"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "SyntaxError: source contains lone surrogates"
    return None
