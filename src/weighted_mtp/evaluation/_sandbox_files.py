"""The files that a confined child sees, and how its own are deleted."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
from collections.abc import Iterable
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


def empty(directory: str) -> None:
    """Delete all that is in a directory, however deep, whatever its permissions."""
    fresh = (f"{secrets.token_hex(16)}-{number}" for number in itertools.count())
    while names := os.listdir(directory):
        for name in names:
            path = os.path.join(directory, name)
            if not _open_up(path):
                os.unlink(path)
                continue
            for below in os.listdir(path):  # up by one level: no path ever grows long
                _open_up(os.path.join(path, below))
                os.rename(os.path.join(path, below), os.path.join(directory, next(fresh)))
            os.rmdir(path)


def _open_up(path: str) -> bool:
    """Whether this is a directory; if so it may be changed from now on."""
    if os.path.islink(path) or not os.path.isdir(path):
        return False
    os.chmod(path, 0o700)
    return True
