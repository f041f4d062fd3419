"""Rows tokenised once and kept as flat files, from which any example is read in microseconds.

A folder of the cache holds one file a column, `NAME.bin` (see `_TYPES`; `ids.bin` is uint16, or
uint32 for more than 65,536 ids), and `rows.json`, which says how long every file is. All are
memory-mapped: however many rows there are, only those in use take memory.

Letters: N rows chosen, T tokens of all of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from weighted_mtp.core.cache import cache_root, kept
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.progress import Progress
from weighted_mtp.data.examples import Example
from weighted_mtp.data.rows.metadata import Indices
from weighted_mtp.data.tokens.document_ids import id_type
from weighted_mtp.data.tokens.encode_rows import Columns, Encoder, RowSource, encode_rows

FORMAT = "weighted-mtp tokenised rows v4"
_META = "rows.json"
_TYPES = {
    "rows": np.int64,  # [N] number of the row in its file
    "offsets": np.int64,  # [N + 1] where its ids begin
    "prompt_lengths": np.int32,  # [N]
    "truncated": np.bool_,  # [N]
    "correct": np.bool_,  # [N]
    "name_offsets": np.int64,  # [N + 1] where its task_id begins
    "names": np.uint8,  # task_ids in UTF-8, one after the other
    "hole_offsets": np.int64,  # [N + 1] where its holes begin
    "holes": np.int32,  # first and end of each, one after the other
}
_SHOWN = 10_000
_COUNTED = 10_000
_log = get_logger(__name__)

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def tokenise(
    store: RowSource,
    wanted: Indices,
    collator: Encoder,
    cache_dir: Path | None = None,
    workers: int = 1,
) -> TokenisedRows:
    """Encode the wanted rows, unless the cache has them. Of several processes one does, the others
    wait.

    Args:
        store: where the rows are; picklable, if there are workers.
        wanted: `[N]` row numbers, ascending, each once.
        collator: encodes a row.
        cache_dir: see `cache_root`.
        workers: processes that share the work if it is long (`LONG_SECONDS`). The result does not
            depend on it.

    Raises:
        UserError: the cache cannot be written, or a worker process died.
        ValueError: `wanted` is not ascending.
        IndexError: there is no such row.
    """
    wanted = np.ascontiguousarray(wanted, dtype=np.int64)
    if (np.diff(wanted) <= 0).any():
        raise ValueError("the wanted row numbers must ascend")
    if wanted.size and not 0 <= wanted[0] <= wanted[-1] < len(store):
        raise IndexError(f"{store.path}: a row number outside 0 … {len(store) - 1}")
    return kept(
        cache_root(cache_dir) / "tokenised" / _key(store, wanted, collator),
        TokenisedRows,
        lambda folder: _make(folder, store, wanted, collator, workers),
        f"the tokens of {store.path}",
    )


class TokenisedRows:
    """Examples by the row's number in its file. Pickles as its place on disk, so that any process
    may open it.

    Attributes:
        rows: `[N]` numbers of the rows that are here, ascending.
        truncated: how many of them were cut to the longest length; not those that were unfinished
            before.
        spelled: how many contain the name of BOS or EOS, as text.

    Raises:
        UserError: the folder is damaged or gone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            meta = read_json(folder / _META)
            types = {**_TYPES, "ids": np.dtype(meta["ids"])}
            columns = {x: _mapped(folder, x, t, meta["bytes"][x]) for x, t in types.items()}
            self.source: str = meta["source"]
            self.truncated: int = meta["truncated"]
            self.spelled: int = meta["spelled"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder}: these tokenised rows are damaged or gone ({error}); start again to "
                "have them rebuilt"
            ) from error
        self.rows: Indices = columns["rows"]
        self._ids, self._offsets = columns["ids"], columns["offsets"]
        self._prompt_lengths = columns["prompt_lengths"]
        self._truncated, self._correct = columns["truncated"], columns["correct"]
        self._names, self._name_offsets = columns["names"], columns["name_offsets"]
        self._holes, self._hole_offsets = columns["holes"], columns["hole_offsets"]

    def __reduce__(self) -> tuple[type[TokenisedRows], tuple[Path]]:
        return TokenisedRows, (self.folder,)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        """All examples, by ascending row number."""
        return (self[row] for row in self.rows.tolist())

    def __getitem__(self, row: int) -> Example:
        """The example of a row, by its number in the file.

        Raises:
            KeyError: the row is not among those that were tokenised.
        """
        place = int(self.rows.searchsorted(row))
        if place == len(self.rows) or self.rows[place] != row:
            raise KeyError(f"row {row} is not among the {len(self):,} tokenised of {self.source}")
        start, end = self._offsets[place : place + 2].tolist()
        first, last = self._name_offsets[place : place + 2].tolist()
        holes = self._holes[slice(*self._hole_offsets[place : place + 2].tolist())].tolist()
        return Example(
            self._ids[start:end].tolist(),
            int(self._prompt_lengths[place]),
            bool(self._truncated[place]),
            int(row),
            self._names[first:last].tobytes().decode(),
            bool(self._correct[place]),
            holes=tuple(zip(holes[::2], holes[1::2], strict=True)),
        )

    @cached_property
    def lengths(self) -> Indices:
        """`[N]` tokens of each row."""
        return np.diff(self._offsets)

    def check_ids(self, vocab_size: int) -> None:
        """Refuse a row with a token that the model does not have.

        Raises:
            UserError: there is one; it is named.
        """
        strange = np.flatnonzero(self._ids >= vocab_size)
        if strange.size:
            place = int(np.searchsorted(self._offsets, strange[0], "right")) - 1
            example = self[int(self.rows[place])]
            raise UserError(
                f"{self.source}: row {example.row} ({example.task_id}) has token "
                f"{self._ids[strange[0]]}, and the model's vocabulary ends at {vocab_size - 1}; "
                "remove the row, or use the tokenizer the model was trained with"
            )

    def target_counts(self, vocab_size: int) -> Array:
        """`[V]` int64: how often each token is a target."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, len(self), _COUNTED):
            end = min(start + _COUNTED, len(self))
            offsets = self._offsets[start : end + 1]
            change = np.zeros(offsets[-1] - offsets[0] + 1, np.int32)  # +1 where targets begin
            begin = offsets[:-1] - offsets[0]
            np.add.at(change, begin + self._prompt_lengths[start:end], 1)
            np.add.at(change, offsets[1:] - offsets[0], -1)
            holes = self._hole_offsets[start : end + 1]
            bounds = self._holes[holes[0] : holes[-1]] + np.repeat(begin, np.diff(holes))
            np.add.at(change, bounds[::2], -1)
            np.add.at(change, bounds[1::2], 1)
            targets = self._ids[offsets[0] : offsets[-1]][change.cumsum()[:-1] > 0]
            counts += np.bincount(targets, minlength=vocab_size)
        return counts

    @property
    def without_response(self) -> Indices:
        """Numbers of the rows whose prompt fills the whole length: nothing is left to predict."""
        return self.rows[self._prompt_lengths >= self.lengths]


def _mapped(folder: Path, name: str, dtype: Any, size: int) -> Array:
    """A column, read-only; a plain array, whose slices are cheaper than those of a memmap."""
    path = folder / f"{name}.bin"
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} has another size")
    return np.asarray(np.memmap(path, dtype, "r")) if size else np.empty(0, dtype)


# --- the cache -----------------------------------------------------------------------------------


def _key(store: RowSource, wanted: Indices, collator: Encoder) -> str:
    """The folder's name: of all that the tokens depend on."""
    chosen = hashlib.sha256(wanted.astype("<i8").tobytes()).hexdigest()
    depends = [FORMAT, store.digest, collator.tokenizer.fingerprint, collator.fingerprint, chosen]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]


