"""Rows to columns of tokens, in several processes if they are many."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from weighted_mtp.core.errors import RowError, UserError
from weighted_mtp.core.processes import share_out
from weighted_mtp.core.types import Row
from weighted_mtp.data.datasets import is_unfinished, read_lines
from weighted_mtp.data.examples import Example
from weighted_mtp.data.rows.columns import texts as all_texts
from weighted_mtp.data.rows.metadata import Indices
from weighted_mtp.data.tokens.document_ids import id_type
from weighted_mtp.data.tokens.tokenizers import Tokenizer, spelled_ends

TRIAL_SECONDS, LONG_SECONDS = 0.5, 3.0
"""One process begins. After the first seconds others start if the rest would take it longer than
the second: each needs a third of a second of a core (imports, none of them torch's) before its
first row."""
_PART = 256

Columns: TypeAlias = dict[str, np.ndarray[Any, np.dtype[Any]]]
"""Of consecutive rows: `rows`, `prompt_lengths`, `truncated`, `cut` (truncated here, and not
before), `correct`, `spelled` (see `spelled_ends`) `[n]`; `ids`, `names` and `holes` (first
and end of each) of all of them, one after the other; `offsets`, `name_offsets` and `hole_offsets`
`[n]`, where in those each row ends.
"""


class RowSource(Protocol):
    """What is asked of a `RowStore`."""

    path: Path
    digest: str

    def __len__(self) -> int: ...

    def rows(self, indices: Indices) -> list[Row]: ...


class Encoder(Protocol):
    """What is asked of a collator.

    Attributes:
        fingerprint: equal for encoders that make the same examples of a row.
    """

    tokenizer: Tokenizer

    @property
    def fingerprint(self) -> str: ...

    def encode(self, row: Row, index: int = 0) -> Example: ...


def encode_rows(
    store: RowSource, wanted: Indices, encoder: Encoder, workers: int
) -> Generator[Columns, None, None]:
    """The wanted rows, part by part and in order, however many processes share the work. Only some
    parts a process are in memory.

    Raises:
        UserError: a process died, or a row cannot be encoded.
    """
    encode = partial(_encode, store, encoder)
    parts = (wanted[i : i + _PART] for i in range(0, len(wanted), _PART))
    start = time.monotonic()
    for number, part in enumerate(parts, 1):
        yield encode(part)
        spent = time.monotonic() - start
        left = spent * (len(wanted) / (number * _PART) - 1)
        if workers > 1 and spent >= TRIAL_SECONDS and left > LONG_SECONDS:
            died = f"{store.path}: a process that tokenised it died"
            with closing(share_out(encode, parts, workers, died, "set data.processes=1")) as pairs:
                for _, columns in pairs:
                    yield columns


def _encode(store: RowSource, encoder: Encoder, rows: Indices) -> Columns:
    found, numbers, ends = store.rows(rows), rows.tolist(), spelled_ends(encoder.tokenizer)
    spelled = [any(end in text for text in all_texts(row) for end in ends) for row in found]
    examples = []
    for row, number in zip(found, numbers, strict=True):
        try:
            examples.append(encoder.encode(row, number))
        except RowError as error:
            line = _line_of(store.path, number)
            raise UserError(f"{store.path}, line {line}: {error}") from error
    names = [example.task_id.encode() for example in examples]
    holes = [hole for example in examples for hole in example.holes]
    ids = np.fromiter(chain.from_iterable(e.ids for e in examples), np.int64)
    dtype = id_type(encoder.tokenizer)
    if ids.size and not 0 <= ids.min() <= ids.max() <= np.iinfo(dtype).max:
        raise UserError(
            f"{store.path}: the tokenizer gave the ids {ids.min()} to {ids.max()}, but says that "
            f"it has {encoder.tokenizer.vocab_size}"
        )
    return {
        "rows": rows,
        "ids": ids.astype(dtype),
        "offsets": np.cumsum([len(e.ids) for e in examples]),
        "prompt_lengths": np.array([e.prompt_length for e in examples]),
        "truncated": np.array([e.truncated for e in examples]),
        "cut": np.array(
            [e.truncated and not is_unfinished(row) for e, row in zip(examples, found, strict=True)]
        ),
        "spelled": np.array(spelled),
        "correct": np.array([e.is_correct for e in examples]),
        "holes": np.fromiter(chain.from_iterable(holes), np.int32),
        "hole_offsets": np.cumsum([2 * len(e.holes) for e in examples]),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_offsets": np.cumsum([len(name) for name in names]),
    }


def _line_of(path: Path, row: int) -> int | str:
    """The line of a row in its file, in which some lines may be blank."""
    with path.open("rb") as file:
        return next(islice((number for number, _ in read_lines(file, path)), row, None), "?")
