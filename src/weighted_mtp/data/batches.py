"""Tokenised rows side by side: padded, or packed several to a row.

What is decided about a token (targets, rewards, weights, values, statistics) has one layout, a row
of its own for each example. Packing changes only what the model reads: `Packing` carries numbers
from one layout to the other, so nothing that is computed row by row can cross a border.

Letters: B examples, S positions of the longest, P packed rows, L positions of each, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.examples import Example

__all__ = ["Batch", "Example", "Packing", "pack_batch", "pad_batch"]


class Packing(NamedTuple):
    """Where each example lies in the packed rows.

    Attributes:
        slots: `[B, S]` place of a position among the P · L packed ones, −1 past an example's end.
        source: `[P, L]` the inverse: place among the B · S, −1 on padding.
        runs: positions of each document, and of the padding behind each row, in their order; they
            sum to P · L. Empty where attention is not to go from run to run.
    """

    slots: Tensor
    source: Tensor
    runs: tuple[int, ...] = ()

    @classmethod
    def of_padded(cls, rows: int, positions: int) -> Packing:
        """Of examples that have a row each: nothing moves."""
        places = torch.arange(rows * positions).view(rows, positions)
        return cls(places, places)

    @property
    def filled(self) -> Tensor:
        """`[B, S]` positions that the model runs."""
        return self.slots >= 0

    @property
    def positions(self) -> Tensor:
        """`[P, L]` each token's position in its own document."""
        return (self.source % self.slots.shape[1]).where(self.source >= 0, 0)

    @property
    def mask(self) -> Tensor:
        """`[P, 1, L, L]` true where a query may look: back, within its own document."""
        document = self.source.div(self.slots.shape[1], rounding_mode="floor")  # [P, L], −1 padding
        return (document[:, :, None] == document[:, None, :]).tril().unsqueeze(1)

    @property
    def unpacks_cheaply(self) -> bool:
        """Whether attention has less to do with a row for each document, the padding counted, than
        with the packed rows under a mask, and needs at most twice their memory."""
        (B, S), (P, L) = self.slots.shape, self.source.shape
        return B * S * S <= P * L * L and B * S <= 2 * P * L

    def to(self, device: torch.device, non_blocking: bool = False) -> Packing:
        """On another device."""
        slots, source = (x.to(device, non_blocking=non_blocking) for x in self[:2])
        return Packing(slots, source, self.runs)

    def only(self, wanted: Tensor) -> tuple[Packing, Tensor]:
        """Leave out all positions but some, `wanted` `[B, S]`: where those lie once they stand in
        one row of R ≥ 1, and their places `[R]` among the P · L."""
        places = self.pack(wanted, False).flatten().nonzero().squeeze(1)  # [R]
        if not len(places):
            places = places.new_zeros(1)
        source = self.source.flatten()[places]
        slots = torch.full_like(self.slots, -1)
        there = (source >= 0).nonzero().squeeze(1)  # all, but for a row of padding
        slots.view(-1)[source[there]] = there
        return Packing(slots, source[None]), places

    def pack(self, x: Tensor, fill: float | None = None) -> Tensor:
        """`[B, S, …]` → `[P, L, …]`; padding holds `fill`, or some number if it is None."""
        return _take(x, self.source, fill)

    def unpack(self, x: Tensor, fill: float | None = None) -> Tensor:
        """`[P, L, …]` → `[B, S, …]`; what is past an example's end likewise. Differentiable."""
        return _take(x, self.slots, fill)


class Batch(NamedTuple):
    """Examples, right-padded or packed.

    Attributes:
        tokens: `[B, S]` input, or `[P, L]` if packed. The last token of an example is a target
            only.
        labels: `[B, S + 1]` (wider where examples bring more targets than that) the tokens of each
            example, −100 on prompt and padding.
        truncated: `[B]` whose end was cut off.
        rows: `[B]` row indices, −1 for a row that only fills the batch.
        correct: `[B]` whose solution is right.
        reference: `[B, S + 1, h]` (or without h) as the examples had it, 0 on padding.
        packing: how the examples lie in `tokens`; None if each has a row of its own.
        targets: `[B, S, n]` what each head is to predict, once an objective has set it.
        states: `[B, S, 2, D]`, `[P, L, 2, D]` if packed, those of the examples; 0 on padding.
    """

    tokens: Tensor
    labels: Tensor
    truncated: Tensor
    rows: Tensor
    correct: Tensor
    reference: Tensor | None = None
    packing: Packing | None = None
    targets: Tensor | None = None
    states: Tensor | None = None

    @property
    def length(self) -> int:
        """S."""
        return (self.tokens if self.packing is None else self.packing.slots).shape[1]

    @property
    def predicted(self) -> Tensor:
        """`[B, S]` states that a response token follows. A response token at position 0 has no
        state before it: no head predicts it, and no value belongs to it."""
        return self.labels[:, 1:] != IGNORE_INDEX

    def positions(self) -> Tensor:
        """`[2]` float64: positions the model runs, and those of them that are not padding."""
        if self.packing is not None:
            filled = self.packing.filled.sum()
        else:
            filled = self.predicted.flip(1).cummax(1).values.sum()
        return torch.stack([filled.new_tensor(self.tokens.numel()), filled]).double()

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        moved: dict[str, Any] = {
            name: None if x is None else x.to(device, non_blocking=True)
            for name, x in self._asdict().items()
        }
        return Batch(**moved)


