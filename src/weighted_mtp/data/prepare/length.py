"""How many tokens a row has, template and EOS included."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import is_hub_id
from weighted_mtp.core.types import Row

if TYPE_CHECKING:
    from weighted_mtp.data.tokens.tokenizers import Tokenizer


@dataclass(frozen=True)
class LengthLimit:
    """Rows of more than `max_length` tokens are left out.

    Attributes:
        tokenizer: `bytes`, `micro`, or the path of a tokenizer (a folder, or a SentencePiece file).
        template: a name in `templates.TEMPLATE_NAMES`.
    """

    tokenizer: str
    template: str = "alpaca"
    max_length: int = 2048


def load_named_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by kind (`bytes`, `micro`) or path.

    Raises:
        UserError: there is none.
    """
    from weighted_mtp.data.tokens.tokenizers import load_tokenizer, make_tokenizer

    path = Path(name)
    if name in ("bytes", "micro"):
        return make_tokenizer(name)
    if path.is_dir() or is_hub_id(name):
        return load_tokenizer(path)
    if not path.exists():
        raise UserError(f"--tokenizer {name}: neither bytes, nor micro, nor a path that exists")
    return make_tokenizer("huggingface" if path.suffix == ".json" else "sentencepiece", path)


class TokenCounter:
    """Counts the tokens of rows; the prompt of one problem is tokenised once."""

    def __init__(self, limit: LengthLimit) -> None:
        from weighted_mtp.data.collators import AlpacaCollator
        from weighted_mtp.data.templates import CHAT, TEMPLATE_NAMES

        if limit.template not in TEMPLATE_NAMES:
            raise UserError(f"--template {limit.template}: not one of {', '.join(TEMPLATE_NAMES)}")
        if limit.max_length < 2:
            raise UserError(f"--max-length {limit.max_length}: must be at least 2")
        self._tokenizer = load_named_tokenizer(limit.tokenizer)
        self._collator = AlpacaCollator(self._tokenizer, limit.template, sys.maxsize)
        self._prompt: tuple[str, str] | None = None
        self._around = 0
        self._adds_up = limit.template != CHAT
        known_by = self._tokenizer if self._adds_up else self._collator
        self.fingerprint = known_by.fingerprint

    def __call__(self, row: Row) -> int:
        """Tokens of the sequence that training would see, were it never cut."""
        if not self._adds_up or "messages" in row:
            return len(self._collator.encode(row).ids)
        prompt = (row["instruction"], row["input"])
        response = len(self._tokenizer.encode(row["output"]))
        if prompt != self._prompt:  # prompt and response are tokenised apart: lengths add up
            self._around = len(self._collator.encode(row).ids) - response
            self._prompt = prompt
        return self._around + response


@lru_cache(maxsize=1)
def counter(limit: LengthLimit) -> TokenCounter:
    """One for each process.

    Raises:
        UserError: the tokenizer, the template or the length cannot be used.
    """
    return TokenCounter(limit)
