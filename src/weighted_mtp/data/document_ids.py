"""Documents to ids, in several processes if asked."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeAlias

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokenizers import Tokenizer

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
) -> Iterator[tuple[list[str], list[Ids]]]:
    """Chunks with the ids of their documents, in order, however many processes share the work. Only
    some two chunks a process are in memory.

    Raises:
        UserError: a process died.
    """
    if workers == 1:
        for chunk in chunks:
            yield chunk, _encode(tokenizer, chunk)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(workers, fresh, _set_tokenizer, (tokenizer,))
    waiting: deque[tuple[list[str], Future[list[Ids]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_encode_there, chunk)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that tokenised died, perhaps for want of memory; set data.text.workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_tokenizer: Tokenizer
"""Of a process that tokenises for another."""


def _set_tokenizer(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer


def _encode_there(texts: list[str]) -> list[Ids]:
    return _encode(_tokenizer, texts)
