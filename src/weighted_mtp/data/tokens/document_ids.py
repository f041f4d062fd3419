"""Documents to ids, in several processes if asked."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from weighted_mtp.core.processes import share_out
from weighted_mtp.data.tokens.tokenizers import Tokenizer

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]

_CHUNK_CHARACTERS = 1 << 18


def id_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest type that holds every id."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [
        np.array([*bos, *tokenizer.encode(text), tokenizer.eos_id], id_type(tokenizer))
        for text in texts
    ]


def chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups worth sending to another process."""
    chunk: list[str] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def encode_all(
    tokenizer: Tokenizer, chunks: Iterable[list[str]], workers: int
) -> Generator[tuple[list[str], list[Ids]], None, None]:
    """Chunks with the ids of their documents, in order, however many processes share the work. Only
    some two chunks a process are in memory.

    Raises:
        UserError: a process died.
    """
    return share_out(
        partial(_encode, tokenizer),
        chunks,
        workers,
        died="a process that tokenised died",
        remedy="set data.processes=1",
    )
