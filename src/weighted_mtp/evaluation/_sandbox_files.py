"""The files that a confined child sees, and how its own are deleted."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from glob import glob

from weighted_mtp.evaluation import _sandbox_kernel as kernel

MAX_STORED = "size=64m,nr_inodes=4096,mode=700"
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


class Workspace:
    """The place where one program after another works, each in a new directory.

    Args:
        base: holds the directories; no program may keep a change to it.
        owner: the user that programs become, or None if they stay the present user.
    """

    def __init__(self, base: str, owner: int | None = None) -> None:
        self.base, self.owner, self._count = base, owner, 0

    def new(self) -> str:
        """Create an empty directory that no program has touched, mode and attributes included.

        Raises:
            OSError: the file system does not allow it.
        """
        self._restore_base()
        self._count += 1
        path = os.path.join(self.base, f"{self._count}")
        os.mkdir(path, 0o700)
        if self.owner is not None:
            os.chown(path, self.owner, self.owner)
        return path

    def clear(self) -> None:
        """Delete everything that programs left."""
        self._restore_base()
        empty(self.base)

    def _restore_base(self) -> None:
        """Undo what a program of the same user can do to the directory above its own."""
        if stat.S_IMODE(os.stat(self.base).st_mode) != 0o711:
            os.chmod(self.base, 0o711)
        if hasattr(os, "listxattr"):
            with suppress(OSError):  # not every file system has them
                for name in os.listxattr(self.base):
                    if name.startswith(("user.", "system.posix_acl")):
                        os.removexattr(self.base, name)


def holds_more_than(directory: str, count: int) -> bool:
    """Whether there are more files and directories below, or they are too deep to be named."""
    found, waiting = 0, [directory]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    found += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    if found > count:
                        return True
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True
    return False


def empty(directory: str) -> None:
    """Delete all that is in a directory, however deep, whatever its permissions.

    What is found in a subdirectory moves up by one level, so no path grows long; calls go through
    descriptors, because looking up a path costs more than the deletion.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = os.listdir(top)
        number = 0
        while names:
            name = names.pop()
            try:
                os.unlink(name, dir_fd=top)
                continue
            except IsADirectoryError:
                pass
            except PermissionError:  # what some systems say of a directory
                if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
                    raise
            below = _open_directory(name, top)
            try:
                for inner in os.listdir(below):
                    try:
                        os.unlink(inner, dir_fd=below)
                    except (IsADirectoryError, PermissionError):
                        _allow(inner, below)
                        number += 1
                        moved = f"{_UNUSED}{number}"
                        os.rename(inner, moved, src_dir_fd=below, dst_dir_fd=top)
                        names.append(moved)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


_UNUSED = secrets.token_hex(16)
"""Begins names that no program has given to anything here."""


def _allow(name: str, where: int) -> None:
    """Make a directory accessible: moving it needs the permission to write in it."""
    if stat.S_ISDIR(os.lstat(name, dir_fd=where).st_mode):
        os.chmod(name, 0o700, dir_fd=where)


def _open_directory(name: str, where: int) -> int:
    if os.geteuid() != 0:
        _allow(name, where)
    return os.open(name, _DIRECTORY, dir_fd=where)


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
