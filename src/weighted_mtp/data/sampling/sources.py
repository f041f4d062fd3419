"""What a bin is drawn from: single rows, or pairs of rows.

Letters: G groups asked for.
"""

from __future__ import annotations

from typing import Protocol

from weighted_mtp.data.rows.metadata import Indices


class Source(Protocol):
    """Numbered items that are drawn pass after pass; an item may stand for other rows in the next
    pass.

    Attributes:
        rows: all that may ever be drawn.
    """

    rows: Indices

    def __len__(self) -> int:
        """Items in one pass."""

    def groups(self, items: Indices, passes: Indices) -> Indices:
        """Rows `[G, group]` of items `[G]`, each in its pass `[G]`."""


class Rows:
    """Every item is one row, the same in every pass."""

    def __init__(self, rows: Indices) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self, items: Indices, passes: Indices) -> Indices:
        """As for `Source`."""
        return self.rows[items][:, None]
