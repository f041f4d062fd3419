"""How often each token of a vocabulary is in a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import InvalidTextError, open_regular, parse_json
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus
from weighted_mtp.data.tokens.tokenizers import Tokenizer

_ENOUGH = 2 << 20
"""Tokens that are counted of the standard library: a minute of the slowest tokenizer."""
_KEYS = ("text", "output")


def count_tokens(tokenizer: Tokenizer, vocab_size: int, text: Path | None) -> np.ndarray:
    """Count the tokens of a file.

    Args:
        text: a text file, or JSONL whose lines have "text" (or, as rows of training data,
            "output"); None: Python's standard library, its first 2 M tokens.

    Returns:
        int64 `[V]`.

    Raises:
        UserError: the file cannot be read or holds no text.
    """
    corpus = Corpus(STDLIB) if text is None else Corpus(text, text_key(text))
    counts = np.zeros(vocab_size, dtype=np.int64)
    for document in corpus.documents():
        ids = np.array(tokenizer.encode(document), dtype=np.int64)
        counts += np.bincount(ids, minlength=vocab_size)
        if text is None and counts.sum() >= _ENOUGH:
            break
    if not counts.any():
        raise UserError(f"{text}: holds no text to count tokens of")
    return counts


def text_key(path: Path) -> str:
    """The field of a JSONL file that holds what a model writes.

    Raises:
        UserError: the file does not exist, or its first line has no such field.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a text or JSONL file")
    if path.suffix != ".jsonl":
        return _KEYS[0]
    try:
        with open_regular(path) as file:
            first = parse_json(file.readline())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (InvalidTextError, UnicodeDecodeError) as error:
        raise UserError(f"{path}, line 1: {error}") from error
    found = [key for key in _KEYS if isinstance(first, dict) and key in first]
    if not found:
        raise UserError(f'{path}, line 1: has no field "text" or "output" to count tokens of')
    return found[0]
