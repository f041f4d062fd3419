"""The process from which confined children are forked: one for programs, one for tests.

It never reads a request, so that a child finds nothing of others in its memory. It is the first
process of its own process namespace and has its own file system, if the kernel allows; after each
child it kills everything that is left and empties the working directory.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from weighted_mtp.evaluation.sandbox import kernel as kernel
from weighted_mtp.evaluation.sandbox import seccomp as seccomp
from weighted_mtp.evaluation.sandbox.end import end
from weighted_mtp.evaluation.sandbox.files import DEVICES, Workspace, change_root, library_paths

START, END = b"s", b"e"
STATUS = struct.Struct("=iH")
"""A child's wait status, and the length of the text that follows: why it could not be set up."""
NOT_SET_UP = -2
"""Wait status of a child that never reached its task."""
MAX_FILE_BYTES = 16 << 20
MAX_OPEN_FILES = 64
MAX_PROCESSES = 32
STACK_ROOM = 512 << 20
"""Address space that a program may reserve for the stack of a thread, beyond its memory."""
LAST_FD = 256
_HIGH_FD = 40
"""Above every descriptor that a child gets, below the smallest limit that is accepted."""
MIN_OPEN_FILES = 64
_COUNT_AGAIN = 0.5
"""Seconds after which the user's processes are counted again."""


@dataclass
class Settings:
    """The limits and the confinement of children.

    Attributes:
        timeout: seconds of wall-clock time; CPU time is limited to a little more.
        memory: bytes of address space.
        workspace: the directory that holds the one where a child works and may write.
        uid: user that children run as; None does not change it.
        filter_calls: whether system calls are filtered.
        ruleset: file descriptor of a Landlock ruleset, or None.
        alone: whether this zygote is process 1 of its namespace.
        private_files: whether it has a file system of its own.
        own_user: whether the kernel counts this worker's processes apart from the user's others.
        other_tasks: processes and threads of the user where it does not; None if not known.
    """

    timeout: float
    memory: int
    workspace: str
    uid: int | None = None
    filter_calls: bool = False
    ruleset: int | None = None
    alone: bool = False
    private_files: bool = False
    own_user: bool = False
    other_tasks: int | None = None


# --- the child -----------------------------------------------------------------------------------


def confine(settings: Settings, directory: str) -> None:
    """Give up everything that a program must not have.

    Raises:
        OSError: a restriction that worked in the trial fails now.
    """
    os.chdir(directory)
    os.environ.clear()
    cpu = int(settings.timeout) + 1
    limits: dict[str, tuple[int, int] | None] = {
        "RLIMIT_CPU": (cpu, cpu + 1),
        "RLIMIT_AS": (settings.memory, settings.memory + STACK_ROOM),
        "RLIMIT_FSIZE": (MAX_FILE_BYTES, MAX_FILE_BYTES),
        "RLIMIT_NPROC": _process_limit(settings),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_NOFILE": (MAX_OPEN_FILES, MAX_OPEN_FILES),
    }
    for name, limit in limits.items():
        if limit is not None and hasattr(resource, name):
            _lower(getattr(resource, name), *limit)
    if settings.uid is not None:
        kernel.become(settings.uid)
    if not sys.platform.startswith("linux"):
        return
    kernel.drop_capabilities()
    if not settings.alone:
        kernel.die_with_parent()
    if settings.ruleset is not None:
        kernel.restrict(settings.ruleset)
    if settings.filter_calls:
        others_files = settings.uid is None and not settings.private_files
        kernel.filter_calls(seccomp.call_filter(os.getpid(), keep_modes=others_files))


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set a limit, but not above the existing one."""
    try:
        resource.setrlimit(kind, (soft, hard))
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # which limits may be set differs by system
            _, present = resource.getrlimit(kind)
            resource.setrlimit(kind, (min(soft, present), min(hard, present)))


def _process_limit(settings: Settings) -> tuple[int, int] | None:
    """Return the limit on processes and threads; None if it would limit the user's other work."""
    if settings.own_user or not sys.platform.startswith("linux"):
        return MAX_PROCESSES, MAX_PROCESSES
    if settings.other_tasks is None:
        return None
    # Where fork is refused, threads are all there is, and memory limits those.
    limit = settings.other_tasks + (32 if settings.filter_calls else 1) * MAX_PROCESSES
    return limit, limit