def _make(folder: Path, store: RowSource, wanted: Indices, collator: Encoder, workers: int) -> None:
    start = time.monotonic()
    label = f"tokenising {store.path.name}, rows"
    with (
        Progress(len(wanted), label, enabled=len(wanted) >= _SHOWN) as progress,
        closing(encode_rows(store, wanted, collator, workers)) as parts,
    ):
        truncated, spelled = _write(folder, parts, progress)
    ids = id_type(collator.tokenizer)
    sizes = {name: (folder / f"{name}.bin").stat().st_size for name in (*_TYPES, "ids")}
    meta = {
        "format": FORMAT,
        "source": str(store.path),
        "tokenizer": collator.tokenizer.fingerprint,
        "truncated": truncated,
        "spelled": spelled,
        "ids": ids.name,
        "bytes": sizes,
    }
    (folder / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    tokens, seconds = sizes["ids"] // ids.itemsize, time.monotonic() - start
    level = logging.INFO if len(wanted) >= _SHOWN else logging.DEBUG
    _log.log(level, f"{store.path}: {len(wanted):,} rows, {tokens:,} tokens, in {seconds:.1f} s")


def _write(folder: Path, parts: Iterable[Columns], progress: Progress) -> tuple[int, int]:
    """Append every part to the files; returns how many rows were cut, and how many spell BOS or
    EOS."""
    start, truncated, spelled = time.monotonic(), 0, 0
    ends = dict.fromkeys(("offsets", "name_offsets", "hole_offsets"), 0)
    with ExitStack() as opened:
        files = {
            name: opened.enter_context((folder / f"{name}.bin").open("wb"))
            for name in (*_TYPES, "ids")
        }
        for name, end in ends.items():
            files[name].write(np.int64(end).tobytes())
        for part in parts:
            truncated += int(part.pop("cut").sum())
            spelled += int(part.pop("spelled").sum())
            for name, end in ends.items():  # counted from the first part on
                part[name] = part[name] + end
                ends[name] = int(part[name][-1])
            for name, column in part.items():
                files[name].write(column.astype(_TYPES.get(name, column.dtype)).tobytes())
            rows = len(part["rows"])
            rate = (progress.done + rows) / max(time.monotonic() - start, 1e-9)
            progress.update(rows, f"{rate:,.0f} rows/s")
    return truncated, spelled
