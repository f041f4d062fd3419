"""SHA-256 sums of files: stored beside them when they are written, compared when they are read.

Where they stand: `metadata.json` of a native model, `mtp/sums.json` of an export in Hugging Face's
layout, `sums.json` of a training checkpoint and of a folder of the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json

SUMS = "sums.json"
VERIFY_VARIABLE = "WEIGHTED_MTP_VERIFY"
"""Set to 0, files are read without comparing their sums."""
_THREADS = 4
_SUM = re.compile("[0-9a-f]{64}")
_FIELDS = {"format_version", "layout", "dtype", "parameters", "sha256", "extra", "digest"}


def verifying() -> bool:
    """Whether sums are compared when files are read; the environment may switch it off."""
    return os.environ.get(VERIFY_VARIABLE) != "0"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read a mebibyte at a time."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def sums_of(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The sums of files, by their names relative to `folder`, several files at a time."""
    from concurrent.futures import ThreadPoolExecutor

    paths = sorted(paths)
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing runs without the interpreter's lock
        digests = list(pool.map(sha256, paths))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return dict(zip(names, digests, strict=True))


def write_sums(folder: Path, sums: Mapping[str, str], name: str = SUMS) -> None:
    """Store sums of files of `folder`."""
    text = json.dumps({"sha256": dict(sums)}, indent=1) + "\n"
    (folder / name).write_text(text, encoding="utf-8")


def fields_digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of JSON fields but for `digest`, where it is stored."""
    rest = {key: value for key, value in fields.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Sums:
    """Stored sums.

    Attributes:
        folder: that the names are relative to.
        listing: the file in which they stand.
        expected: sum by name.
    """

    folder: Path
    listing: Path
    expected: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path, name: str = SUMS) -> Sums:
        """Read the sums of a folder.

        Raises:
            UserError: the file is missing or damaged, holds no sums, or names a file elsewhere.
        """
        listing = folder / name
        fields = _read_fields(listing)
        digest = fields.get("digest")
        unknown = not fields.keys() <= _FIELDS  # a damaged name of "digest" would disable it
        if unknown or (digest is not None and digest != fields_digest(fields)):
            raise UserError(f"{listing}: is damaged; copy the checkpoint again")
        expected = fields.get("sha256")
        if not isinstance(expected, dict) or not expected:
            raise UserError(
                f"{listing}: holds no SHA-256 sums, with which it was written; copy it again"
            )
        for key, value in expected.items():
            if not _is_inside(key):
                raise UserError(f"{listing}: {key!r} is not the name of a file in this folder")
            if not isinstance(value, str) or not _SUM.fullmatch(value):
                raise UserError(f"{listing}: {key!r} has no SHA-256 sum; copy it again")
        return cls(folder, listing, expected)

    def verify(self, names: Collection[str] | None = None) -> int:
        """Compare files with their sums.

        Args:
            names: of the files, all by default.

        Returns:
            How many were compared.

        Raises:
            UserError: a file is missing, has no sum, or is not what was written.
        """
        names = self.expected.keys() if names is None else names
        with self.verifying(names):
            return len(names)

    @contextmanager
    def verifying(self, names: Collection[str]) -> Iterator[None]:
        """Compare files with their sums in other threads while the caller reads them; what was read
        is sound once the context has ended without an error.

        Raises:
            UserError: as for `verify`; also instead of one of the caller's, which has met the
                damage.
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_THREADS) as pool:
            checks = [pool.submit(self._check, name) for name in names]
            try:
                yield
            except UserError:
                for check in checks:
                    check.result()
                raise
            except BaseException:
                for check in checks:
                    check.cancel()
                raise
            for check in checks:
                check.result()

    def _check(self, name: str) -> None:
        path = self.folder / name
        if name not in self.expected:
            raise UserError(f"{path}: has no SHA-256 sum in {self.listing.name}; copy it again")
        if not path.is_file():
            raise UserError(f"{path}: is missing, but {self.listing.name} lists it; copy it again")
        try:
            found = sha256(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        if found != self.expected[name]:
            raise UserError(
                f"{path}: its SHA-256 is not the one in {self.listing.name}; copy the checkpoint "
                "again, or use an earlier one (if you changed the file on purpose, set "
                "WEIGHTED_MTP_VERIFY=0 to load it)"
            )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = bool(name) and path.as_posix() == name and "\\" not in name and "\0" not in name
    return plain and not path.is_absolute() and ".." not in path.parts and name != "."


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = read_json(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: is missing, and with it the SHA-256 sums; copy the checkpoint again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read, and with it the SHA-256 sums") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds no JSON object")
    return fields
