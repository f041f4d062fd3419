"""Documents of a text corpus: which files hold them, how they are read, which are held out."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import InvalidTextError, open_regular, parse_json, read_regular

STDLIB: Literal["python-stdlib"] = "python-stdlib"
SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet", ".arrow")
"""What is read from a folder unless the corpus says otherwise."""
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_HASHED_BYTES = 64 << 20


@dataclass(frozen=True)
class Corpus:
    """A folder (with all folders in it), one file, or `python-stdlib`.

    `.jsonl` files hold one JSON object a line, `.parquet` and `.arrow` files rows; any other file
    is UTF-8 text, one document or several with a separator line between them. Hidden files and
    folders are left out, and so are the standard library's own tests and installed packages.
    Text is taken as it is: no line end and no space is changed.

    Attributes:
        source: where.
        key: the text field of JSONL lines, the text column of rows.
        suffixes: of the files read from a folder; None takes `SUFFIXES` (the standard library:
            `.py`). A source that is a file is read whatever its name.
        separator: the line between two documents of a text file, itself in neither.
    """

    source: Path | Literal["python-stdlib"]
    key: str = "text"
    suffixes: tuple[str, ...] | None = None
    separator: str | None = None

    def files(self) -> list[Path]:
        """The files, in the order of their names.

        Raises:
            UserError: the source does not exist or has no such file.
        """
        root = self._root()
        if root.is_file():
            return [root]
        if not root.is_dir():
            raise UserError(f"{root}: no such file or folder; set data.text.path")
        left_out = _NOT_LIBRARY if self.source == STDLIB else set()
        suffixes = self.suffixes or ((".py",) if self.source == STDLIB else SUFFIXES)
        found = []
        for folder, inside, names in os.walk(root, onerror=_unreadable):
            inside[:] = [x for x in inside if not x.startswith(".") and x not in left_out]
            visible = (x for x in names if not x.startswith(".") and x.endswith(suffixes))
            found += [path for x in visible if (path := Path(folder, x)).is_file()]
        if not found:
            raise UserError(
                f"{root}: holds no file that ends in {', '.join(suffixes)}; set data.text.suffixes"
            )
        return sorted(found, key=lambda path: path.relative_to(root).as_posix())

    def size(self) -> int:
        """Bytes of all files together."""
        return sum(path.stat().st_size for path in self.files())

    def fingerprint(self) -> str:
        """Changes when the documents may have: by content for a file of at most 64 MB, else by
        every file's name, size and time of change.

        Raises:
            UserError: as for `files`; or a file cannot be read.
        """
        root, files = self._root().resolve(), self.files()
        options = [self.key, self.separator]
        try:
            if root.is_file() and root.stat().st_size <= _HASHED_BYTES:
                content = hashlib.sha256(read_regular(root)).hexdigest()
                return _digest([options, root.suffix, content])
            stats = [(str(path), path.stat()) for path in files]
        except OSError as error:
            _unreadable(error)
        return _digest([options, str(root), [(x, s.st_size, s.st_mtime_ns) for x, s in stats]])

    def documents(self, skipped: Counter[str] | None = None) -> Iterator[str]:
        """The documents, one in memory at a time, always in the same order.

        A folder of thousands of files has a few bad ones, so what is empty, holds a NUL or half a
        surrogate pair, or is a whole file that is not UTF-8, is left out and counted.

        Args:
            skipped: where the reasons are counted.

        Raises:
            UserError: as for `files`; a file cannot be opened; a JSONL line is not an object with
                the key; a table has no such column of text; a file read by lines is not UTF-8.
        """
        counts: Counter[str] = Counter() if skipped is None else skipped
        for path in self.files():
            try:
                for text in self._texts(path):
                    if reason := _unusable(text):
                        counts[reason] += 1
                    else:
                        yield text
            except UnicodeDecodeError:
                counts["not UTF-8"] += 1
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error

    def _root(self) -> Path:
        if self.source == STDLIB:
            return Path(sysconfig.get_paths()["stdlib"])
        return Path(self.source).expanduser()

    def _texts(self, path: Path) -> Iterator[str]:
        """The documents of one file, usable or not."""
        readers: dict[str, Callable[[Path, str], Iterator[str]]] = {
            ".jsonl": _jsonl,
            ".parquet": _parquet,
            ".arrow": _arrow,
        }
        if path.suffix in readers:
            yield from readers[path.suffix](path, self.key)
        elif self.separator is None:
            yield read_regular(path).decode("utf-8-sig")
        else:
            yield from _separated(path, self.separator)


def held_out(document: str, fraction: float) -> bool:
    """Whether a document is for validation: by a hash of its text, so that the choice is the same
    in every run and documents that are equal are on one side."""
    digest = hashlib.blake2b(document.encode("utf-8"), digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _unusable(text: str) -> str:
    """Why a text is not a document; "" if it is one."""
    if not text:
        return "empty"
    if "\0" in text:
        return "with a NUL"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "with a lone surrogate"
    return ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, without a byte-order mark."""
    with open_regular(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not UTF-8 at byte {error.start}; re-save as UTF-8"
                ) from error


def _separated(path: Path, separator: str) -> Iterator[str]:
    parts: list[str] = []
    for _, line in _lines(path):
        if line.rstrip("\r\n") == separator:
            yield "".join(parts)
            parts = []
        else:
            parts.append(line)
    if parts:  # a separator at the end of the file begins no document
        yield "".join(parts)


def _jsonl(path: Path, key: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = parse_json(line)
        except InvalidTextError as error:
            raise UserError(f"{where}: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"{where}: should be a JSON object, it is {type(record).__name__}")
        if key not in record:
            raise UserError(
                f"{where}: no field {key!r} (it has {_named(record)}); set data.text.key"
            )
        text = record[key]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{where}: the field {key!r} should be str, it is {type(text).__name__}; "
                "set data.text.key"
            )
        yield text or ""


def _parquet(path: Path, key: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check_column(path, file.schema_arrow, key)
        for batch in file.iter_batches(batch_size=1024, columns=[key]):
            yield from (text or "" for text in batch.column(0).to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file, or damaged ({_first_line(error)})") from error


def _arrow(path: Path, key: str) -> Iterator[str]:
    """Both of Arrow's formats: `datasets` writes streams, Feather is the file format."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            if bytes(source.read(6)) == b"ARROW1":
                table = pyarrow.ipc.open_file(source)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                source.seek(0)
                table = pyarrow.ipc.open_stream(source)
                batches = iter(table)
            _check_column(path, table.schema, key)
            for batch in batches:
                yield from (text or "" for text in batch.column(key).to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not an Arrow file, or damaged ({_first_line(error)})") from error


def _check_column(path: Path, schema: Any, key: str) -> None:
    if key not in schema.names:
        raise UserError(
            f"{path}: no column {key!r} (it has {_named(schema.names)}); set data.text.key"
        )
    held = schema.field(key).type
    held = getattr(held, "value_type", held) if str(held).startswith("dictionary") else held
    if str(held) not in ("string", "large_string", "string_view"):
        raise UserError(
            f"{path}: the column {key!r} holds {schema.field(key).type}, not text; "
            "set data.text.key"
        )


def _named(names: Any) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:8]) + (", …" if len(shown) > 8 else "") or "none"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
