"""Openings of functions and classes, drawn from a corpus: prompts for a model to continue."""

from __future__ import annotations

import random
import re
from collections.abc import Container, Iterator

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus, held_out
from weighted_mtp.data.tokens.tokenizers import Tokenizer

LENGTHS = (16, 64, 32, 128)
"""Tokens of the openings, by turns."""
HELD_OUT = 0.05
"""Fraction of the documents that are held out, by a hash of their text."""
_STARTS = re.compile(r"^[ \t]*(?:async def|def|class) ", re.MULTILINE)
_LONGEST_TOKEN = 12
"""Characters of text that are enough for one token, on average."""


def draw_openings(
    tokenizer: Tokenizer,
    count: int,
    longest: int,
    seed: int = 0,
    validation: bool = False,
    corpus: Corpus | None = None,
) -> list[str]:
    """Draw texts that begin with the first line of a function or a class. No text comes twice, and
    each, tokenized again, gives the tokens it was cut from.

    Args:
        longest: tokens of the longest opening; the lengths are `LENGTHS`, cut to it.
        validation: draw from the held-out documents alone, otherwise from all others.
        corpus: Python files; None takes the standard library.

    Raises:
        UserError: there are not so many openings.
    """
    chosen = corpus or Corpus(STDLIB)
    texts = [text for text in chosen.documents() if held_out(text, HELD_OUT) == validation]
    places = [(text, match.start()) for text in texts for match in _STARTS.finditer(text)]
    random.Random(seed).shuffle(places)
    found: dict[str, None] = {}
    lengths = [min(length, longest) for length in LENGTHS]
    left = iter(places)
    while len(found) < count:
        opening = _opening(tokenizer, left, lengths[len(found) % len(lengths)], found)
        if opening is None:
            which = "held-out documents" if validation else "documents"
            raise UserError(
                f"--n {count}: the {which} of {chosen.source} give {len(found)} openings; lower "
                "--n, or name a file with --prompts"
            )
        found[opening] = None
    return list(found)


def _opening(
    tokenizer: Tokenizer,
    places: Iterator[tuple[str, int]],
    length: int,
    known: Container[str],
) -> str | None:
    """The next opening of `length` tokens that is not known; None after the last place."""
    for text, start in places:
        piece = text[start : start + _LONGEST_TOKEN * length]
        ids = tokenizer.encode(piece)[:length]
        opening = tokenizer.decode(ids)
        whole = len(ids) == length and piece.startswith(opening)
        if whole and opening not in known and tokenizer.encode(opening) == ids:
            return opening
    return None
