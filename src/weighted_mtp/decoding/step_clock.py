"""What a forward pass over more tokens costs here and now: measured on the steps of decoding.

Nothing is run for the measurement. Where a kind of step (so many rows, so much context) was not met
before, nor one like it, two steps go without drafts, which costs what they would have gained; what
was measured is kept as long as the model is.
"""

from __future__ import annotations

import math
import time
from collections import deque
from weakref import WeakKeyDictionary

from torch import nn

PRIOR = 0.1
"""Cost of a token for one row, before anything is measured; it grows with the root of the rows."""
_PROBES = 2
_LEAST = 2  # steps of a width, before their times are trusted: the first also prepares kernels
_RECENT = 5
_MANY = 16  # rows from which the prior grows no more, so that drafts are tried at any number
_SHORT = 255  # contexts up to which a step's time hardly depends on them
_STALE = 64  # steps without drafts, after which the times of those with drafts are forgotten
_ALIKE = 2  # steps over fewer than so many times as many rows cost about the same for a token more


class StepClock:
    """Times of steps over one number of rows, by the number of tokens that they read of each.

    Each width has a time of its own: on a CPU eight tokens cost hardly more than four, and sixteen
    rows of four more than twice as much as sixteen of two.
    """

    def __init__(self) -> None:
        self._plain = 0
        self._times: dict[int, deque[float]] = {}

    @property
    def known(self) -> bool:
        """Whether it tells what a step without drafts takes."""
        return len(self._times.get(1, ())) >= _PROBES

    @property
    def costs(self) -> list[tuple[int, float]]:
        """Widths met, the smallest first, and what a step takes, in steps of width 1; unless
        `known`, or before there was a wider one, none."""
        trusted = sorted((w, min(t)) for w, t in self._times.items() if len(t) >= _LEAST)
        if not self.known or len(trusted) < 2:
            return []
        return [(width, seconds / trusted[0][1]) for width, seconds in trusted]

    def add(self, width: int, seconds: float) -> None:
        """Count a step that read `width` tokens of each row."""
        self._times.setdefault(width, deque(maxlen=_RECENT)).append(seconds)
        self._plain = self._plain + 1 if width == 1 else 0
        if self._plain >= _STALE:
            self._times, self._plain = {1: self._times[1]}, 0  # else it is never tried again


def between(costs: list[tuple[int, float]], width: int) -> float:
    """The cost at `width`: on the line through its neighbours, or behind the last on that from
    the first."""
    above = next((place for place, (w, _) in enumerate(costs) if w >= width), len(costs) - 1)
    low = max(0, above - 1) if costs[above][0] >= width else 0
    (w, cost), (v, other) = costs[low], costs[above]
    return cost if w == v else cost + (other - cost) * (width - w) / (v - w)


_Clocks = dict[tuple[str, int, int], dict[int, StepClock]]
_CLOCKS: WeakKeyDictionary[nn.Module, _Clocks] = WeakKeyDictionary()


class CostMeter:
    """Times the steps of a decoder.

    Args:
        model: what the times are kept with; they last as long as it does.
        kind: of steps: those of another kind take another time for the same width.
        k: heads in use.

    Attributes:
        probing: the next step should go without drafts.
    """

    def __init__(self, model: nn.Module, kind: str, k: int) -> None:
        self._all, self._kind = _CLOCKS.setdefault(model, {}), (kind, k)
        self.probing = True
        self._costs: list[tuple[int, float]] = []  # of steps like the last one
        self._rows = 1
        self._since: float | None = None

    def cost(self, width: int) -> float:
        """Of a step over `width` tokens of each row, in steps of width 1."""
        if not self._costs:
            if width > 2 and self._rows > 1:
                return math.inf  # a wide step of many rows is dear: the first one is narrow
            return 1 + PRIOR * math.sqrt(min(self._rows, _MANY)) * (width - 1)
        return between(self._costs, width)

    def pause(self) -> None:
        """What runs until the next step is no part of it."""
        self._since = None

    def tick(self, width: int, rows: int, context: int) -> None:
        """A step has ended: its tokens are known.

        Args:
            width: tokens read of each row.
            context: tokens of the longest row.
        """
        now = time.perf_counter()
        key = (*self._kind, max(context, _SHORT).bit_length())
        clocks, self._rows = self._all.setdefault(key, {}), rows
        if self._since is not None:
            clocks.setdefault(rows, StepClock()).add(width, now - self._since)
        self._since = now
        distances = sorted((max(each, rows) / min(each, rows), each) for each in clocks)
        alike = [clocks[each] for far, each in distances if far < _ALIKE]  # the closest first
        self.probing = not any(clock.known for clock in alike)
        self._costs = next((found for clock in alike if (found := clock.costs)), [])
