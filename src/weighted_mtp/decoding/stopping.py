"""When a row ends, and which of its text is certain: EOS, length, stop strings.

Stop strings are looked for in the text, across the borders of tokens. Text is held back while a
character is incomplete (tokens may be single bytes of one) or while it may still turn out to be the
beginning of a stop string. What was given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]
_INCOMPLETE = "\ufffd"  # what decoders show for bytes that are not (yet) a character


@dataclass(frozen=True)
class Stopping:
    """What ends a row.

    Attributes:
        max_new_tokens: at most this many tokens per row.
        eos_id: ends a row; it is not part of the result. Several ids where any of them does.
        strings: the text ends before the first of them; the tokens with the one that completed it.
        decode: tokens to text, a tokenizer's; needed for `strings` and wherever text is wanted.
    """

    max_new_tokens: int
    eos_id: int | Collection[int] | None = None
    strings: Sequence[str] = ()
    decode: Decode | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be 0 or more, got {self.max_new_tokens}")
        if isinstance(self.strings, str):
            raise ValueError(f"stop strings must be a list, got the one string {self.strings!r}")
        if not all(self.strings):
            raise ValueError("a stop string must not be empty")
        if self.strings and self.decode is None:
            raise ValueError("stop strings need decode, the tokenizer's own (tokens to text)")

    def ends(self, token: int) -> bool:
        """Whether a token is an end of sequence."""
        if self.eos_id is None or isinstance(self.eos_id, int):
            return token == self.eos_id
        return token in self.eos_id


class Text:
    """The text of one row, token by token.

    New text is what the last few tokens decode to beyond what those before them do, so the work for
    a token does not grow with the text. That suits decoders where a token's text may depend on
    there being one before it (a dropped first space) but not on more.
    """

    def __init__(self, decode: Decode, strings: Sequence[str]) -> None:
        self._decode, self._strings = decode, tuple(strings)
        self._longest = max(map(len, strings), default=0)
        self._ids: list[int] = []
        self._context = self._settled = 0  # ids[context:settled] decode to the context
        self._text = ""
        self._given = 0  # characters given out
        self.stopped = False

    def push(self, token: int) -> bool:
        """Add a token; True if a stop string is complete. Nothing may follow it then."""
        self._ids.append(token)
        new = self._new()
        whole = new.rstrip(_INCOMPLETE)
        start = max(0, len(self._text) - self._longest + 1)
        found = self._find(self._text[start:] + whole)
        if found is not None:
            self._text = (self._text + whole)[: start + found]
            self.stopped = True
        elif new and whole == new:
            self._text += new
            self._context, self._settled = self._settled, len(self._ids)
        return self.stopped

    def take(self, final: bool = False) -> str:
        """Text not yet given out that is certain now; all of it once the row has ended."""
        if final and not self.stopped:
            self._text += self._new()
            self._settled = len(self._ids)
        end = len(self._text) - (0 if final or self.stopped else self._held())
        text = self._text[self._given : end]
        self._given += len(text)
        return text

    def _new(self) -> str:
        known = len(self._decode(self._ids[self._context : self._settled]))
        return self._decode(self._ids[self._context :])[known:]

    def _find(self, text: str) -> int | None:
        places = [text.find(string) for string in self._strings]
        return min((place for place in places if place >= 0), default=None)

    def _held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._text)), 0, -1):
            end = self._text[-length:]
            if any(string.startswith(end) for string in self._strings):
                return length
        return 0
