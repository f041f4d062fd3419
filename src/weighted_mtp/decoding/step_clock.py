"""What one more token in a forward pass costs here and now: measured on the steps of decoding.

Nothing is run for the measurement. Where a kind of step (so many rows, so much context) was not met
before, two steps go without drafts, which costs what they would have gained; what was measured
is kept as long as the model is.
"""

from __future__ import annotations

import time
from collections import deque
from weakref import WeakKeyDictionary

from torch import nn

PRIOR = 0.1
"""Cost of a token for one row, before anything is measured; it grows with the root of the rows."""
_PROBES = 2
_LEAST = 2  # steps with drafts, before their times are trusted: the first also prepares kernels
_RECENT = 5
_SHORT = 255  # contexts up to which a step's time hardly depends on them
_STALE = 64  # steps without drafts, after which the times of those with drafts are forgotten


class StepClock:
    """Times of steps by the number of tokens that they read of each row.

    Args:
        prior: the cost before there are times.
    """

    def __init__(self, prior: float) -> None:
        self._prior, self._steps, self._plain = prior, 0, 0
        self._times: dict[int, deque[float]] = {}

    @property
    def probing(self) -> bool:
        """Whether the next step should go without drafts."""
        return self._steps < _PROBES

    def add(self, width: int, seconds: float) -> None:
        """Count a step that read `width` tokens of each row."""
        self._steps += 1
        self._times.setdefault(width, deque(maxlen=_RECENT)).append(seconds)
        self._plain = self._plain + 1 if width == 1 else 0
        if self._plain >= _STALE:
            self._times, self._plain = {1: self._times[1]}, 0  # else it is never tried again

    def cost(self) -> float:
        """Of one more token, as a share of a step that reads one."""
        wide = {width: min(times) for width, times in self._times.items() if width > 1}
        steps = sum(len(self._times[width]) for width in wide)
        if 1 not in self._times or steps < _LEAST:
            return self._prior
        one = min(self._times[1])
        return max(0.0, sum(each / one - 1 for each in wide.values()) / sum(w - 1 for w in wide))


_CLOCKS: WeakKeyDictionary[nn.Module, dict[tuple[int, int, int], StepClock]] = WeakKeyDictionary()


class CostMeter:
    """Times the steps of a decoder.

    Args:
        model: what the times are kept with; they last as long as it does.
        k: most tokens of a step.
    """

    def __init__(self, model: nn.Module, k: int) -> None:
        self._clocks, self._k = _CLOCKS.setdefault(model, {}), k
        self._clock = StepClock(PRIOR)
        self._since: float | None = None

    @property
    def probing(self) -> bool:
        """Whether the next step should go without drafts."""
        return self._clock.probing

    def cost(self) -> float:
        """As `StepClock.cost`, of steps like the present one."""
        return self._clock.cost()

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
        if self._since is not None:
            self._clock.add(width, now - self._since)
        self._since = now
        key = (self._k, rows.bit_length(), max(context, _SHORT).bit_length())
        if key not in self._clocks:
            self._clocks[key] = StepClock(PRIOR * rows**0.5)
        self._clock = self._clocks[key]
