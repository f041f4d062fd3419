"""Problems that have right and wrong solutions.

Letters: P such problems, r and w right and wrong rows of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.rows.metadata import Indices, Metadata

_SHUFFLE = 3  # third word of the seed: apart from those of other draws


@dataclass(frozen=True)
class Problems:
    """The candidates of the problems that have both kinds, problem by problem.

    Attributes:
        right, wrong: rows, those of one problem side by side.
        right_start, wrong_start: `[P]` where a problem's begin.
        r, w: `[P]` how many it has.
    """

    right: Indices
    wrong: Indices
    right_start: Indices
    wrong_start: Indices
    r: Indices
    w: Indices

    @staticmethod
    def of(metadata: Metadata, candidates: Indices, seed: int) -> Problems:
        """Rows of a problem in an order drawn by seed.

        Raises:
            UserError: no problem has both kinds.
        """
        rng = np.random.default_rng([seed, 0, _SHUFFLE])
        shuffled = candidates[rng.permutation(len(candidates))]
        correct = metadata.is_correct[shuffled]
        right, wrong = shuffled[correct], shuffled[~correct]
        ids = int(metadata.problem.max(initial=-1)) + 1
        right_count = np.bincount(metadata.problem[right], minlength=ids)
        wrong_count = np.bincount(metadata.problem[wrong], minlength=ids)
        both = (right_count > 0) & (wrong_count > 0)
        if not both.any():
            raise UserError(
                "no task_id has both a correct and an incorrect row; pairs need both (micro tasks: "
                "data.micro.incorrect_per_problem=1)"
            )
        right, wrong = (side[both[metadata.problem[side]]] for side in (right, wrong))
        r, w = right_count[both].astype(np.int64), wrong_count[both].astype(np.int64)
        return Problems(
            right=right[np.argsort(metadata.problem[right], kind="stable")],
            wrong=wrong[np.argsort(metadata.problem[wrong], kind="stable")],
            right_start=starts(r),
            wrong_start=starts(w),
            r=r,
            w=w,
        )


def starts(counts: Indices) -> Indices:
    """Where each of consecutive runs of these lengths begins."""
    return np.cumsum(counts) - counts
