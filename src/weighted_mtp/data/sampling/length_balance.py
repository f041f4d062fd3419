"""Pairs in which length gives nothing away: right rows are the longer ones as often as wrong ones.

A problem's near pairs are of three classes: the right row is longer, as long, or shorter. Each
class is a ring of pairs, of which every pass takes the next few. A problem gives equally many
longer and shorter ones, then ties; what it still lacks it offers as surplus, longer or shorter. Of
all surplus as many longer as shorter ones are taken, in turns.

Letters: P problems, R right rows, w wrong rows of a problem, G groups asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.rows.metadata import Indices
from weighted_mtp.data.sampling.problems import Problems, starts

LONGER, TIE, SHORTER = range(3)
_VARIETY = 2  # a class offers this many times the pairs of a pass, where there are that many
_SURPLUS = 4  # third word of the seed: apart from those of other draws

Lengths = np.ndarray[Any, np.dtype[np.int32]]


class NearPairs:
    """Every right row with the wrong rows of its problem that come next in length.

    Attributes:
        size: `[3, P]` pairs of each class.
    """

    def __init__(self, problems: Problems, length: Lengths, cap: int) -> None:
        self._right = problems.right
        owner = np.repeat(np.arange(len(problems.r)), problems.r)  # [R]
        wrong_owner = np.repeat(np.arange(len(problems.w)), problems.w)
        span = int(length.max()) + 1  # keys sort by problem, then by length
        wrong_key = wrong_owner * span + length[problems.wrong]
        order = np.argsort(wrong_key, kind="stable")
        self._wrong, wrong_key = problems.wrong[order], wrong_key[order]
        key = owner * span + length[problems.right]
        # Where in `_wrong` those as long as a right row begin and end.
        self._low = np.searchsorted(wrong_key, key, side="left")
        self._high = np.searchsorted(wrong_key, key, side="right")
        first = problems.wrong_start[owner]
        last = first + problems.w[owner]
        there_are: Indices = np.stack(
            [self._low - first, self._high - self._low, last - self._high]
        )
        most = -(-_VARIETY * cap // problems.r)[owner]
        self._offered = np.minimum(there_are, most).reshape(-1)  # [3 · R]: class by class
        self._ends = np.cumsum(self._offered)
        offered = self._offered.reshape(3, -1)
        self.size = np.add.reduceat(offered, problems.right_start, axis=1)
        self._start = (self._ends.reshape(3, -1) - offered)[:, problems.right_start]  # [3, P]

    def pairs(self, kind: Indices, problem: Indices, turn: Indices) -> Indices:
        """Rows `[G, 2]` of the pairs at these turns `[G]` of the rings of a class and problem."""
        turn = self._start[kind, problem] + turn % self.size[kind, problem]
        at = np.searchsorted(self._ends, turn, side="right")
        right = at % len(self._right)
        distance = turn - (self._ends[at] - self._offered[at])  # 0: the nearest
        low, high = self._low[right], self._high[right]
        ties = np.maximum(high - low, 1)
        wrong = np.choose(
            kind,
            [low - 1 - distance, low + (distance + right) % ties, high + distance],
        )
        return np.stack([self._right[right], self._wrong[wrong]], axis=1)


class LengthBalancedPairs:
    """A `Source` of near pairs: in every pass exactly as many have the right row longer as have it
    shorter; none comes twice.

    Items are first the pairs that balance within their problem, then places for surplus: longer
    ones, then shorter ones.

    Raises:
        UserError: nothing balances.
    """

    def __init__(self, problems: Problems, length: Lengths, cap: int, seed: int) -> None:
        self.rows = np.concatenate([problems.right, problems.wrong])
        self._near = NearPairs(problems, length, cap)
        rng = np.random.default_rng([seed, 0, _SURPLUS])
        longer, tie, shorter = self._near.size
        wanted = np.minimum(cap, problems.r * problems.w)  # [P] pairs a pass
        even = np.minimum(np.minimum(longer, shorter), wanted // 2)
        ties = np.minimum(tie, wanted - 2 * even)
        over, under = _surplus(wanted - 2 * even - ties, longer - even, shorter - even, rng)
        self._taken = np.stack([even + over, ties, even + under])  # [3, P] at most, in a pass
        nothing = np.zeros_like(even)
        sure = [_units(LONGER, nothing, even), _units(TIE, nothing, ties)]
        sure.append(_units(SHORTER, nothing, even))
        surplus = [_units(LONGER, even, over), _units(SHORTER, even, under)]
        surplus = [units[:, rng.permutation(units.shape[1])] for units in surplus]
        self._units = np.concatenate([*sure, *surplus], axis=1)  # [3, units]: class, problem, slot
        self._offers: list[int] = [units.shape[1] for units in surplus]
        self._places = min(self._offers)  # taken of each
        self._sure: int = self._units.shape[1] - sum(self._offers)
        if len(self) == 0:
            always = "longer" if self._offers[0] else "shorter"
            raise UserError(
                "data.sampling.length_balanced_pairs leaves no pair: in all that an epoch would "
                f"hold, the correct row is {always} than the incorrect one; raise "
                "objective.value.max_pairs_per_problem, add rows, or set it to false"
            )

    def __len__(self) -> int:
        return self._sure + 2 * self._places

    def groups(self, items: Indices, passes: Indices) -> Indices:
        """Rows `[G, 2]`, right and wrong, of items `[G]`, each in its pass `[G]`."""
        kind, problem, slot = self._units[:, self._unit(items, passes)]
        return self._near.pairs(kind, problem, passes * self._taken[kind, problem] + slot)

    def _unit(self, items: Indices, passes: Indices) -> Indices:
        """Which unit each item stands for; the surplus takes turns."""
        unit: Indices = items.copy()
        first_place, first_unit = self._sure, self._sure
        for offers in self._offers:
            there = (items >= first_place) & (items < first_place + self._places)
            turn = passes[there] * self._places + items[there] - first_place
            unit[there] = first_unit + turn % max(offers, 1)
            first_place, first_unit = first_place + self._places, first_unit + offers
        return unit


def _surplus(
    lacking: Indices, longer: Indices, shorter: Indices, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """How many more longer and shorter pairs `[P]` each problem offers, of those it has left.

    A problem that has both left lacks one at most; which it offers is chosen to bring the sums
    together.
    """
    over, under = np.minimum(lacking, longer), np.minimum(lacking, shorter)
    free = rng.permutation(np.flatnonzero((over > 0) & (under > 0)))
    to_over = (len(free) + int((under - over).sum())) // 2
    to_over = min(max(to_over, 0), len(free))
    under[free[:to_over]] = 0
    over[free[to_over:]] = 0
    return over, under


def _units(kind: int, start: Indices, count: Indices) -> Indices:
    """`[3, units]`: class, problem and slot of the `count` `[P]` pairs from slot `start` `[P]`."""
    problem = np.repeat(np.arange(len(count)), count)
    slot = start[problem] + np.arange(len(problem)) - starts(count)[problem]
    return np.stack([np.full(len(problem), kind), problem, slot])
