"""The process that the confined children are forked from: one kind for programs, one for tests.

It has read nothing of any request, so there is nothing in it for a child to find. It is the first
process of its own process namespace and has a file system of its own, where the kernel allows;
after each child it kills everything that is left and empties the working directory.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from weighted_mtp.evaluation import _sandbox_kernel as kernel
from weighted_mtp.evaluation import _sandbox_seccomp as seccomp
from weighted_mtp.evaluation._sandbox_files import DEVICES, change_root, empty, library_paths

START, END = b"s", b"e"
STATUS = struct.Struct("=i")
STILL_RUNNING = -1
"""A child's wait status where it had to be killed."""
MAX_FILE_BYTES = 16 << 20
MAX_OPEN_FILES = 64
MAX_PROCESSES = 32
LAST_FD = 256


@dataclass
class Settings:
    """What a child may use, and which walls are up.

    Attributes:
        timeout: seconds of wall-clock time; CPU time is limited to a little more.
        memory: bytes of address space.
        workspace: the directory where children work and may write.
        uid: user that children become; None: they stay who they are.
        filter_calls: whether system calls are filtered.
        ruleset: file descriptor of a Landlock ruleset, or None.
        alone: whether this zygote is process 1 of its namespace.
        private_files: whether it has a file system of its own.
    """

    timeout: float
    memory: int
    workspace: str
    uid: int | None = None
    filter_calls: bool = False
    ruleset: int | None = None
    alone: bool = False
    private_files: bool = False


# --- the child -----------------------------------------------------------------------------------


def confine(settings: Settings) -> None:
    """Give up everything a program has no business with.

    Raises:
        OSError: a wall that stood at the trial does not stand now.
    """
    os.chdir(settings.workspace)
    os.environ.clear()
    cpu = int(settings.timeout) + 1
    limits = {
        "RLIMIT_CPU": (cpu, cpu + 1),
        "RLIMIT_AS": (settings.memory, settings.memory),
        "RLIMIT_FSIZE": (MAX_FILE_BYTES, MAX_FILE_BYTES),
        "RLIMIT_NPROC": (MAX_PROCESSES, MAX_PROCESSES),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_NOFILE": (MAX_OPEN_FILES, MAX_OPEN_FILES),
    }
    for name, limit in limits.items():
        if hasattr(resource, name):  # which limits exist, and may be set, differs by system
            with suppress(OSError, ValueError):
                resource.setrlimit(getattr(resource, name), limit)
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
        kernel.filter_calls(seccomp.call_filter(os.getpid()))


def place(descriptors: list[int]) -> None:
    """Make these the descriptors 0, 1, 2, …, and close all others but standard ones."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, LAST_FD // 2) for fd in descriptors]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=False)
    os.closerange(len(descriptors), LAST_FD)


def child(settings: Settings, descriptors: list[int], play: Callable[[], int]) -> NoReturn:
    """The life of a forked process."""
    leave = os._exit
    try:
        os.setsid()
        if settings.ruleset is not None:
            kept = fcntl.fcntl(settings.ruleset, fcntl.F_DUPFD, LAST_FD)
            settings.ruleset = kept
        place(descriptors)
        confine(settings)
        leave(play())
    finally:
        leave(1)


# --- the server ----------------------------------------------------------------------------------


def descendants() -> list[int]:
    """Every process below this one, by what /proc says."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{int(name)}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, waiting = [], [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def kill_all(pid: int, alone: bool) -> None:
    """Kill a child and whatever it started, wherever that has hidden."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if alone:  # all processes of the namespace but this one
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    elif os.path.isdir("/proc/self"):
        for _ in range(100):
            if not (left := descendants()):
                break
            for other in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(other, signal.SIGKILL)
            reap()


def reap() -> None:
    """Let every child that has ended go."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end(pid: int, patience: float, alone: bool) -> int:
    """Wait for a child a little while, then kill what is left; return its wait status."""
    deadline = time.monotonic() + patience
    ended, status = os.waitpid(pid, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    kill_all(pid, alone)
    with suppress(ChildProcessError):
        while alone:  # all of them are dying
            os.waitpid(-1, 0)
    return status if ended else STILL_RUNNING


def serve(control: socket.socket, settings: Settings, play: Callable[[], int]) -> None:
    """Fork children as told until the worker ends."""
    pid = 0
    while True:
        command, descriptors, _, _ = socket.recv_fds(control, 1, 8)
        if command == START:
            pid = os.fork()
            if pid == 0:
                child(settings, descriptors, play)
            for descriptor in descriptors:
                os.close(descriptor)
        elif command == END:
            tenths = control.recv(1)[0]
            status = end(pid, tenths / 10, settings.alone)
            empty(settings.workspace)
            control.sendall(STATUS.pack(status))
        else:
            return


def put_walls_up(settings: Settings, role: str) -> None:
    """Try, in a child, which means of confinement work here; settle on those."""
    if os.geteuid() == 0:
        nobody = kernel.NOBODY[role]
        with suppress(OSError):  # where such a user does not exist: in some containers
            os.chown(settings.workspace, nobody, nobody)
            settings.uid = nobody
        if settings.uid is not None and not kernel.succeeds(lambda: _trial(settings)):
            settings.uid = None
            os.chown(settings.workspace, 0, 0)
    if not sys.platform.startswith("linux"):
        return
    settings.filter_calls = seccomp.supported()
    if settings.filter_calls and not kernel.succeeds(lambda: _trial(settings)):
        settings.filter_calls = False
    if not settings.private_files:
        with suppress(OSError):
            paths = [*library_paths(), *DEVICES]
            settings.ruleset = kernel.landlock(paths, [settings.workspace])
        if settings.ruleset is not None and not kernel.succeeds(lambda: _trial(settings)):
            settings.ruleset = None


def _trial(settings: Settings) -> None:
    confine(settings)
    with open(os.__file__, "rb"), open("probe", "wb"):
        pass
    os.unlink("probe")


def zygote(
    control: socket.socket, settings: Settings, role: str, root: str, play: Callable[[], int]
) -> None:
    """Set up, say what stands, and serve."""
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
    }
    control.sendall(json.dumps(walls).encode() + b"\n")
    gc.collect()
    gc.freeze()  # a child's collector leaves alone what it shares with this process
    serve(control, settings, play)
