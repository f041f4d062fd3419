"""Windows of one size over a stream of documents, for pretraining.

Letters: S = length − 1 positions of a window, n heads.

Window i predicts from the stream's positions i·S … (i + 1)·S − 1, every one of them: nothing is
padded. It is cut into pieces, one for each document it touches. A piece stands alone: attention
sees nothing before it and positions restart at 0. Where its document continues after the window,
the piece has up to n tokens more, which are targets only, so that no head loses its tail; they are
the inputs of the next window.

Over all windows, a document of L tokens is predicted thus: head k at position t predicts the token
t + k, once, for every 0 ≤ t and t + k < L. In other words, head k predicts every token but the
document's first k, each once. What lies behind the last whole window predicts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import overload

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.examples import Example
from weighted_mtp.data.tokens.text_tokens import TokenStream


class PackedWindows(Sequence[tuple[Example, ...]]):
    """The windows of a stream; each is read when asked for, and costs no look at the others.

    The inputs of a window's pieces add up to S; only its last piece may have targets that are no
    inputs. A piece's `prompt_length` is 1: its first token is none of its targets. `row` is the
    window's index and `task_id` the document's number. A stream shorter than a window is one
    window, a short one.

    Args:
        stream: tokens and document borders.
        length: tokens that a next-token model reads, inputs and the last target (as
            `data.max_length` of rows); a window reads `length + n − 1`.
        n: number of heads.

    Raises:
        UserError: the stream has no two tokens, or `length` is below 2.
    """

    def __init__(self, stream: TokenStream, length: int, n: int) -> None:
        if length < 2 or n < 1:
            raise UserError(f"windows of {length} tokens for {n} heads predict nothing")
        if len(stream) < 2:
            raise UserError(f"{stream.folder}: {len(stream)} tokens are too few to learn from")
        self.stream, self.length, self.n = stream, length, n

    def __len__(self) -> int:
        return max(1, len(self.stream) // (self.length - 1))

    @overload
    def __getitem__(self, index: int) -> tuple[Example, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[Example, ...]]: ...

    def __getitem__(self, index: int | slice) -> tuple[Example, ...] | list[tuple[Example, ...]]:
        if isinstance(index, slice):
            return [self._window(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return self._window(index % len(self))

    def _window(self, index: int) -> tuple[Example, ...]:
        S, offsets = self.length - 1, self.stream.offsets
        start = index * S
        end = min(start + S, len(self.stream))
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, end, side="left"))  # the first one behind
        borders = offsets[first : last + 1].tolist()
        return tuple(
            self._piece(index, first + i, max(start, a), min(end, b), min(end + self.n, b))
            for i, (a, b) in enumerate(pairwise(borders))
        )

    def _piece(self, index: int, document: int, start: int, end: int, read: int) -> Example:
        """Inputs `start … end − 1` of one document, and targets up to `read − 1`."""
        return Example(
            ids=self.stream.tokens[start:read].tolist(),
            prompt_length=1,
            truncated=False,
            row=index,
            task_id=str(document),
            inputs=end - start,
        )
