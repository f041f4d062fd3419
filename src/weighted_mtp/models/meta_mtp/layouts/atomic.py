"""A directory that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from weighted_mtp.core.errors import UserError


@contextmanager
def new_directory(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty sibling of `destination`; on success make it durable and rename it there.

    On any failure (Ctrl-C too) the sibling goes and an old `destination` is as it was. With
    `overwrite` the old one is set aside (`NAME.old-PID`) for the instant between two renames.

    Raises:
        UserError: `destination` exists and `overwrite` is not set, or it cannot be written.
    """
    if not overwrite:
        check_absent(destination)
    partial = destination.with_name(f"{destination.name}.partial-{os.getpid()}")
    made = [parent for parent in destination.parents if not parent.exists()]  # innermost first
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process long gone with our number
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        _put_in_place(partial, destination, overwrite)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError | SafetensorError):
            raise UserError(
                f"{destination}: cannot be written ({error}); make room or choose another place"
            ) from error
        raise


def check_absent(destination: Path) -> None:
    """Raise `UserError` where something already is."""
    if os.path.lexists(destination):
        raise UserError(f"{destination}: already exists; choose another name or pass --overwrite")


def copy_files(files: Sequence[Path], directory: Path) -> None:
    """Copy files, and folders of files, by their own names, into `directory`."""
    for file in files:
        if file.is_dir():
            shutil.copytree(file, directory / file.name, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(file, directory / file.name)


def _put_in_place(partial: Path, destination: Path, overwrite: bool) -> None:
    old = destination.with_name(f"{destination.name}.old-{os.getpid()}")
    replaces = overwrite and destination.exists()
    if replaces:
        destination.rename(old)
    try:
        partial.rename(destination)
    except OSError:
        if replaces:
            old.rename(destination)
        raise
    _sync(destination.parent)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
