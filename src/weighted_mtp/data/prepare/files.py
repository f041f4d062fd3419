"""Which files a source has, whose split they are, and how they are cut into units of work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.datasets import MAX_LINE, file_digest, unreadable

UNIT_BYTES = 4 << 20
"""Approximate bytes of a JSONL file in one unit: few enough that processes end together."""
UNIT_ROWS = 2000
"""Rows of an Arrow file that are one unit; of a Parquet file it is a row group."""
FORMS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "lines",
    ".jsonl.gz": "gzip",
    ".json": "json",
}
_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}
_SPLIT = re.compile(
    r"(?<![a-z])(train|training|validation|valid|val|dev|test|prompt)(?![a-z])", re.IGNORECASE
)


@dataclass(frozen=True)
class Unit:
    """A stretch of a source that is converted in one go.

    Attributes:
        name: of its part; parts are put together in the order of the units.
        path: as a person gave it.
        form: one of `FORMS`, or `stream`.
        split: None where the file's name tells none.
        start, stop: bytes (lines), rows (arrow) or row groups (parquet).
        first: number of the first record, from 1.
    """

    name: str
    path: str
    form: str
    split: str | None
    start: int = 0
    stop: int = 0
    first: int = 1

    @property
    def counted(self) -> str:
        """What a record of it is called in messages."""
        return "line" if self.form in ("lines", "gzip") else "row"


@dataclass(frozen=True)
class SourceFile:
    """A file as it is found: what tells whether it is still the same."""

    path: str
    form: str
    split: str | None
    size: int
    changed_ns: int


def find_files(source: Path, out: Path | None, split: str | None) -> list[SourceFile]:
    """The files of a source, in the order of their names.

    Args:
        out: where the result goes; what lies in there is no source.
        split: of all files; None reads it from their names, and those of the folders in `source`.

    Raises:
        UserError: there is no such path, no file of a known form, or it is the output itself.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if out is not None and source.resolve() == out.resolve():
        raise UserError(f"{source}: --out is the folder of the source; choose another")
    if source.is_file():
        form = _form(source)
        if form is None:
            raise UserError(f"{source}: not one of {', '.join(FORMS)}")
        return [_found(source, form, split or split_of(source.name))]
    found = []
    for path in sorted(source.rglob("*")):
        form = _form(path)
        if form in (None, "json") or not path.is_file() or _aside(path, source, out):
            continue
        assert form is not None
        names = [path.name, *reversed(path.relative_to(source).parts[:-1])]
        named = next((s for s in map(split_of, names) if s is not None), None)
        found.append(_found(path, form, split or named))
    if not found:
        raise UserError(f"{source}: holds no .parquet, .arrow, .jsonl or .jsonl.gz file")
    return found


def split_of(name: str) -> str | None:
    """The split that a file or folder is named after: `train-00000-of-00039.parquet`."""
    match = _SPLIT.search(name)
    if match is None:
        return None
    word = match[1].lower()
    return _SPLIT_NAMES.get(word, "train" if word == "training" else word)


def cut(file: SourceFile) -> tuple[str, list[tuple[int, int, int]]]:
    """SHA-256 of a file, and (start, stop, first) of its units.

    Raises:
        UserError: it cannot be read, or is not what its name says.
    """
    path = Path(file.path)
    if file.form == "lines":
        return _cut_lines(path)
    digest = file_digest(path)
    if file.form == "parquet":
        return digest, _cut_parquet(path)
    if file.form == "arrow":
        rows = open_arrow(path).num_rows
        return digest, [
            (start, min(start + UNIT_ROWS, rows), start + 1) for start in range(0, rows, UNIT_ROWS)
        ]
    return digest, [(0, 0, 1)]


def open_parquet(path: Path) -> Any:
    """`pyarrow.parquet.ParquetFile`, read through a small buffer.

    Raises:
        UserError: it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(path, "a Parquet file", error) from error


def open_arrow(path: Path) -> Any:
    """`pyarrow.Table`, memory-mapped, of either of Arrow's formats: `datasets` writes streams.

    Raises:
        UserError: it cannot be read.
    """
    import pyarrow

    try:
        source = pyarrow.memory_map(str(path))
        is_file = bytes(source.read(6)) == b"ARROW1"
        source.seek(0)
        opened = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
        return opened.read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(path, "an Arrow file", error) from error


def damaged(path: Path | str, what: str, error: Exception) -> UserError:
    """The mistake of a file that is broken, or never was what its name says."""
    return UserError(
        f"{path}: not {what}, or damaged ({' '.join(str(error).split())[:160]}); copy it again"
    )


def _found(path: Path, form: str, split: str | None) -> SourceFile:
    try:
        status = path.stat()
        if form == "json":
            with path.open("rb") as file:
                form = (
                    "json" if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[" else "lines"
                )
    except OSError as error:
        raise unreadable(path, error) from error
    return SourceFile(str(path), form, split, status.st_size, status.st_mtime_ns)


def _form(path: Path) -> str | None:
    return next((form for end, form in FORMS.items() if path.name.lower().endswith(end)), None)


def _aside(path: Path, source: Path, out: Path | None) -> bool:
    """Hidden files, what `datasets` caches, and what this package writes besides rows."""
    return (
        any(part.startswith(".") for part in path.relative_to(source).parts)
        or (path.name.startswith("cache-") and path.suffix == ".arrow")
        or path.name.startswith("problems.")
        or path.name == "rejected.jsonl"
        or (out is not None and path.resolve().is_relative_to(out.resolve()))
    )


def _cut_parquet(path: Path) -> list[tuple[int, int, int]]:
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    return [(i, i + 1, 1 + sum(sizes[:i])) for i in range(len(sizes))]


def _cut_lines(path: Path) -> tuple[str, list[tuple[int, int, int]]]:
    """Cut at line ends, and hash on the way."""
    digest = hashlib.sha256()
    units: list[tuple[int, int, int]] = []
    start, first = 0, 1
    try:
        with path.open("rb") as file:
            while True:
                size = lines = 0
                for block in _blocks(file):
                    digest.update(block)
                    size += len(block)
                    lines += block.count(b"\n")
                if not size:
                    return digest.hexdigest(), units
                units.append((start, start + size, first))
                start, first = start + size, first + lines
    except OSError as error:
        raise unreadable(path, error) from error


def _blocks(file: Any) -> Iterator[bytes]:
    """About `UNIT_BYTES`, up to the end of a line (an endless one is cut, and refused later)."""
    size = 0
    while size < UNIT_BYTES and (block := file.read(min(UNIT_BYTES, 1 << 20))):
        size += len(block)
        yield block
    if size and not block.endswith(b"\n"):
        yield file.readline(MAX_LINE + 1)
