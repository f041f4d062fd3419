"""How many tokens ahead to draft, judged by how earlier drafts fared."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul

_MEMORY = 0.8  # weight of the past in a head's acceptance rate
_SETTLED = 1 << 30  # drafts after which the past weighs `_MEMORY`
_MARGIN = 0.25  # what drafts must gain in a batch: its slowest row ends it, with little company
_GUESS, _BELIEF = 0.7, 8  # in a batch, where a try costs several steps: the acceptance rate of an
# untried head, and the drafts it counts for, so that one bad step does not end them
_HOPE = 0.002  # what an untried head regains at each step, so that it is tried again


class DraftLength:
    """Chooses k from 1 … `most` for each step: the most expected tokens for the time of a forward.

    A forward of k tokens is taken to cost 1 + `token_cost`·(k − 1) forwards of one, or what
    `token_cost` says. The choice rests on steps that are over, never on the drafts it is about, so
    sampled text keeps its distribution.

    Args:
        most: upper limit, the k of the call.
        token_cost: cost of one more token in a forward pass, or what tells the cost of a forward
            of 1, 2, … tokens. None: always `most`.
        rows: that it decides for together, each of which is learnt from at every step. With
            several, drafts must promise a quarter more than none, and an untried head counts as one
            that kept 7 of 10 drafts, of 8; a single row tries all heads at once.

    Attributes:
        rows: as above; it may change.
    """

    def __init__(
        self, most: int, token_cost: float | Callable[[int], float] | None, rows: int = 1
    ) -> None:
        self._most, self._cost = most, token_cost
        self._tested = [_BELIEF if rows > 1 else _SETTLED] * (most - 1)  # drafts of each head
        self.rows = rows
        # Of heads 2 … k, given that all before were right.
        self._rates = [_GUESS if rows > 1 else 1.0] * (most - 1)
        self._k: int | None = most if token_cost is None else None

    @property
    def k(self) -> int:
        """Tokens of the next step."""
        if self._k is None:
            self._k = self._best()
        return self._k

    def learn(self, tested: int, accepted: int) -> None:
        """Count a step: `tested` drafts were judged and the first `accepted` were right."""
        if self._cost is None:
            return
        memory, hope = _MEMORY ** (1 / self.rows), _HOPE / self.rows
        for head, rate in enumerate(self._rates):
            if head < tested:
                self._tested[head] += 1
                share = max(1 - memory, 1 / (1 + self._tested[head]))
                self._rates[head] = rate + share * ((head < accepted) - rate)
            else:
                self._rates[head] = rate + hope * (1 - rate)
        self._k = None  # many rows may be learnt from before it is asked for

    def _best(self) -> int:
        cost = self._cost
        assert cost is not None
        reach = accumulate([1.0, *self._rates], mul)  # P(the step decides at least 1, 2, … tokens)
        costs = [cost(1 + i) if callable(cost) else 1 + cost * i for i in range(self._most)]
        gains = [tokens / each for tokens, each in zip(accumulate(reach), costs, strict=True)]
        if self.rows > 1:
            gains[0] *= 1 + _MARGIN
        return 1 + max(range(self._most), key=gains.__getitem__)
