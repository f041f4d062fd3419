"""The rows of a running batch, each with its own sampling, seed and limits.

Letters: B rows, W tokens read at once, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weighted_mtp.decoding.dice import Dice
from weighted_mtp.decoding.draft_length import DraftLength
from weighted_mtp.decoding.rows import Piece, Row
from weighted_mtp.decoding.sampling import Sampling
from weighted_mtp.decoding.stopping import Stopping

Alternatives = list[tuple[int, float]]


@dataclass(frozen=True)
class Order:
    """One text to write.

    Attributes:
        prompt: token ids, at least one.
        row_seed: settles the chance of the text together with `sampling.seed`.
        alternatives: keep log-probabilities, and those of this many likeliest tokens at each place;
            None keeps none.
    """

    prompt: Sequence[int]
    stopping: Stopping
    sampling: Sampling = field(default_factory=Sampling)
    row_seed: int = 0
    alternatives: int | None = None


class RunningRow:
    """A row of the batch.

    Attributes:
        alternatives: for each new token, the likeliest tokens there with their log-probabilities.
    """

    def __init__(self, order: Order, length: DraftLength, device: torch.device, V: int) -> None:
        self.order, self.row = order, Row(0, order.prompt, order.stopping)
        self.length = length
        self.dice = Dice(order.sampling.seed, [order.row_seed], device)
        self.kind = replace(order.sampling, seed=0)  # rows of one kind are judged together
        self.drafts = torch.zeros(0, dtype=torch.long, device=device)
        self.q: Tensor | None = None  # [drafts, V], what they were drawn from
        self.seen: Tensor | None = None  # [V]
        if order.sampling.repetition_penalty != 1:
            self.seen = torch.zeros(V, dtype=torch.bool, device=device)
            self.note(order.prompt)
        self.alternatives: list[Alternatives] = []

    @property
    def limit(self) -> int:
        """Tokens that the next pass may decide: the drafts and one more."""
        return 1 + len(self.drafts)

    def note(self, tokens: Sequence[int]) -> None:
        """Mark tokens as seen."""
        if self.seen is not None and tokens:
            self.seen[torch.tensor(list(tokens), device=self.seen.device)] = True

    def take(self) -> tuple[Piece, list[Alternatives]]:
        """What came since the last call."""
        piece = self.row.take()
        taken, self.alternatives = self.alternatives, []
        return piece, taken


def by_kind(rows: Sequence[RunningRow]) -> dict[Sampling, list[int]]:
    """Places of the rows of each kind."""
    kinds: dict[Sampling, list[int]] = {}
    for place, row in enumerate(rows):
        kinds.setdefault(row.kind, []).append(place)
    return kinds


def filled(x: Tensor, width: int) -> Tensor:
    """`[B, w, …]` with zeros behind, `[B, width, …]`."""
    if x.shape[1] == width:
        return x
    more = x.new_zeros(len(x), width - x.shape[1], *x.shape[2:])
    return torch.cat([x, more], 1)


def stacked_seen(rows: Sequence[RunningRow]) -> Tensor:
    """Tokens seen by rows that keep account of them, `[B, V]`."""
    return torch.stack([row.seen for row in rows if row.seen is not None])


def seen_along(rows: Sequence[RunningRow], drafts: Tensor) -> Tensor | None:
    """Tokens seen at each place of the window, `[B, W, V]`: drafts count from the next on."""
    if rows[0].seen is None:
        return None
    W = drafts.shape[1] + 1
    seen = stacked_seen(rows)[:, None].repeat(1, W, 1)
    for place in range(1, W):
        draft = drafts[:, None, place - 1 : place].expand(-1, W - place, -1)
        seen[:, place:].scatter_(2, draft, True)
    return seen
