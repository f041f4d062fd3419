"""Pairs of a right and a wrong solution of one problem.

Letters: P problems with both kinds, r and w right and wrong rows of one, G groups asked for.
"""

from __future__ import annotations

import numpy as np

from weighted_mtp.data.rows.metadata import Indices, Metadata
from weighted_mtp.data.sampling.length_balance import LengthBalancedPairs
from weighted_mtp.data.sampling.problems import Problems, starts
from weighted_mtp.data.sampling.sources import Source


class Pairs:
    """All pairs of every problem, at most `cap` of them a pass.

    A problem's r·w pairs stand in a fixed order that takes another right and another wrong row at
    every step; a pass takes the next min(cap, r·w) of them, round and round.
    """

    def __init__(self, problems: Problems, cap: int) -> None:
        self._problems = problems
        self._each = np.minimum(cap, problems.r * problems.w)  # [P] pairs a pass
        self._problem = np.repeat(np.arange(len(self._each)), self._each)  # of each item
        self._slot = np.arange(len(self._problem)) - starts(self._each)[self._problem]
        self.rows = np.concatenate([problems.right, problems.wrong])

    def __len__(self) -> int:
        return len(self._problem)

    def groups(self, items: Indices, passes: Indices) -> Indices:
        """Rows `[G, 2]`, right and wrong, of items `[G]`, each in its pass `[G]`."""
        known, problem = self._problems, self._problem[items]
        r, w = known.r[problem], known.w[problem]
        turn = (passes * self._each[problem] + self._slot[items]) % (r * w)
        # Along a diagonal of the r × w table; it closes after lcm(r, w) steps, then the next one.
        right = turn % r
        wrong = (turn + turn // np.lcm(r, w)) % w
        return np.stack(
            [
                known.right[known.right_start[problem] + right],
                known.wrong[known.wrong_start[problem] + wrong],
            ],
            axis=1,
        )


def pair_source(
    metadata: Metadata, candidates: Indices, cap: int, seed: int, length_balanced: bool
) -> Source:
    """The pairs among the candidates.

    Raises:
        UserError: there are none.
    """
    problems = Problems.of(metadata, candidates, seed)
    if length_balanced:
        return LengthBalancedPairs(problems, metadata.length, cap, seed)
    return Pairs(problems, cap)


def draw_pairs(
    metadata: Metadata,
    candidates: Indices,
    max_pairs_per_problem: int,
    seed: int,
    epoch: int,
    length_balanced: bool = False,
) -> Indices:
    """The pairs of one epoch, a pure function of its arguments, the same everywhere.

    No pair comes twice in an epoch. A problem with r right and w wrong rows gives
    min(max_pairs_per_problem, r·w) pairs, and as many other ones in the next epoch, until all r·w
    were drawn; then they come again in the same order. Problems are mixed.

    With `length_balanced`, a right row is only paired with the wrong ones that come next in length:
    the nearest on either side and one as long, or more of each where a problem has few right rows.
    In an epoch exactly as many pairs have the right row longer as have it shorter. Pairs that would
    break this are left out, in turns over the epochs, so a problem may give fewer.

    Returns:
        Rows `[pairs, 2]`: right, wrong. Equally many in every epoch.

    Raises:
        UserError: there are no pairs.
    """
    source = pair_source(metadata, candidates, max_pairs_per_problem, seed, length_balanced)
    items = np.random.default_rng([seed, epoch]).permutation(len(source))
    return source.groups(items, np.full(len(items), epoch))
