"""Metrics of a value head: how well it separates right solutions from wrong ones.

A row is one solution, a value the head's estimate of its reward. A metric that is undefined (only
one class, no variance, no row) is None.

Letters: N rows, F fractions of a response.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Compute the probability that a right row scores higher than a wrong one; ties count half.

    Args:
        scores: `[N]`.
        labels: `[N]` bool or 0/1, 1 for right.

    Returns:
        In [0, 1], exact except for one division; None if a class is absent.

    Raises:
        ValueError: shapes differ, a score is not finite, or a label is not 0 or 1.
    """
    x, y = _labelled(scores, labels)
    return _share_of_pairs(x, y, np.zeros(len(x), dtype=np.int64))


def within_problem_auc(
    scores: npt.ArrayLike, labels: npt.ArrayLike, problems: Sequence[str]
) -> float | None:
    """Compute the AUC over pairs of rows of one problem: telling easy problems from hard ones does
    not raise it.

    Args:
        scores, labels: see `auc`.
        problems: N names.

    Returns:
        Share over all pairs of all problems; None if there is no pair.

    Raises:
        ValueError: see `auc`.
    """
    x, y = _labelled(scores, labels)
    groups = np.unique(np.asarray(list(problems), dtype=np.str_), return_inverse=True)[1]
    if groups.shape != x.shape:
        raise ValueError(f"{len(groups)} problems for {len(x)} scores")
    return _share_of_pairs(x, y, groups)


def explained_variance(values: npt.ArrayLike, rewards: npt.ArrayLike) -> float | None:
    """Compute 1 − Var(R − V) / Var(R): 1 is perfect, 0 no better than a constant.

    Args:
        values: `[N]` V.
        rewards: `[N]` R.

    Returns:
        At most 1, unbounded below; None if all rewards are equal.

    Raises:
        ValueError: shapes differ, or a number is not finite.
    """
    V, R = _checked(values, rewards)
    if not len(R) or R.min() == R.max():  # their variance may be rounded off 0
        return None
    return float(1.0 - np.var(R - V) / np.var(R))


def calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 10
) -> float | None:
    """Compute the expected calibration error, Σ rows/N · |predicted − observed| over bins of
    predicted probability (Naeini et al. 2015).

    Args:
        probabilities: `[N]`, clamped to [0, 1].
        labels: `[N]` bool or 0/1.
        bins: number of bins of equal width; a boundary belongs to the upper bin.

    Returns:
        In [0, 1]; None without rows.

    Raises:
        ValueError: `bins` < 1; or see `auc`.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    p, y = _labelled(probabilities, labels)
    p = p.clip(0.0, 1.0)
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, weights=p - y)  # of each bin: rows · (predicted − observed)
    return float(np.abs(gaps).sum() / len(p)) if len(p) else None


def critic_report(
    values: npt.ArrayLike,
    rewards: npt.ArrayLike,
    problems: Sequence[str],
    fractions: Sequence[float],
) -> dict[str, float]:
    """Compute all of these metrics after each fraction of a response.

    Args:
        values: `[N, F]`, the value after each fraction of the response.
        rewards: `[N]` 0 or 1.
        problems: N names.
        fractions: F shares of the response, such as 0.25.

    Returns:
        `auc_at_25`, `within_problem_auc_at_25`, `explained_variance_at_25`,
        `calibration_error_at_25` and so on (25 for the fraction 0.25), without undefined ones.

    Raises:
        ValueError: shapes differ, a value is not finite, or a reward is not 0 or 1.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(fractions):
        raise ValueError(f"values of shape {table.shape} for {len(fractions)} fractions")
    report = {}
    for fraction, column in zip(fractions, table.T, strict=True):
        found = {
            "auc": auc(column, rewards),
            "within_problem_auc": within_problem_auc(column, rewards, problems),
            "explained_variance": explained_variance(column, rewards),
            "calibration_error": calibration_error(column, rewards),
        }
        for name, value in found.items():
            if value is not None:
                report[f"{name}_at_{100 * fraction:g}"] = value
    return report


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Convert both to `[N]` float64."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"two arrays of one length are needed, got shapes {x.shape}, {y.shape}")
    broken = np.count_nonzero(~(np.isfinite(x) & np.isfinite(y)))
    if broken:
        raise ValueError(f"{broken} of {len(x)} rows are not finite")
    return x, y


def _labelled(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Check as `_checked` does, and that labels are 0 or 1."""
    x, y = _checked(scores, labels)
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    return x, y


def _share_of_pairs(scores: Floats, labels: Floats, groups: npt.NDArray[np.intp]) -> float | None:
    """Return the share of (right, wrong) pairs within a group whose right row scores higher.

    Counts are integers, so that nothing is rounded before the last division.
    """
    if not len(scores):
        return None
    order = np.lexsort((scores, groups))
    x, g, right = scores[order], groups[order], labels[order].astype(np.int64)
    # A cell is the rows of one group with one score; within a group, cells ascend by score.
    starts = np.flatnonzero(np.r_[True, (g[1:] != g[:-1]) | (x[1:] != x[:-1])])
    rights = np.add.reduceat(right, starts)
    wrongs = np.add.reduceat(1 - right, starts)
    group = g[starts]
    first, last = np.searchsorted(group, group), np.searchsorted(group, group, side="right") - 1
    before = np.cumsum(wrongs) - wrongs  # wrong rows in the cells before, of earlier groups too
    below = before - before[first]
    in_group = below[last] + wrongs[last]
    pairs = int((rights * in_group).sum())
    if not pairs:
        return None
    return int((rights * (2 * below + wrongs)).sum()) / (2 * pairs)
