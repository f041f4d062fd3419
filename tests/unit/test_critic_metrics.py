"""Critic metrics against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.evaluation.critic_metrics import (
    auc,
    calibration_error,
    critic_report,
    explained_variance,
    within_problem_auc,
)

rows = st.lists(
    st.tuples(st.integers(-2, 2), st.integers(0, 1), st.sampled_from(["a", "b", "", "b2"])),
    max_size=14,
)


def naive_share(table, same_problem: bool) -> float | None:
    """Every (right, wrong) pair, one by one."""
    wins = [
        (s > t) + (s == t) / 2
        for s, right, p in table
        for t, other, q in table
        if right and not other and (p == q or not same_problem)
    ]
    return sum(wins) / len(wins) if wins else None


def columns(table):
    return [list(column) for column in zip(*table, strict=True)] or [[], [], []]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(table=rows)
def test_auc_counts_pairs(table):
    scores, labels, problems = columns(table)
    assert auc(scores, labels) == naive_share(table, same_problem=False)
    assert within_problem_auc(scores, labels, problems) == naive_share(table, same_problem=True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(table=rows, seed=st.integers(0, 99))
def test_auc_ignores_order_and_scale_and_mirrors(table, seed):
    scores, labels, problems = columns(table)
    order = np.random.default_rng(seed).permutation(len(table))
    mixed = np.exp(np.array(scores, dtype=float))[order]
    y, names = np.array(labels, dtype=bool)[order], [problems[i] for i in order]
    assert auc(mixed, y) == auc(scores, labels)
    assert within_problem_auc(mixed, y, names) == within_problem_auc(scores, labels, problems)
    value = auc(scores, labels)
    assert value is None or auc([-s for s in scores], labels) == pytest.approx(1 - value, abs=1e-15)


def test_knowing_the_problem_alone_is_no_skill_within_it():
    """Easy problem: three right of four; hard one: one of four. The score is the problem's rate."""
    labels = [1, 1, 1, 0, 1, 0, 0, 0]
    scores, problems = [0.75] * 4 + [0.25] * 4, ["easy"] * 4 + ["hard"] * 4
    assert auc(scores, labels) == 0.75
    assert within_problem_auc(scores, labels, problems) == 0.5


def test_no_pair_is_none():
    assert auc([1, 2], [1, 1]) is None
    assert auc([], []) is None
    assert within_problem_auc([1, 2], [1, 0], ["a", "b"]) is None


def test_many_rows():
    """Pairs are counted in integers of 64 bits, in time N · log N."""
    g = np.random.default_rng(0)
    labels = g.random(300_000) < 0.5
    scores = g.normal(size=300_000) + labels
    expected = 0.5 * (1 + math.erf(0.5))  # P(N(1, 2) > 0)
    assert auc(scores, labels) == pytest.approx(expected, abs=0.005)


def test_explained_variance_known_values():
    R = np.array([0, 0, 1, 1])
    assert explained_variance(R, R) == 1
    assert explained_variance([0.3] * 4, R) == pytest.approx(0, abs=1e-15)
    assert explained_variance(R + 5.0, R) == 1  # an offset is no variance
    assert explained_variance(1 - R, R) == -3
    assert explained_variance([1, 2], [0.1, 0.1]) is None
    assert explained_variance([1] * 3, [0.1] * 3) is None
    assert explained_variance([], []) is None


def test_calibration_known_values():
    error = calibration_error([0.1, 0.1, 0.9, 0.9, 7.0], [0, 1, 1, 1, 0], bins=2)
    assert error == pytest.approx((2 * 0.4 + 3 * (2.8 / 3 - 2 / 3)) / 5)  # 7 counts as 1
    assert calibration_error([-3.0, 0.0, 1.0], [0, 0, 1]) == 0
    assert calibration_error([], []) is None
    for i in range(1, 10):  # a boundary belongs to the upper bin
        error = calibration_error([i / 10 - 0.05, i / 10], [0, 1])
        assert error == pytest.approx((i / 10 - 0.05 + 1 - i / 10) / 2)
    assert calibration_error([0.95, 1.0], [1, 0]) == pytest.approx((1.95 - 1) / 2)  # but 1


def test_a_calibrated_critic_has_next_to_no_error():
    g = np.random.default_rng(0)
    p = g.random(200_000)
    labels = g.random(200_000) < p
    assert calibration_error(p, labels) < 0.01
    assert calibration_error(p**2, labels) == pytest.approx(1 / 6, abs=0.01)


def test_report():
    values = torch.tensor([[0.5, 1.0], [0.5, 0.0], [0.5, 1.0], [0.5, 0.0]])
    report = critic_report(values, torch.tensor([1, 0, 1, 0]), ["a", "a", "b", "b"], [0.25, 1.0])
    assert report == {
        "auc_at_25": 0.5,
        "within_problem_auc_at_25": 0.5,
        "explained_variance_at_25": 0,
        "calibration_error_at_25": 0,
        "auc_at_100": 1,
        "within_problem_auc_at_100": 1,
        "explained_variance_at_100": 1,
        "calibration_error_at_100": 0,
    }


def test_the_report_leaves_out_what_cannot_be_told():
    values = np.full((3, 1), 0.75)
    assert critic_report(values, [1, 1, 1], "abc", [0.5]) == {"calibration_error_at_50": 0.25}
    assert critic_report(np.zeros((0, 1)), [], [], [0.5]) == {}
    names = critic_report(values, [1, 0, 1], "abc", [0.29])
    assert set(names) == {"auc_at_29", "explained_variance_at_29", "calibration_error_at_29"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc([1, 2], [1]), "one length"),
        (lambda: auc([[1, 2]], [[1, 0]]), "one length"),
        (lambda: auc([1, math.nan], [1, 0]), "1 of 2 rows"),
        (lambda: auc([1, 2], [1, 0.5]), "0 or 1"),
        (lambda: within_problem_auc([1, 2], [1, 0], ["a"]), "1 problems for 2"),
        (lambda: explained_variance([math.inf, 0], [1, 0]), "1 of 2 rows"),
        (lambda: calibration_error([0.5], [1], bins=0), "bins"),
        (lambda: critic_report(np.zeros((3, 2)), [1, 0, 1], "abc", [0.5]), "1 fractions"),
    ],
)
def test_wrong_input_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
