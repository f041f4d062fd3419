"""Choosing the draft vocabulary of a model by the tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokens.token_counts import count_tokens, text_key
from weighted_mtp.data.tokens.tokenizers import check_vocabulary, load_tokenizer
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.draft_vocabulary import COVERAGE, choose_ids

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class DraftChoice:
    """What `convert --draft-vocabulary` asks for.

    Attributes:
        size: tokens; None chooses by coverage.
        none: no draft vocabulary, even if the source has one.
        text: whose tokens are counted; None: Python's standard library.
    """

    size: int | None = None
    none: bool = False
    text: Path | None = None

    @classmethod
    def read(cls, value: str | None, text: Path | None) -> DraftChoice | None:
        """Read the options; None if the source's own is kept.

        Raises:
            UserError: they are not as documented.
        """
        flag = "--draft-vocabulary"
        if text is not None:
            text_key(text)  # before the weights are loaded
        if value is None or value == NONE:
            if text is not None:
                raise UserError(f"--draft-text goes with {flag} N or {flag} {AUTO}")
            return None if value is None else cls(none=True)
        if value == AUTO:
            return cls(text=text)
        if not value.removeprefix("-").isdecimal():
            raise UserError(f"{flag} {value!r}: give a number of tokens, {AUTO} or {NONE}")
        if int(value) < 1:
            raise UserError(f"{flag} {value}: must be at least 1")
        return cls(int(value), text=text)

    def check(self, args: ModelArgs) -> None:
        """Raise `UserError` where a model of this shape cannot have it."""
        if self.none:
            return
        if args.n_future_tokens == 1:
            raise UserError(
                "--draft-vocabulary: the model has only the next-token head and no heads that "
                "draft; add heads (--add-heads N) and train them"
            )
        if self.size is not None and self.size > args.vocab_size:
            raise UserError(
                f"--draft-vocabulary {self.size}: the model has {args.vocab_size} tokens"
            )

    def choose(self, model_dir: Path, vocab_size: int) -> tuple[Tensor | None, str]:
        """The ids, and a sentence that says what they cover.

        Args:
            model_dir: with the tokenizer.

        Raises:
            UserError: there is no tokenizer, the text cannot be read, or the size is too small.
        """
        if self.none:
            return None, "no draft vocabulary"
        tokenizer = load_tokenizer(model_dir)
        check_vocabulary(tokenizer, vocab_size, str(model_dir))
        counts = torch.from_numpy(count_tokens(tokenizer, vocab_size, self.text))
        try:
            stops = [each for each in tokenizer.stop_ids if each < vocab_size]
            ids = choose_ids(counts, self.size, stops)
        except ValueError as error:
            raise UserError(f"--draft-vocabulary: {error}") from error
        where = "Python's standard library" if self.text is None else str(self.text)
        if ids is None:
            return None, (
                f"no draft vocabulary: none smaller than {vocab_size} tokens covers "
                f"{COVERAGE:.1%} of {where}"
            )
        share = int(counts[ids].sum()) / int(counts.sum())
        return ids, f"drafts from {len(ids)} of {vocab_size} tokens ({share:.2%} of {where})"