def place(descriptors: list[int], kept: list[int]) -> list[int]:
    """Make these the descriptors 0, 1, 2, …; return the new numbers of those kept; close others."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH_FD) for fd in (*descriptors, *kept)]
    for number, fd in enumerate(high[: len(descriptors)]):
        os.dup2(fd, number, inheritable=False)
    last = len(descriptors)
    for fd in sorted(high[len(descriptors) :]):
        os.closerange(last, fd)
        last = fd + 1
    os.closerange(last, LAST_FD)
    return high[len(descriptors) :]


def child(
    settings: Settings, directory: str, descriptors: list[int], ready: int, play: Callable[[], int]
) -> NoReturn:
    """The life of a forked process. It says on `ready` that it is set up, or why it is not."""
    leave = os._exit
    try:
        try:
            os.setsid()
            kept = [ready] if settings.ruleset is None else [ready, settings.ruleset]
            ready, *rules = place(descriptors, kept)
            settings.ruleset = rules[0] if rules else None
            confine(settings, directory)
        except Exception as error:
            os.write(ready, f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
            leave(1)
        os.write(ready, b"\0")
        os.close(ready)
        leave(play())
    finally:
        leave(1)


# --- the server ----------------------------------------------------------------------------------


class Children:
    """Forks children for a worker, one at a time, and ends them."""

    def __init__(self, settings: Settings, play: Callable[[], int]) -> None:
        self._settings, self._play = settings, play
        self._workspace = Workspace(settings.workspace, settings.uid)
        self._pid, self._ready, self._fault = 0, -1, ""
        self._counted = 0.0

    def start(self, descriptors: list[int]) -> None:
        """Fork one; `end` reports what kept it from starting."""
        self._pid, self._ready, self._fault = 0, -1, ""
        if not self._settings.own_user and time.monotonic() - self._counted > _COUNT_AGAIN:
            self._counted = time.monotonic()
            self._settings.other_tasks = kernel.count_tasks(self._settings.uid)
        try:
            directory = self._workspace.new()
            self._ready, ready_end = os.pipe()
            try:
                self._pid = os.fork()
                if self._pid == 0:
                    child(self._settings, directory, descriptors, ready_end, self._play)
            finally:
                os.close(ready_end)
        except OSError as error:
            self._fault = f"{error}"

    def end(self, patience: float) -> tuple[int, str]:
        """End the child; return its wait status and, if it was not set up, the reason."""
        status, fault = NOT_SET_UP, self._fault
        if self._pid:
            status = end(self._pid, patience, self._settings.alone)
        if self._ready >= 0:
            said = os.read(self._ready, 1000)
            os.close(self._ready)
            if self._pid and said != b"\0":
                fault = said.decode("utf-8", "replace") or "it took too long to start"
        try:
            self._workspace.clear()
        except OSError as error:
            fault = fault or f"its files cannot be deleted: {error}"
        return (NOT_SET_UP if fault else status), fault


def serve(control: socket.socket, children: Children) -> None:
    """Fork children on request until the worker ends."""
    while True:
        command, descriptors, _, _ = socket.recv_fds(control, 1, 8)
        if command == START:
            children.start(descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        elif command == END:
            tenths = control.recv(1)[0]
            status, fault = children.end(tenths / 10)
            text = fault.encode("utf-8", "replace")[:1000]
            control.sendall(STATUS.pack(status, len(text)) + text)
        else:
            return


def put_walls_up(settings: Settings, role: str) -> None:
    """Try in a child which restrictions work here, and use those."""
    if os.geteuid() == 0:
        settings.uid = kernel.NOBODY[role]  # there is no such user in some containers
        if not _holds(settings):
            settings.uid = None
    if not sys.platform.startswith("linux"):
        return
    settings.filter_calls = seccomp.supported()
    if settings.filter_calls and not _holds(settings):
        settings.filter_calls = False
    if not settings.private_files:
        with suppress(OSError):
            paths = [*library_paths(), *DEVICES]
            settings.ruleset = kernel.landlock(paths, [settings.workspace])
        if settings.ruleset is not None and not _holds(settings):
            settings.ruleset = None


def _holds(settings: Settings) -> bool:
    """Whether a child can still work under these restrictions."""

    def attempt() -> None:
        confine(settings, workspace.new())
        with open(os.__file__, "rb"), open("probe", "wb"):
            pass

    workspace = Workspace(settings.workspace, settings.uid)
    held = kernel.succeeds(attempt)
    workspace.clear()
    return held


def zygote(
    control: socket.socket, settings: Settings, role: str, root: str, play: Callable[[], int]
) -> None:
    """Set up, report the confinement in force, and serve."""
    if sys.platform.startswith("linux"):
        kernel.die_with_parent()
    settings.alone = os.getpid() == 1
    if not settings.alone and sys.platform.startswith("linux"):
        kernel.adopt_orphans()
    if root:
        change_root(root)
        settings.workspace, settings.private_files = "/tmp", True
    put_walls_up(settings, role)
    walls = {
        "files": settings.private_files or settings.ruleset is not None,
        "processes": settings.alone or settings.filter_calls,
        "privileges": settings.uid is not None or os.geteuid() != 0,
        "calls": settings.filter_calls,
        "own_files": settings.private_files,
    }
    control.sendall(json.dumps(walls).encode() + b"\n")
    gc.collect()
    gc.freeze()  # a child's collector leaves alone what it shares with this process
    children = Children(settings, play)
    serve(control, children)
