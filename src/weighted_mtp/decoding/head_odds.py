"""How far the heads' own probabilities can be believed, by how their guesses fared."""

from __future__ import annotations

_MEMORY = 0.95  # weight of the past
_FAITH = 2.0  # tested nodes that an untried head's word is worth


class HeadOdds:
    """For each of heads 2 … k the ratio of guesses that were right to those that its probabilities
    promised, over the last twenty tests or so.

    It rests on passes that are over, never on the drafts it is about, so sampled text keeps its
    distribution.
    """

    def __init__(self, heads: int) -> None:
        self._right, self._promised = [_FAITH] * heads, [_FAITH] * heads

    def learn(self, head: int, promised: float, right: bool) -> None:
        """Count a test: the guesses together had probability `promised`, and one was right."""
        self._right[head] = _MEMORY * self._right[head] + right
        self._promised[head] = _MEMORY * self._promised[head] + promised

    def __getitem__(self, head: int) -> float:
        return self._right[head] / self._promised[head]
