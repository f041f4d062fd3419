"""Bootstrap intervals: known cases, and coverage measured where the truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.evaluation import statistics
from weighted_mtp.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    hierarchical_bootstrap,
    paired_difference,
)

scores = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


def solved(count: int, rate: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < rate).astype(float)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def coverage(truth: float, make_interval, trials: int = 200) -> float:
    found = [make_interval(trial) for trial in range(trials)]
    return sum(x.low <= truth <= x.high for x in found) / trials


def test_reads_as_a_percentage():
    assert str(Interval(0.12, 0.0814, 0.1626)) == "12.0 % [8.1, 16.3]"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=scores, seed=st.integers(0, 9))
def test_an_interval_lies_within_the_scores_and_repeats(x, seed):
    result = bootstrap_interval(x, resamples=200, seed=seed)
    assert result == bootstrap_interval(x, resamples=200, seed=seed)
    assert result.mean == pytest.approx(np.mean(x))
    assert min(x) - 1e-9 <= result.low <= result.high <= max(x) + 1e-9
    for same_problems in (False, True):
        nested = hierarchical_bootstrap([x, x], 0.9, 200, seed, same_problems)
        assert nested == hierarchical_bootstrap([x, x], 0.9, 200, seed, same_problems)
        assert nested.mean == pytest.approx(np.mean(x))
        assert min(x) - 1e-9 <= nested.low <= nested.high <= max(x) + 1e-9


@pytest.mark.parametrize(("N", "rate"), [(164, 0.12), (500, 0.5), (2000, 0.9)])
def test_as_wide_as_the_normal_approximation(N, rate):
    x = np.arange(N) < rate * N
    result, spread = bootstrap_interval(x), x.std() / np.sqrt(N)
    assert result.low == pytest.approx(x.mean() - 1.96 * spread, abs=0.15 * spread + 0.5 / N)
    assert result.high == pytest.approx(x.mean() + 1.96 * spread, abs=0.15 * spread + 0.5 / N)
    assert width(bootstrap_interval(x, confidence=0.5)) < 0.4 * width(result)


@pytest.mark.parametrize("x", [[0.0, 1.0], [1.0, 0.0], [0.0, 0.5, 1.0]])
def test_every_score_can_be_drawn(x):
    assert bootstrap_interval(x) == Interval(0.5, 0.0, 1.0)


def test_covers_the_truth_as_often_as_it_says():
    def interval(trial: int) -> Interval:
        return bootstrap_interval(solved(200, 0.3, trial), resamples=500, seed=trial)

    assert coverage(0.3, interval) == pytest.approx(0.95, abs=0.04)


def test_chunks_change_nothing(monkeypatch):
    x, table = solved(50, 0.4), np.stack([solved(50, 0.4, seed) for seed in range(3)])

    def intervals() -> list[Interval]:
        nested = [hierarchical_bootstrap(table, same_problems=same) for same in (False, True)]
        return [bootstrap_interval(x), *nested]

    whole = intervals()
    monkeypatch.setattr(statistics, "_CHUNK", 1000)
    assert intervals() == whole


# --- several training seeds ----------------------------------------------------------------------


def test_one_seed_is_the_plain_bootstrap():
    x = solved(300, 0.4)
    plain = bootstrap_interval(x)
    for same_problems in (False, True):
        nested = hierarchical_bootstrap([x], same_problems=same_problems)
        assert nested.mean == plain.mean
        assert nested.low == pytest.approx(plain.low, abs=0.006)
        assert nested.high == pytest.approx(plain.high, abs=0.006)


def test_seeds_weigh_the_same_whatever_their_problems():
    result = hierarchical_bootstrap([[1.0, 1.0, 1.0, 1.0], [0.0]])
    assert result == Interval(0.5, 0.0, 1.0)


def test_seeds_that_differ_widen_the_interval():
    """Between seeds 0.3 ± 0.2: problems alone would claim far more."""
    arms = [solved(1000, rate, seed) for seed, rate in enumerate((0.1, 0.2, 0.3, 0.4, 0.5))]
    assert width(hierarchical_bootstrap(arms)) > 4 * width(bootstrap_interval(np.concatenate(arms)))


def test_the_same_problems_for_all_seeds_are_not_new_problems():
    """Problems that are either solved by every seed or by none: N of them, not M · N."""
    M, N = 8, 100

    def coverage_when(same_problems: bool) -> float:
        def interval(trial: int) -> Interval:
            table = np.tile(solved(N, 0.3, trial), (M, 1))
            return hierarchical_bootstrap(table, 0.95, 400, trial, same_problems)

        return coverage(0.3, interval)

    assert coverage_when(True) == pytest.approx(0.95, abs=0.04)
    assert coverage_when(False) < 0.7


# --- two arms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(400,), (4, 100)])
@pytest.mark.parametrize("same_problems", [False, True])
def test_pairing_removes_what_the_arms_share(shape, same_problems):
    """Arm a solves what b solves and a twentieth of the rest."""
    b = solved(400, 0.5).reshape(shape)
    a = np.maximum(b, solved(400, 0.05, seed=1).reshape(shape))
    result = paired_difference(a, b, same_problems=same_problems)
    assert result.mean == pytest.approx(a.mean() - b.mean())
    assert result.low > 0
    assert width(result) < 0.6 * width(bootstrap_interval(b.ravel()))
    back = paired_difference(b, a, same_problems=same_problems)
    assert (back.mean, back.low) == pytest.approx((-result.mean, -result.high))


def test_an_arm_does_not_differ_from_itself():
    x = np.stack([solved(20, 0.3, seed) for seed in range(3)])
    assert paired_difference(x, x) == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "finite scores"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "finite scores"),
        (lambda: bootstrap_interval([[1.0]]), "finite scores"),
        (lambda: bootstrap_interval([1.0], confidence=1.0), "confidence"),
        (lambda: bootstrap_interval([1.0], resamples=0), "resamples"),
        (lambda: hierarchical_bootstrap([]), "no training seed"),
        (lambda: hierarchical_bootstrap([[1.0], []]), "finite scores"),
        (lambda: hierarchical_bootstrap([[1], [1, 0]], same_problems=True), "do not share"),
        (lambda: paired_difference([1.0], [1.0, 0.0]), "one shape|of shape"),
        (lambda: paired_difference(1.0, 0.0), "of shape"),
    ],
)
def test_wrong_input_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
