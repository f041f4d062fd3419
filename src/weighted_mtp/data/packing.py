"""How a step's examples are cut into micro-batches, padded or packed. The loss does not depend on
it.

A group is what must stay in one micro-batch: one example, a pair, or the pieces of a window.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeAlias

from weighted_mtp.data.batches import Batch, Example, pack_batch, pad_batch

Group: TypeAlias = Sequence[Example]


@dataclass(frozen=True)
class Cutter:
    """Cuts the groups of a step.

    Attributes:
        pad_id: fills what is left.
        longest: positions of a row at most.
        micro_batch_size: rows of a micro-batch, packed ones or examples.
        packing: put several groups in a row of `longest` positions.
        multiple: the number of positions becomes a multiple of it, where `longest` allows.
        end_to_end: put the packed rows of a micro-batch into a single one, without the padding
            behind each: for attention that goes from document to document.
    """

    pad_id: int
    longest: int
    micro_batch_size: int
    packing: bool = False
    multiple: int = 1
    end_to_end: bool = False

    def cut(self, groups: Sequence[Group], rank: int = 0, world: int = 1) -> list[Batch]:
        """This rank's micro-batches. Every rank gets as many; the last may be empty."""
        ordered = sorted(groups, key=lambda group: (_longest(group), group[0].row))
        if self.packing:
            parts = self._packed_rows(ordered, world)[rank::world]
            if self.end_to_end:
                parts = [[list(chain.from_iterable(part))] if part else [] for part in parts]
            return [pack_batch(part, self.pad_id, self.multiple) for part in parts]
        padded = self._padded_parts([e for group in ordered for e in group], world)[rank::world]
        return [pad_batch(part, self.pad_id, self.multiple, self.longest) for part in padded]

    def _padded_parts(self, examples: Sequence[Example], world: int) -> list[Sequence[Example]]:
        """Examples of like length go together: less padding."""
        size = self.micro_batch_size
        parts: list[Sequence[Example]] = [
            examples[i : i + size] for i in range(0, len(examples), size)
        ]
        wanted = max(world, _round_up(len(parts), world))
        return parts + [()] * (wanted - len(parts))

    def _packed_rows(self, groups: Sequence[Group], world: int) -> list[list[list[Example]]]:
        """Micro-batches of packed rows, of like length and in equal numbers."""
        size, total = self.micro_batch_size, sum(map(_positions, groups))
        least = -(-total // self.longest)
        parts = _round_up(-(-least // size), world)
        rows = pack_groups([_positions(g) for g in groups], self.longest, max(least, parts))
        filled = [[e for g in row for e in groups[g]] for row in rows if row]
        parts = max(world, _round_up(-(-len(filled) // size), world))
        filled.sort(key=lambda row: sum(e.positions for e in row))
        cuts = [len(filled) * i // parts for i in range(parts + 1)]
        return [filled[a:b] for a, b in pairwise(cuts)]


def pack_groups(lengths: Sequence[int], capacity: int, rows: int = 1) -> list[list[int]]:
    """Which groups share a row: the longest first, each into the emptiest row, or into a new one if
    that has no room (LPT scheduling, Graham 1969). Rows come out about equally full, which a
    micro-batch wants more than few rows.

    Args:
        lengths: positions of each group; one that exceeds `capacity` gets a row of its own.
        capacity: positions of a row.
        rows: rows to begin with.

    Returns:
        indices of the groups in each row; rows may be empty.
    """
    packed: list[list[int]] = [[] for _ in range(rows)]
    heap = [(0, row) for row in range(rows)]
    for group in sorted(range(len(lengths)), key=lambda g: (-lengths[g], g)):
        used, row = heap[0] if heap else (capacity, -1)
        if used and used + lengths[group] > capacity:
            packed.append([group])
            heapq.heappush(heap, (lengths[group], len(packed) - 1))
        else:
            packed[row].append(group)
            heapq.heapreplace(heap, (used + lengths[group], row))
    return packed


def _longest(group: Group) -> int:
    return max(len(e.ids) for e in group)


def _positions(group: Group) -> int:
    return sum(e.positions for e in group)


def _round_up(count: int, multiple: int) -> int:
    return count + -count % multiple
