"""A directory at a URL (S3, GCS, …), through what every file system of fsspec can do: nothing is
renamed there, for object stores cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from fsspec.core import url_to_fs

from weighted_mtp.core.errors import UserError, in_brief

WAITS = (1.0, 5.0, 20.0)
"""Seconds between the attempts at something that fails."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocols for which we have an extra that installs their package."""

Result = TypeVar("Result")


class RemoteError(Exception):
    """What was tried at a remote directory failed, also when it was tried again."""


class Remote:
    """A directory at a URL. Names in it are relative, with slashes.

    All methods try again a few times, and raise `RemoteError` in the end.

    Args:
        waits: seconds between the attempts, `WAITS` if None.

    Raises:
        UserError: no such protocol, or its package is not installed.
    """

    def __init__(self, url: str, waits: Sequence[float] | None = None) -> None:
        self.url, self._waits = url.rstrip("/"), waits
        protocol = url.partition("://")[0]
        try:
            self._fs, path = url_to_fs(self.url)
        except ImportError as error:
            remedy = str(error)
            if protocol in EXTRAS:
                remedy = f"pip install 'weighted-mtp[{EXTRAS[protocol]}]'"
            raise UserError(f"{url}: the package for {protocol}:// is missing; {remedy}") from error
        except ValueError as error:
            raise UserError(f"{url}: {in_brief(error)}; write it as s3://BUCKET/NAME") from error
        except Exception as error:  # whatever a third-party package raises, on missing settings
            raise UserError(f"{url}: cannot be opened ({in_brief(error)})") from error
        self._path = str(path).rstrip("/")

    def files(self, folder: str) -> dict[str, int]:
        """Size in bytes of all files below a folder, by their names in it; none if it is not there.

        Raises:
            RemoteError: it cannot be listed, or a name leads out of the folder.
        """
        top = self._at(folder)

        def find() -> dict[str, int]:
            self._fs.invalidate_cache()  # another machine may have written since
            try:
                found = self._fs.find(top, detail=True)
            except FileNotFoundError:
                return {}
            below = top.rstrip("/") + "/"
            return {name.removeprefix(below): int(of["size"]) for name, of in found.items()}

        files = self._attempt(f"{self.url}/{folder}", find)
        for name in files:
            check_name(name)
        return files

    def read(self, name: str) -> bytes | None:
        """What a small file holds; None if it is not there."""

        def read() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

        return self._attempt(f"{self.url}/{name}", read)

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a small file."""

        def write() -> None:
            self._make_parent(name)
            self._fs.pipe_file(self._at(name), content)

        self._attempt(f"{self.url}/{name}", write)

    def put(self, source: Path, name: str) -> None:
        """Copy a file to here."""

        def put() -> None:
            self._make_parent(name)
            self._fs.put_file(str(source), self._at(name))

        self._attempt(f"{self.url}/{name}", put)

    def get(self, name: str, target: Path, size: int) -> None:
        """Copy a file from here, which has to be `size` bytes."""

        def get() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(self._at(name), str(target))
            if target.stat().st_size != size:
                raise OSError(f"{target.stat().st_size} bytes arrived, of {size}")

        self._attempt(f"{self.url}/{name}", get)

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; it need not be there."""

        def remove() -> None:
            try:
                self._fs.rm(self._at(name), recursive=True)
            except FileNotFoundError:
                return

        self._attempt(f"{self.url}/{name}", remove)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _make_parent(self, name: str) -> None:
        """Object stores, which are the asynchronous ones, have no folders: asked to make one, some
        make a bucket."""
        if not self._fs.async_impl:
            self._fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    def _attempt(self, where: str, action: Callable[[], Result]) -> Result:
        for wait in WAITS if self._waits is None else self._waits:
            try:
                return action()
            except Exception:  # whatever a third-party package raises
                time.sleep(wait)
        try:
            return action()
        except Exception as error:  # likewise
            raise RemoteError(f"{where}: {in_brief(error)}") from error


def check_name(name: str) -> None:
    """Raise `RemoteError` for a file's name that would lead out of the folder it is copied to."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise RemoteError(f"{name!r} is not the name of a file in a checkpoint")
