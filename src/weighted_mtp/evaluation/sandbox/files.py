"""The files that a confined child sees, and the deletion of its own."""

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
"""Seconds for deleting what a program left; the rest is deleted after the next program."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def library_paths() -> list[str]:
    """List directories and files that Python needs to import its standard library."""
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
    """List directories of installed packages: some contain the answers to benchmarks."""
    patterns = ("python3*/site-packages", "python3*/dist-packages", "site-packages")
    return [found for path in paths for pattern in patterns for found in glob(f"{path}/{pattern}")]


def change_root(root: str) -> None:
    """Restrict the file system to the standard library, a few devices and an empty /tmp.

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
    with open(os.__file__, "rb"):  # fail now if nothing could be imported
        pass


PROGRAM, WORK = "program.py", "work"
"""Names of a program's source and working directory, in its own directory."""


class Workspace:
    """Provides one program after another with a new working directory.

    Args:
        base: contains the directories; no program's change to it may persist.
        owner: the user that programs run as; None is the present user.
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
        """Delete everything that programs left; hide what takes too long until the next call."""
        if self.owner is None:  # the same user can also change the parent directory
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
        """Delete the usual entries; False if there are more."""
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
            with suppress(OSError):  # not every file system has attributes
                for name in os.listxattr(self.base):
                    if name.startswith(("user.", "system.posix_acl")):
                        os.removexattr(self.base, name)


def holds_more_than(directory: str, count: int, deep: int) -> bool:
    """Whether a directory contains more entries, or a deeper tree, than allowed."""
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
"""Maximum number of nested directories open at once."""
_UNUSED = secrets.token_hex(16)
"""Prefix of names that no program has used here."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def empty(directory: str, seconds: float | None = None) -> bool:
    """Delete everything in a directory, at any depth and with any permissions.

    Returns False if the time ran out before everything was deleted.

    Calls use descriptors, because resolving a long path costs more than the deletion. What is
    nested too deeply is first moved to the top.
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
                if os.geteuid() != 0:  # its owner needs permission to open or move it
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
    """List the names in an open directory, and whether they are directories."""
    with os.scandir(descriptor) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
