"""One row as tokens. Nothing here loads torch: a process that only tokenises starts without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Example(NamedTuple):
    """One tokenised row.

    Attributes:
        ids: prompt, response and, unless truncated, EOS.
        prompt_length: tokens at the start that are not targets.
        truncated: the response's end was cut off, so that its last token is not terminal.
        row: index of the row it came from, in its file.
        task_id, is_correct: of that row.
        reference: `[len(ids), h]` the cross-entropy of each token under each head of a reference
            model (`[len(ids)]`: under the first alone); None where no objective asks for it.
        inputs: how many of the ids the model reads; the others are targets only. None: all but the
            last.
        holes: runs of tokens after `prompt_length` that are not targets, as (first, end): what
            others say between the answers of a conversation.
        states: `[positions, 2, D]` of a frozen trunk, see `trunk_states`; None where it is run.
    """

    ids: Sequence[int]
    prompt_length: int
    truncated: bool
    row: int
    task_id: str = ""
    is_correct: bool = True
    reference: Tensor | None = None
    inputs: int | None = None
    holes: Sequence[tuple[int, int]] = ()
    states: Tensor | None = None

    @property
    def positions(self) -> int:
        """How many positions the model runs for it."""
        return max(1, len(self.ids) - 1) if self.inputs is None else self.inputs

    @property
    def has_targets(self) -> bool:
        """Whether anything is left to learn: a prompt may fill the whole length."""
        return self.prompt_length < len(self.ids)