def pad_batch(
    examples: Sequence[Example], pad_id: int, multiple: int = 1, longest: int | None = None
) -> Batch:
    """A row for each example. No examples give a batch of one row with nothing to learn, so that
    every rank can always run its forward pass.

    Args:
        multiple: S becomes a multiple of it, so that kernels meet few shapes.
        longest: but no more than this, unless an example is.

    Raises:
        ValueError: an example that the model reads only in part; such are packed.
    """
    if any(e.inputs is not None for e in examples):
        raise ValueError("pieces of a window are packed, not padded")
    S = max((e.positions for e in examples), default=1)
    S = min(S + -S % multiple, max(S, longest or S + multiple))
    table = _row_table(examples, S, pad_id)
    return Batch(table.ids[:, :S].contiguous(), *table[1:], states=_states(examples, S))


def pack_batch(rows: Sequence[Sequence[Example]], pad_id: int, multiple: int = 1) -> Batch:
    """A packed row for each sequence of examples; L is that of the longest, rounded up to a
    multiple. No examples give a batch with nothing to learn."""
    examples = [example for row in rows for example in row]
    if not examples:
        empty = pad_batch([], pad_id)
        nothing = torch.full((1, 1), -1)
        return empty._replace(packing=Packing(nothing, nothing.clone(), (1,)))
    P, L = len(rows), max(sum(e.positions for e in row) for row in rows)
    L += -L % multiple
    S = max(e.positions for e in examples)
    table = _row_table(examples, S, pad_id)
    slots = torch.full((len(examples), S), -1)
    source = torch.full((P, L), -1)
    index, runs = 0, []
    for p, row in enumerate(rows):
        start = 0
        for example in row:
            m = example.positions
            slots[index, :m] = torch.arange(p * L + start, p * L + start + m)
            source[p, start : start + m] = torch.arange(index * S, index * S + m)
            start, index = start + m, index + 1
            runs.append(m)
        if start < L:
            runs.append(L - start)
    packing = Packing(slots, source, tuple(runs))
    states = _states(examples, S)
    if states is not None:
        states = packing.pack(states, 0)
    tokens = packing.pack(table.ids[:, :S], pad_id)
    return Batch(tokens, *table[1:], packing=packing, states=states)


def _states(examples: Sequence[Example], S: int) -> Tensor | None:
    """`[B, S, 2, D]` those of the examples; None if they have none, or there are no examples."""
    known = [example.states for example in examples if example.states is not None]
    if not known or len(known) < len(examples):
        return None
    table = known[0].new_zeros(len(known), S, *known[0].shape[1:])
    for line, states in zip(table, known, strict=True):
        line[: len(states)] = states
    return table


class _RowTable(NamedTuple):
    """The fields of a batch, with more ids than the model reads."""

    ids: Tensor
    labels: Tensor
    truncated: Tensor
    rows: Tensor
    correct: Tensor
    reference: Tensor | None


def _row_table(examples: Sequence[Example], S: int, pad_id: int) -> _RowTable:
    B = max(1, len(examples))
    width = max(S + 1, *(len(e.ids) for e in examples), 0)
    ids = torch.full((B, width), pad_id)
    labels = torch.full((B, width), IGNORE_INDEX)
    losses = [e.reference for e in examples]
    reference = None
    if all(x is not None for x in losses):
        heads = next((x.shape[1:] for x in losses if x is not None), ())
        reference = torch.zeros(B, width, *heads)
    for i, example in enumerate(examples):
        end = len(example.ids)
        ids[i, :end] = torch.as_tensor(example.ids)
        labels[i, example.prompt_length : end] = ids[i, example.prompt_length : end]
        for first, last in example.holes:
            labels[i, first:last] = IGNORE_INDEX
        if reference is not None and example.reference is not None:
            reference[i, :end] = example.reference
    return _RowTable(
        ids,
        labels,
        torch.tensor([e.truncated for e in examples] or [False]),
        torch.tensor([e.row for e in examples] or [-1]),
        torch.tensor([e.is_correct for e in examples] or [False]),
        reference,
    )


def _take(x: Tensor, index: Tensor, fill: float | None) -> Tensor:
    """`x.flatten(0, 1)[index]`, `fill` where the index is −1. A gather both ways: a scatter through
    a mask would make a GPU wait for the number of its elements."""
    taken = x.flatten(0, 1).index_select(0, index.clamp(min=0).flatten())
    taken = taken.view(*index.shape, *x.shape[2:])
    if fill is None:
        return taken
    there = (index >= 0).view(*index.shape, *[1] * (x.ndim - 2))
    return torch.where(there, taken, fill)
