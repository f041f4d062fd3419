"""One row of a batch as it grows, and what is handed out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from weighted_mtp.decoding.stopping import Stopping, Text

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What one row gained by one step.

    Attributes:
        row: index of its prompt.
        tokens: new tokens.
        text: text that became certain by them; all pieces together are the row's text. "" without
            a `decode`.
        logprobs: of the new tokens, where asked for.
        finish: why the row ended, with its last piece.
    """

    row: int
    tokens: list[int]
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None


@dataclass(frozen=True)
class Completion:
    """All that one row gained.

    Attributes:
        tokens: new tokens, without EOS; with a stop string, up to the one that completed it.
        text: theirs, cut before the stop string; "" without a `decode`.
        logprobs: natural logarithms of the tokens' probabilities by the model itself, that is by
            its first head before penalty, temperature and filters; [] unless asked for.
        finish: "eos" (any of the ends of sequence), "stop" (a stop string) or "length".
    """

    tokens: list[int]
    text: str
    logprobs: list[float]
    finish: Finish


class Row:
    """A prompt and what follows it.

    Attributes:
        index: of the prompt.
        tokens: prompt and new tokens; only the newest is not in the cache yet.
        finish: why it ended; None while it is decoded.
        end: the end of sequence that ended it; it is not among the tokens.
    """

    def __init__(self, index: int, prompt: Sequence[int], stopping: Stopping) -> None:
        self.index, self.tokens = index, list(prompt)
        self.finish: Finish | None = None
        self.end: int | None = None
        self.logprobs: list[float] = []
        self._prompt, self._stopping = len(prompt), stopping
        self._text = None
        if stopping.decode is not None:
            self._text = Text(stopping.decode, stopping.strings)
        self._pieces = ""
        self._given = 0  # new tokens handed out

    @property
    def new(self) -> list[int]:
        """The new tokens."""
        return self.tokens[self._prompt :]

    @property
    def remaining(self) -> int:
        """Tokens until the limit."""
        return self._stopping.max_new_tokens - (len(self.tokens) - self._prompt)

    def push(self, tokens: Sequence[int], logprobs: Sequence[float] = ()) -> int:
        """Add tokens until one ends the row; how many counted, an EOS being one."""
        for count, token in enumerate(tokens, 1):
            if self._stopping.ends(token):
                self.finish, self.end = "eos", token
                return count
            self.tokens.append(token)
            self.logprobs += logprobs[count - 1 : count]
            if self._text is not None and self._text.push(token):
                self.finish = "stop"
            elif self.remaining == 0:
                self.finish = "length"
            if self.finish is not None:
                return count
        return len(tokens)

    def take(self) -> Piece:
        """What came since the last call."""
        text = "" if self._text is None else self._text.take(final=self.finish is not None)
        self._pieces += text
        given, self._given = self._given, len(self.tokens) - self._prompt
        return Piece(self.index, self.new[given:], text, self.logprobs[given:], self.finish)

    def completion(self) -> Completion:
        """All of it, once the row has ended and its last piece was taken."""
        assert self.finish is not None, "the row has not ended"
        return Completion(self.new, self._pieces, self.logprobs, self.finish)
