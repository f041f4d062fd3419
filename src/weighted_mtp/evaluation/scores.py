"""Figures of an evaluation: pass@k with intervals, and what became of the programs.

Letters: N problems; n samples of a problem, c of them right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.evaluation.passk import pass_at_k
from weighted_mtp.evaluation.statistics import Interval, bootstrap_interval

USUAL_K = (1, 10, 100)


class Tally(NamedTuple):
    """Samples of one problem: n in all, c of them right."""

    n: int
    c: int


@dataclass(frozen=True)
class Scores:
    """What came of an evaluation.

    Attributes:
        pass_at: for every k the mean over problems of the unbiased pass@k, with the 95 %
            interval of a bootstrap over problems.
        standard_error: of the same means, over problems; None for a single problem.
        statuses: how many programs ended how ("passed", "failed", …).
        problems: by task_id, in order.
    """

    pass_at: dict[int, Interval]
    standard_error: dict[int, float | None]
    statuses: dict[str, int]
    problems: dict[str, Tally]


def parse_ks(text: str | None, n_samples: int) -> tuple[int, ...]:
    """`"1,10,100"` as numbers; None is those of `USUAL_K` that the samples allow.

    Raises:
        UserError: not a list of numbers from 1 to `n_samples`.
    """
    if text is None:
        return tuple(k for k in USUAL_K if k <= n_samples)
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--k {text!r}: give numbers with commas between, such as 1,10") from None
    if ks[0] < 1:
        raise UserError(f"--k {text!r}: k must be at least 1")
    check_ks(ks, n_samples)
    return tuple(ks)


def check_ks(ks: Sequence[int], n_samples: int) -> None:
    """Refuse a k above the number of samples.

    Raises:
        UserError: there is one.
    """
    if ks and max(ks) > n_samples:
        raise UserError(
            f"--k {max(ks)} needs as many samples of every problem, there are {n_samples}: raise "
            "--n-samples or lower --k"
        )


def tally(passed: Iterable[tuple[str, bool]]) -> dict[str, Tally]:
    """Count (task_id, passed) by problem."""
    found: dict[str, Tally] = {}
    for task_id, right in passed:
        n, c = found.get(task_id, Tally(0, 0))
        found[task_id] = Tally(n + 1, c + right)
    return found


def score(problems: Mapping[str, Tally], ks: Sequence[int], statuses: Iterable[str] = ()) -> Scores:
    """pass@k over problems.

    Args:
        problems: at least one.
        ks: none above the n of any problem.
    """
    pass_at: dict[int, Interval] = {}
    errors: dict[int, float | None] = {}
    for k in ks:
        by_problem = np.array([pass_at_k(n, c, k) for n, c in problems.values()])
        pass_at[k] = bootstrap_interval(by_problem)
        several = len(by_problem) > 1
        errors[k] = by_problem.std(ddof=1) / math.sqrt(len(by_problem)) if several else None
    return Scores(pass_at, errors, dict(Counter(statuses).most_common()), dict(problems))
