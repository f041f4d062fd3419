"""Paths that a person gives, and proof that they can be written to before any work begins."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from weighted_mtp.core.errors import UserError, refuse_credentials

LONGEST_SUFFIX = len(".partial-4194304")
"""What is written is first written beside its place, under a name that is so much longer."""
DEEPEST = 120
"""Characters of the longest path that is written below a run or a result directory."""
DISK_ERRORS = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
        *(errno.ENOTDIR, errno.EISDIR, errno.EFBIG, errno.EIO, errno.ELOOP, errno.ENOENT),
        *(errno.EEXIST, errno.ENXIO, errno.ESTALE, errno.ETXTBSY),
    )
)
"""What a person can put right: the disk, permissions, or a name."""


def given_path(text: str) -> Path:
    """A path from the command line (argparse's `type`).

    Raises:
        UserError: it is empty, which `Path` takes for the current directory, or a URL with
            credentials.
    """
    refuse_credentials(text, "a path on the command line")
    if not text:
        raise UserError(
            'a path on the command line is empty (""); for the current directory, give .'
        )
    if "\0" in text:
        raise UserError(f"{text!r}: no path contains a NUL character")
    return Path(text)


def given_name(text: str) -> str:
    """A name, path or URL from the command line that stays text (argparse's `type`).

    Raises:
        UserError: as for `given_path`.
    """
    given_path(text)
    return text


def check_output_file(path: Path, option: str) -> None:
    """Prove that a file can be written, whose missing parent directories are made later.

    Args:
        option: how the path is given, for the message.

    Raises:
        UserError: it cannot.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a directory; {option} names a file to write")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a regular file; {option} names a file to write")
        _check_lengths(path, LONGEST_SUFFIX)
        _prove(path.parent)
    except OSError as error:
        raise _unwritable(path, option, error) from error


def check_output_directory(path: Path, option: str) -> None:
    """Prove that files can be written into a directory, which is made later if it is missing.

    Args:
        option: how the path is given, for the message.

    Raises:
        UserError: they cannot.
    """
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is not a directory; {option} names a directory to write")
        _check_lengths(path, LONGEST_SUFFIX, DEEPEST)
        _prove(path)
    except OSError as error:
        raise _unwritable(path, option, error) from error


def _prove(directory: Path) -> None:
    """Make the directory and a file in it, and remove what was made."""
    made: list[Path] = []
    probe = directory / f".weighted-mtp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        for place in reversed([p for p in (directory, *directory.parents) if not p.exists()]):
            place.mkdir()
            made.append(place)
        probe.write_bytes(b"\n")
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        for place in reversed(made):
            with suppress(OSError):  # another process writes there already
                place.rmdir()


def _check_lengths(path: Path, suffix: int, below: int = 0) -> None:
    """Raise what the file system would, later, for a name that is too long."""
    whole = path.absolute()
    there = next(place for place in (whole, *whole.parents) if _is_there(place))
    longest = os.pathconf(there, "PC_NAME_MAX")
    if len(os.fsencode(path.name)) + suffix > longest:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if len(os.fsencode(whole)) + suffix + below > os.pathconf(there, "PC_PATH_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # its name is too long
        return False


def _unwritable(path: Path, option: str, error: OSError) -> UserError:
    words = str(path)
    words = words if len(words) <= 120 else f"{words[:60]}…{words[-40:]}"
    return UserError(
        f"{words}: cannot be written ({error.strerror or error}); make it writable, or name "
        f"another place with {option}"
    )


def set_options(settings: Iterable[str]) -> list[str]:
    """Settings (`section.key=value`) as words of a command."""
    return [word for setting in settings for word in ("--set", setting)]


def command_line(*words: object) -> str:
    """A command that a shell takes as it is printed."""
    return shlex.join(str(word) for word in words)
