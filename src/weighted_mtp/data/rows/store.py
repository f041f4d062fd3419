"""Rows of a file of any size, kept as memory-mapped Arrow tables.

A folder of the cache holds the rows (`rows-00000.arrow`, …, written by Hugging Face `datasets` in
its own format), `metadata.arrow` with the small columns alone, and `table.json`, which says what
they were made of and how long every file is. Opening and filtering read no text.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

import numpy as np

from weighted_mtp.core.cache import cache_root, kept
from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.types import Row
from weighted_mtp.data.datasets import file_digest, unreadable
from weighted_mtp.data.rows.columns import read_metadata, write_metadata
from weighted_mtp.data.rows.metadata import Indices, Metadata

FORMAT = "weighted-mtp rows v2"
HASHED_BYTES = 64 << 20
"""Files below it are known by their content, larger ones by place, size and time of change."""
_TABLE, _METADATA = "table.json", "metadata.arrow"
_STREAMED = 500
_FIELDS = ("instruction", "input", "output", "task_id", "is_correct", "metadata", "messages")


def open_rows(path: Path, cache_dir: Path | None = None, workers: int | None = None) -> RowStore:
    """The rows of a JSONL file, converted now or taken from the cache.

    Of several processes that open a file for the first time one converts it and the others wait.

    Args:
        cache_dir: see `cache_root`.
        workers: processes that convert; None takes one, or one a core for a large file.

    Raises:
        UserError: the file cannot be read, has no rows, or a line is malformed (docs/data.md); the
            cache cannot be written.
    """
    folder = cache_root(cache_dir) / "rows" / _key(path)
    return kept(
        folder,
        lambda folder: _opened(path, folder),
        lambda partial: _make(path, partial, folder.name, workers),
        f"the rows of {path}",
    )


class RowStore(Sequence[Row]):
    """Rows on disk, of which only those asked for are read; a slice gives a list.

    Pickles as its place on disk, so that any process may open it.

    Attributes:
        path: of the file the rows came from.
        digest: SHA-256 of its bytes.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self._folder = path, folder
        with self._reading():
            table = read_json(folder / _TABLE)
            self.digest: str = table["digest"]
            self._length: int = table["rows"]
            self._files: list[str] = table["files"]

    def __reduce__(self) -> tuple[type[RowStore], tuple[Path, Path]]:
        return RowStore, (self.path, self._folder)

    @cached_property
    def metadata(self) -> Metadata:
        """What filtering and sampling look at; memory-mapped, so not to be written to.

        Raises:
            UserError: the cached table is damaged.
        """
        with self._reading():
            return read_metadata(self._folder / _METADATA)

    @cached_property
    def dataset(self) -> Any:
        """The rows as `datasets.Dataset`, for mapping. `metadata` is JSON text; `difficulty`,
        `cf_rating` and `length` are columns of their own.

        Raises:
            UserError: the cached table is damaged.
        """
        from datasets import Dataset, concatenate_datasets  # a second to import

        with self._reading():
            parts = [Dataset.from_file(str(self._folder / name)) for name in self._files]
            whole = concatenate_datasets(parts)
            if len(whole) != len(self):
                raise ValueError("rows are missing")
            return whole

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return self.rows(range(*index.indices(len(self))))
        return self.rows([index])[0]

    def __iter__(self) -> Iterator[Row]:
        """All rows in order, a few hundred in memory at a time."""
        for start in range(0, len(self), _STREAMED):
            yield from self[start : start + _STREAMED]

    def rows(self, indices: Sequence[int] | Indices) -> list[Row]:
        """Rows by number, in the order asked for; −1 is the last one.

        Raises:
            IndexError: there is no such row.
            UserError: the cached table is damaged.
        """
        wanted = np.array(indices, dtype=np.int64)  # [n]
        if wanted.size and (wanted.min() < -len(self) or wanted.max() >= len(self)):
            raise IndexError(f"{self.path}: a row number outside 0 … {len(self) - 1}")
        with self._reading():
            starts, batches = self._batches
            wanted %= len(self)
            where = np.searchsorted(starts, wanted, side="right") - 1
            places = zip(where.tolist(), (wanted - starts[where]).tolist(), strict=True)
            return [_row(batches[batch], at) for batch, at in places]

    @cached_property
    def _batches(self) -> tuple[Indices, list[list[Any]]]:
        """The number of each record batch's first row, and its columns in the order of `_FIELDS`.
        Read without `datasets`, which every process would wait a second for."""
        import pyarrow as pa

        batches, sizes = [], [0]
        for name in self._files:
            for batch in pa.ipc.open_stream(pa.memory_map(str(self._folder / name))):
                batches.append([batch[field] for field in _FIELDS])
                sizes.append(len(batch))
        if sum(sizes) != len(self):
            raise ValueError("rows are missing")
        return np.cumsum(sizes)[:-1], batches

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a wrong byte makes Arrow raise anything, SystemError too
            raise UserError(
                f"{self._folder}: this cached table is damaged or gone ({one_line(error, 160)}); "
                "delete the folder and start again"
            ) from error


def _row(columns: list[Any], at: int) -> Row:
    instruction, input_text, output, task_id, is_correct, metadata, messages = (
        x[at].as_py() for x in columns
    )
    row: Row = {
        "instruction": instruction,
        "input": input_text,
        "output": output,
        "task_id": task_id,
        "is_correct": is_correct,
        "metadata": json.loads(metadata),
    }
    if messages:
        row["messages"] = json.loads(messages)
    return row


# --- the cache -----------------------------------------------------------------------------------


def _key(path: Path) -> str:
    """The folder's name: by content for a small file, which may then move or be copied."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
            raise UserError(f"{path}: cannot be read (it is {what}); a JSONL file is expected")
        known: list[str | int]
        if status.st_size < HASHED_BYTES:
            known = [file_digest(path)]
        else:
            known = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    except OSError as error:
        raise unreadable(path, error) from error
    return sha256(json.dumps([FORMAT, *known]).encode()).hexdigest()[:32]


def _opened(path: Path, folder: Path) -> RowStore:
    """What the cache has, if it is whole as far as file sizes and the small columns tell."""
    table = read_json(folder / _TABLE)
    if any((folder / name).stat().st_size != size for name, size in table["bytes"].items()):
        raise ValueError("a file has another size")
    store = RowStore(path, folder)
    if len(store.metadata) != len(store):
        raise ValueError("rows are missing")
    return store


def _make(path: Path, folder: Path, key: str, workers: int | None) -> None:
    from weighted_mtp.data.rows.convert import convert  # opening does not wait for its imports

    converted = convert(path, folder, workers)
    write_metadata(folder / _METADATA, [folder / name for name in converted.files])
    if _key(path) != key:
        raise UserError(f"{path}: changed while it was read; start again when it is complete")
    table = {
        "format": FORMAT,
        "source": str(path.resolve()),
        **asdict(converted),
        "bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / _TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
