"""Figures of an evaluation: pass@k with intervals, and how the programs ended.

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
from weighted_mtp.evaluation.statistics import Interval, bootstrap_interval

USUAL_K = (1, 10, 100)


class Tally(NamedTuple):
    """Samples of one problem: n in all, c of them right."""

    n: int
    c: int


@dataclass(frozen=True)
class Scores:
    """Figures of an evaluation.

    Attributes:
        pass_at: for every k the mean over problems of the unbiased pass@k, with the 95 %
            interval of a bootstrap over problems.
        standard_error: of these means, over problems; None for a single problem.
        statuses: number of programs by status ("passed", "failed", …).
        problems: by task_id, in order.
    """

    pass_at: dict[int, Interval]
    standard_error: dict[int, float | None]
    statuses: dict[str, int]
    problems: dict[str, Tally]

    @property
    def pass_at_1(self) -> float | None:
        """Mean over problems, whichever k were asked for; None without problems."""
        found = [pass_at_k(n, c, 1) for n, c in self.problems.values()]
        return sum(found) / len(found) if found else None


def parse_ks(text: str | None, n_samples: int | None = None) -> tuple[int, ...]:
    """Parse `"1,10,100"`; None is those of `USUAL_K` that the samples allow.

    Args:
        n_samples: samples of every problem; None if not known yet.

    Raises:
        UserError: not a list of numbers from 1 to `n_samples`.
    """
    if text is None:
        return tuple(k for k in USUAL_K if n_samples is None or k <= n_samples)
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--k {text!r}: give numbers with commas between, such as 1,10") from None
    if ks[0] < 1:
        raise UserError(f"--k {text!r}: k must be at least 1")
    if n_samples is not None:
        check_ks(ks, n_samples)
    return tuple(ks)


def check_ks(ks: Sequence[int], n_samples: int) -> None:
    """Check that every k has enough samples.

    Raises:
        UserError: one is above the number of samples.
    """
    if ks and max(ks) > n_samples:
        raise UserError(
            f"--k {max(ks)} needs as many samples of every problem, there are {n_samples}: raise "
            "--n-samples or lower --k"
        )


def tally(passed: Iterable[tuple[str, bool]]) -> dict[str, Tally]:
    """Count pairs of (task_id, passed) by problem."""
    found: dict[str, Tally] = {}
    for task_id, right in passed:
        n, c = found.get(task_id, Tally(0, 0))
        found[task_id] = Tally(n + 1, c + right)
    return found


def score(problems: Mapping[str, Tally], ks: Sequence[int], statuses: Iterable[str] = ()) -> Scores:
    """Compute pass@k over problems.

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


def mean_by_family(problems: Mapping[str, Tally]) -> dict[str, tuple[float, int]]:
    """Return pass@1 and number of problems of every family of micro tasks
    (task_id: micro/FAMILY/NUMBER)."""
    families: dict[str, list[float]] = {}
    for task_id, (n, c) in problems.items():
        families.setdefault(task_id.split("/")[1], []).append(pass_at_k(n, c, 1))
    return {family: (sum(s) / len(s), len(s)) for family, s in sorted(families.items())}


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that at least one of k samples passes, when c of n did:
    1 − C(n − c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Raises:
        ValueError: not 0 ≤ c ≤ n, or not 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}")
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))
