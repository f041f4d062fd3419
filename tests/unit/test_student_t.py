"""Student's t and Holm's correction against tables and hand computations."""

import math

import numpy as np
import pytest

from weighted_mtp.evaluation.student_t import holm, t_quantile, t_test, two_sided_p


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423), (1000, 1.9623)],
)
def test_quantiles_of_the_tables(degrees, quantile):
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=5e-5)
    assert t_quantile(0.025, degrees) == pytest.approx(-quantile, abs=5e-5)
    assert two_sided_p(quantile, degrees) == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 7.0, -2.5])
def test_distributions_with_a_closed_form(t):
    """One degree of freedom is Cauchy's distribution; two have an algebraic one."""
    cauchy = 1 - 2 * math.atan(abs(t)) / math.pi
    assert two_sided_p(t, 1) == pytest.approx(cauchy, abs=1e-12)
    assert two_sided_p(t, 2) == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t), abs=1e-12)


def test_a_test_by_hand():
    """Mean 2, standard deviation 1, so the standard error is 1/√3 and t = 2√3."""
    found = t_test([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert found.low == pytest.approx(4 - found.high)
    assert found.p == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14))
    assert found.n == 3


def test_the_interval_excludes_zero_just_when_p_is_small():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = t_test(rng.normal(0.5, 1, 8))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_few_or_equal_values():
    assert math.isnan(t_test([1.0]).p)
    assert t_test([0.0, 0.0]).p == 1
    assert t_test([2.0, 2.0]) == (2, 2, 2, 0, 2)
    for bad in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="finite values"):
            t_test(bad)
    with pytest.raises(ValueError, match="probability"):
        t_quantile(1.0, 3)


def test_holm_by_hand():
    """Sorted: 0.01·4, 0.02·3, 0.03·2, 0.5; each at least the one before."""
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    corrected = holm([math.nan, 0.04])
    assert math.isnan(corrected[0])
    assert corrected[1] == 0.04
    assert holm([]) == []
