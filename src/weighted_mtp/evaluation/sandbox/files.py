"""The files that a confined child sees, and how its own are deleted."""

from __future__ import annotations

import math
import os
import secrets
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from glob import glob

from weighted_mtp.evaluation.sandbox import kernel as kernel

MAX_STORED = "size=64m,nr_inodes=4096,mode=700"
CLEAR_TIME = 1.0
"""Seconds for deleting what a program left; the rest goes after the next one."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def library_paths() -> list[str]:
    """Directories and files that Python needs to import its standard library."""
    standard = os.path.dirname(os.path.abspath(os.__file__))
    paths = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"]
    paths += [os.path.join(sys.base_prefix, "lib"), standard, "/usr/share/zoneinfo"]
    kept: list[str] = []
    for path in sorted(dict.fromkeys(paths), key=len):
        inside = any(os.path.realpath(path).startswith(f"{p}/") for p in kept)
        if os.path.exists(path) and not inside and path not in kept:
            kept.append(path)
    return kept


def installed_packages(paths: Iterable[str]) -> list[str]:
    """Directories of packages that are no part of Python: some hold the answers to benchmarks."""
    patterns = ("python3*/site-packages", "python3*/dist-packages", "site-packages")
    return [found for path in paths for pattern in patterns for found in glob(f"{path}/{pattern}")]


def change_root(root: str) -> None:
    """See nothing but the standard library, a few devices and an empty /tmp from now on.

    Raises:
        OSError: the kernel does not permit it.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    tidy = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", root, "tmpfs", tidy, "size=1m,mode=755")
    paths = library_paths()
    for path in (*paths, *DEVICES):
        target = root + path
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if os.path.isdir(path):
            os.mkdir(target, 0o755)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        if path in DEVICES:
            kernel.mount(path, target, None, kernel.MS_BIND)
        else:
            kernel.bind_read_only(path, target)
    for path in installed_packages(paths):
        kernel.mount("none", root + path, "tmpfs", tidy | kernel.MS_RDONLY, "size=4k")
    os.mkdir(root + "/tmp", 0o755)
    kernel.mount("none", root, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | tidy)
    kernel.mount("none", root + "/tmp", "tmpfs", tidy, MAX_STORED)
    os.chroot(root)
    os.chdir("/")
    with open(os.__file__, "rb"):  # or nothing could be imported
        pass


PROGRAM, WORK = "program.py", "work"
"""A program's source and its working directory, in the directory that is made for it."""


class Workspace:
    """The place where one program after another works, each in a new directory.

    Args:
        base: holds the directories; no program may keep a change to it.
        owner: the user that programs become, or None if they stay the present user.
    """

    def __init__(self, base: str, owner: int | None = None) -> None:
        self.base, self.owner, self._count, self._last = base, owner, 0, ""
        self._hidden = False
        os.chmod(base, 0o711)

    def new(self) -> str:
        """Create an empty directory that no program has touched, mode and attributes included.

        Raises:
            OSError: the file system does not allow it.
        """
        self._count += 1
        path = self._last = os.path.join(self.base, f"{self._count}")
        os.mkdir(path, 0o700)
        if self.owner is not None:
            os.chown(path, self.owner, self.owner)
        return path

    def clear(self) -> None:
        """Delete everything that programs left, or hide what takes too long until the next time."""
        if self.owner is None:  # the same user can change the directory above its own too
            self._restore_base()
        elif not self._hidden and self._clear_usual():
            return
        self._hidden = not empty(self.base, CLEAR_TIME)
        if self._hidden:
            for name in os.listdir(self.base):
                if len(name) < len(_UNUSED):  # the others have been hidden
                    hidden = f"{secrets.token_hex(16)}-{name}"
                    os.rename(os.path.join(self.base, name), os.path.join(self.base, hidden))

    def _clear_usual(self) -> bool:
        """Delete what is always there; False if there is more."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(f"{self._last}/{PROGRAM}")
                os.rmdir(f"{self._last}/{WORK}")
            os.rmdir(self._last)
        except OSError:
            return False
        return True

    def _restore_base(self) -> None:
        os.chmod(self.base, 0o711)
        if hasattr(os, "listxattr"):
            with suppress(OSError):  # not every file system has them
                for name in os.listxattr(self.base):
                    if name.startswith(("user.", "system.posix_acl")):
                        os.removexattr(self.base, name)


def holds_more_than(directory: str, count: int, deep: int) -> bool:
    """Whether there are more files and directories below, or directories deeper in each other."""
    found, waiting = 0, [(directory, 0)]
    while waiting:
        path, depth = waiting.pop()
        with suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                found += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, depth + 1))
                if found > count or depth >= deep:
                    return True
    return False


_AT_ONCE = 12
"""Directories in each other that are open at the same time."""
_UNUSED = secrets.token_hex(16)
"""Begins names that no program has given to anything here."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def empty(directory: str, seconds: float | None = None) -> bool:
    """Delete all that is in a directory, however deep, whatever its permissions.

    Returns whether that took less than so many seconds; if not, something is left.

    Calls go through descriptors, because looking up a long path costs more than the deletion. What
    lies too deep moves to the top first.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    open_ = [("", top, _entries(top))]
    moved = 0
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            name, here, entries = open_[-1]
            if entries:
                below, is_directory = entries.pop()
                if not is_directory:
                    os.unlink(below, dir_fd=here)
                    continue
                if os.geteuid() != 0:  # its owner needs the permission to open or to move it
                    os.chmod(below, 0o700, dir_fd=here)
                if len(open_) > _AT_ONCE:
                    moved += 1
                    os.rename(below, f"{_UNUSED}{moved}", src_dir_fd=here, dst_dir_fd=top)
                    continue
                inside = os.open(below, _DIRECTORY, dir_fd=here)
                open_.append((below, inside, _entries(inside)))
            elif len(open_) > 1:
                open_.pop()
                os.close(here)
                os.rmdir(name, dir_fd=open_[-1][1])
            else:
                entries += _entries(top)
                if not entries:
                    return True
        return False
    finally:
        for _, descriptor, _ in open_:
            os.close(descriptor)


def _entries(descriptor: int) -> list[tuple[str, bool]]:
    """Names in an open directory, and whether they are directories."""
    with os.scandir(descriptor) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
