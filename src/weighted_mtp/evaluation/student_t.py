"""Student's t without scipy: intervals and tests of a mean over few seeds, and Holm's correction.

The distribution function is the regularised incomplete beta function, by the continued fraction of
Numerical Recipes (Press et al. 2007, §6.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_TINY, _PRECISION, _TERMS = 1e-300, 1e-15, 500


class TTest(NamedTuple):
    """A mean with its t-interval, and the two-sided test that it is 0.

    Attributes:
        mean: of the values.
        low, high: bounds of the interval; NaN for one value.
        p: two-sided; NaN for one value. Values that are all equal give 1 (all 0) or 0.
        n: how many values.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def t_test(values: npt.ArrayLike, confidence: float = 0.95) -> TTest:
    """Student's interval and test of the mean of independent values, one for each seed.

    Raises:
        ValueError: no value, one that is not finite, or a confidence outside (0, 1).
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"expected finite values in one dimension, got shape {x.shape}")
    mean, n = float(x.mean()), len(x)
    if n == 1:
        return TTest(mean, math.nan, math.nan, math.nan, 1)
    error = float(x.std(ddof=1)) / math.sqrt(n)
    reach = t_quantile((1 + confidence) / 2, n - 1) * error
    equal = 0.0 if mean else 1.0
    p = two_sided_p(mean / error, n - 1) if error else equal
    return TTest(mean, mean - reach, mean + reach, p, n)


def two_sided_p(t: float, degrees: float) -> float:
    """P(|T| ≥ |t|) for T with so many degrees of freedom."""
    return _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def t_quantile(probability: float, degrees: float) -> float:
    """The t below which T lies with a probability, by bisection.

    Raises:
        ValueError: a probability outside (0, 1).
    """
    if not 0 < probability < 1:
        raise ValueError(f"a probability must lie in (0, 1), got {probability}")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > tail:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if two_sided_p(middle, degrees) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979), in the order given. NaN stays NaN and is not
    counted."""
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) for 0 ≤ x ≤ 1."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log + a * math.log(x) + b * math.log1p(-x))
    if x > (a + 1) / (a + b + 2):  # there the fraction converges for the complement
        return 1 - front * _fraction(1 - x, b, a) / b
    return front * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    """Continued fraction of the incomplete beta function, by Lentz's method."""

    def bounded(z: float) -> float:
        return z if abs(z) > _TINY else _TINY

    c, d = 1.0, 1 / bounded(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / bounded(1 + numerator * d)
            c = bounded(1 + numerator / c)
            value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return value
