"""Confidence intervals of mean scores: percentile bootstrap over problems and training seeds.

A score is the result of one problem, such as 1 for solved or its pass@k. An interval estimates how
the mean would vary with other problems (and seeds) of the same kind. It knows only the sample:
scores that are all equal give an interval of zero width, and two or three seeds one that is too
narrow.

Letters: R resamples, N problems, M training seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_CHUNK = 2**20  # random numbers drawn at a time, which bounds memory


class Interval(NamedTuple):
    """A mean and its confidence interval, in the unit of the scores.

    Attributes:
        mean: of the scores themselves.
        low, high: bounds.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Format as percentages: "12.0 % [8.1, 16.3]"."""
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def bootstrap_interval(
    scores: npt.ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean over problems (Efron & Tibshirani 1993, §13.3).

    Args:
        scores: `[N]`, N ≥ 1.
        confidence: of the interval, in (0, 1).
        resamples: R ≥ 1.
        seed: of the resampling; the result depends on nothing else.

    Raises:
        ValueError: an argument is out of range.
    """
    x = _problems(scores)
    means = _resampled_means(x, resamples, np.random.default_rng(seed))
    return _interval(float(x.mean()), means, confidence)


def hierarchical_bootstrap(
    scores: Floats | Sequence[npt.ArrayLike],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    same_problems: bool = False,
) -> Interval:
    """Percentile bootstrap over training seeds and, within them, over problems.

    Every seed has the same weight, however many problems it was evaluated on.

    Args:
        scores: `[M, N]`, or M arrays of any lengths ≥ 1.
        confidence, resamples, seed: see `bootstrap_interval`.
        same_problems: False draws problems separately for every seed drawn, for seeds with
            problems of their own. True draws them once for all seeds of a resample (Owen 2007,
            "The pigeonhole bootstrap"), for `[M, N]` whose columns are the same problems: False
            would count M · N problems instead of N there, and give too narrow an interval.

    Raises:
        ValueError: see `bootstrap_interval`; or lengths differ with `same_problems`.
    """
    arrays = [_problems(row) for row in scores]
    if not arrays:
        raise ValueError("no training seed")
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(arrays), size=(resamples, len(arrays)))  # [R, M]
    if same_problems:
        if len({len(x) for x in arrays}) > 1:
            raise ValueError("seeds with different numbers of problems do not share problems")
        means = _crossed_means(np.stack(arrays), picked, rng)
    else:
        by_seed = np.empty(picked.shape)
        for i, x in enumerate(arrays):
            here = picked == i
            by_seed[here] = _resampled_means(x, int(here.sum()), rng)
        means = by_seed.mean(axis=1)
    return _interval(float(np.mean([x.mean() for x in arrays])), means, confidence)


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    same_problems: bool = False,
) -> Interval:
    """Interval of mean(a) − mean(b) for two arms evaluated on the same problems (and seeds).

    Both arms are resampled by the same draw, so that shared variation cancels.

    Args:
        a, b: `[N]`, or `[M, N]`, of one shape.
        confidence, resamples, seed, same_problems: see `hierarchical_bootstrap`; the last has
            no effect on `[N]`.

    Raises:
        ValueError: shapes differ or have another rank; or see `bootstrap_interval`.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim not in (1, 2):
        raise ValueError(f"two arms of shape [N] or [M, N], got {left.shape} and {right.shape}")
    if left.ndim == 1:
        return bootstrap_interval(left - right, confidence, resamples, seed)
    return hierarchical_bootstrap(left - right, confidence, resamples, seed, same_problems)


def _problems(scores: npt.ArrayLike) -> Floats:
    """Convert to `[N]` float64, N ≥ 1, all finite."""
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(
            f"expected finite scores in one dimension, at least one; got shape {x.shape}"
        )
    return x


def _resampled_means(x: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Return `[R]` means of N numbers drawn from `[N]` with replacement."""
    means = np.empty(resamples)
    rows = max(1, _CHUNK // len(x))
    for start in range(0, resamples, rows):
        part = means[start : start + rows]
        part[:] = x[rng.integers(len(x), size=(len(part), len(x)))].mean(axis=1)
    return means


def _crossed_means(x: Floats, picked: npt.NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Return `[R]` means of `[M, N]` over the picked seeds `[R, M]` and N problems, drawn once."""
    M, N = x.shape
    means = np.empty(len(picked))
    rows = max(1, _CHUNK // N)
    for start in range(0, len(picked), rows):
        part = means[start : start + rows]
        times = (picked[start : start + rows, :, None] == np.arange(M)).sum(axis=1)  # [rows, M]
        drawn = rng.integers(N, size=(len(part), N))
        part[:] = np.take_along_axis(times @ x / M, drawn, axis=1).mean(axis=1)
    return means


def _interval(mean: float, means: Floats, confidence: float) -> Interval:
    """Take the middle `confidence` of the resampled means."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    if not means.size:
        raise ValueError("resamples must be at least 1")
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))
