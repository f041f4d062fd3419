"""What the sandbox asks of the Linux kernel, by ctypes. Every function raises `OSError` if refused.

Nothing here needs root: an unprivileged process first makes itself a user namespace, and with it
gains the right to the other kinds.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
_KEPT_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC | 1024 | 2048 | (1 << 21)
"""Flags a read-only remount must repeat: an unprivileged process may not clear them. The last
three: noatime, nodiratime, relatime."""
_ST_TO_MS = {1024: 1024, 2048: 2048, 4096: 1 << 21}
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS, _SUBREAPER = 1, 4, 38, 36
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every machine
_READ, _ALL = 0x4 | 0x8, 0x7FFF  # read files and list directories; all that version 3 knows
_FILE_ONLY = 0x1 | 0x2 | 0x4 | 0x4000

NOBODY = {"program": 65534, "tests": 65533}
"""User and group of a child, by its role: two, so that neither may touch the other."""


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _call(function: Any, *args: Any) -> int:
    """Call a C function that says -1 for an error; integers go as unsigned longs."""
    wide = [ctypes.c_ulong(arg & (1 << 64) - 1) if isinstance(arg, int) else arg for arg in args]
    result = int(function(*wide))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    """Leave the given namespaces for new ones (pid: the next child does)."""
    _call(_libc().unshare, flags)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    name = kind.encode() if kind else None
    _call(_libc().mount, source.encode(), target.encode(), name, flags, options.encode() or None)


def bind_read_only(source: str, target: str) -> None:
    """Show `source` at `target`, not to be written."""
    mount(source, target, None, MS_BIND)
    shown = os.statvfs(target).f_flag
    flags = shown & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    flags |= sum(ms for st, ms in _ST_TO_MS.items() if shown & st)
    mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)


def die_with_parent() -> None:
    """Be killed when the parent process ends."""
    _call(_libc().prctl, _PDEATHSIG, 9, 0, 0, 0)


def hide_memory() -> None:
    """Let no process of the same user trace this one or open its files in /proc."""
    _call(_libc().prctl, _DUMPABLE, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    _call(_libc().prctl, _SUBREAPER, 1, 0, 0, 0)


def become(uid: int) -> None:
    """Change user and group for good, and belong to no other group."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Give up every capability, and the way to any: set-user-id programs do nothing now."""
    header = struct.pack("=Ii", 0x20080522, 0)
    _call(_libc().capset, header, bytes(24))
    _call(_libc().prctl, _NO_NEW_PRIVS, 1, 0, 0, 0)


def filter_calls(program: bytes) -> None:
    """Install a system call filter (`seccomp.py`)."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _call(_libc().prctl, 22, 2, header, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def landlock(readable: list[str], writable: list[str]) -> int:
    """A ruleset that leaves these paths and nothing else, as a file descriptor."""
    syscall = _libc().syscall
    version = _call(syscall, _LANDLOCK_CREATE, None, 0, 1)
    if version < 3:
        raise OSError("a Landlock too old to refuse truncation")
    scopes = 3 if version >= 6 else 0  # no signal and no abstract socket to anyone outside
    attributes = struct.pack("=QQQ", _ALL, 0, scopes)[: 24 if version >= 6 else 8]
    ruleset = _call(syscall, _LANDLOCK_CREATE, attributes, len(attributes), 0)
    for paths, access in ((readable, _READ), (writable, _ALL)):
        for path in paths:
            where = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = access if os.path.isdir(path) else access & _FILE_ONLY
            rule = struct.pack("=Qi", allowed, where)
            _call(syscall, _LANDLOCK_ADD, ruleset, 1, rule, 0)
            os.close(where)
    return ruleset


def restrict(ruleset: int) -> None:
    """Keep to a `landlock` ruleset from now on."""
    _call(_libc().syscall, _LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


# --- the namespaces of a worker ------------------------------------------------------------------

_WORKER_SPACES = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS


def _map_ids(pid: int, inside: list[int]) -> None:
    """Say which users and groups exist in the user namespace of process `pid`."""
    lines = "".join(f"{number} {number} 1\n" for number in inside)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(lines)


def _enter_with_nobody() -> None:
    """As root: a user namespace that has root and the two nobodies. Its map must be written from
    outside, by a helper forked before."""
    me = os.getpid()
    ready, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.read(ready, 1)
        try:
            _map_ids(me, [0, *sorted(NOBODY.values())])
        except OSError:
            os._exit(1)
        os._exit(0)
    try:
        unshare(CLONE_NEWUSER | _WORKER_SPACES)
    finally:
        os.write(go, b"x")
        _, status = os.waitpid(helper, 0)
        os.close(ready)
        os.close(go)
    if status != 0:
        raise OSError("the users of a namespace cannot be mapped")


def _enter_alone() -> None:
    """A user namespace with the present user only."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | _WORKER_SPACES)
    with open("/proc/self/setgroups", "w") as file:
        file.write("deny")
    for name, number in (("uid_map", uid), ("gid_map", gid)):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(f"{number} {number} 1")


def _enter_as_root() -> None:
    unshare(_WORKER_SPACES)


def enter_namespaces() -> tuple[bool, bool]:
    """Move into namespaces without network, the best kind permitted.

    Returns:
        Whether any is, and whether processes are counted apart from the user's others there.
    """
    ways: list[Callable[[], None]] = [_enter_alone]
    if os.geteuid() == 0:
        ways = [_enter_with_nobody, _enter_alone, _enter_as_root]
    for way in ways:
        if succeeds(way):  # tried by a child first: one that fails half way cannot go back
            way()
            return True, way is not _enter_as_root and _release() >= (5, 14)
    return False, False


def _release() -> tuple[int, ...]:
    """The kernel's version: since 5.14 it counts processes per user namespace."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return tuple(int(number) for number in numbers.groups()) if numbers else ()


def count_tasks(uid: int | None) -> int | None:
    """Count the processes and threads of a user, by default the present one; None if unknown."""
    real = str(os.getuid() if uid is None else uid)
    count = 0
    if not os.path.isdir("/proc/self"):
        return None
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/status") as file:
            text = file.read()
            if text.partition("\nUid:\t")[2].split(maxsplit=1)[:1] == [real]:
                count += int(text.partition("\nThreads:\t")[2].split(maxsplit=1)[0])
    return count


def succeeds(attempt: Callable[[], object]) -> bool:
    """Whether a forked child gets through `attempt`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            attempt()
            code = 0
        except Exception:
            code = 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0
