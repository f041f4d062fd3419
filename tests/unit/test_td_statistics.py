"""Statistics of TD errors and weights: right, additive, and never NaN for want of tokens."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.value_weighting.td_weighting import (
    TDStatsEMA,
    build_weights,
    compute_td_stats,
    compute_weight_stats,
    moments_mean_std,
    td_moments,
    td_stats,
    weight_stats,
    weight_sums,
)

NAN = float("nan")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    b=st.integers(0, 4),
    cut=st.integers(0, 4),
    seed=st.integers(0, 999),
    low=st.sampled_from([0.0, 0.1]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_statistics_are_those_of_the_tokens_and_add_up(b, cut, seed, low, share):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(b, 7, generator=g) < share
    errors = 3 * torch.randn(b, 7, generator=g, dtype=torch.float64)
    weights = build_weights(errors, mask, min_weight=low)
    errors = errors.masked_fill(~mask, NAN)
    for sums in (
        lambda rows: td_moments(errors[rows], mask[rows]),
        lambda rows: weight_sums(weights[rows], mask[rows], low, 5.0),
    ):
        parts = sums(slice(0, cut)) + sums(slice(cut, None))
        torch.testing.assert_close(parts, sums(slice(None)), rtol=1e-12, atol=1e-12)
    found, w, e = compute_weight_stats(weights, mask, low), weights[mask], errors[mask]
    assert found == weight_stats(weight_sums(weights, mask, low, 5.0))
    assert compute_td_stats(errors, mask) == td_stats(td_moments(errors, mask))
    if not len(w):
        td = compute_td_stats(errors, mask)
        assert all(map(math.isnan, [*found.values(), td["mean"], td["std"]]))
        assert td["count"] == 0
        return
    p = w / w.sum()
    expected = {
        "mean": w.mean(),
        "std": w.std(correction=0),
        "effective_sample_size": 1 / (len(p) * (p**2).sum()),
        "entropy": -p.xlogy(p).sum() / math.log(len(p)) if len(p) > 1 else 1.0,
        "clipped_low": (w <= low).double().mean(),
        "clipped_high": (w >= 5).double().mean(),
    }
    assert found == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-7)
    assert 0 < found["effective_sample_size"] <= 1
    assert 0 <= found["entropy"] <= 1
    td = {"mean": float(e.mean()), "std": float(e.std(correction=0)), "count": len(e)}
    assert compute_td_stats(errors, mask) == pytest.approx(td, abs=1e-7)


def test_weight_statistics_at_the_extremes():
    mask = torch.ones(1, 8)
    even = compute_weight_stats(torch.full((1, 8), 0.7), mask)
    assert (even["effective_sample_size"], even["entropy"]) == pytest.approx((1, 1))
    for n in range(1, 60):  # rounding takes neither above 1
        stats = compute_weight_stats(torch.full((1, n), 0.7, dtype=torch.float64), torch.ones(1, n))
        assert max(stats["effective_sample_size"], stats["entropy"]) <= 1
    one = compute_weight_stats(torch.eye(8)[:1], mask)
    assert (one["effective_sample_size"], one["entropy"]) == pytest.approx((1 / 8, 0))
    assert set(compute_weight_stats(mask * 0, mask).values()) == {0.0, 1.0}  # 1: clipped_low
    assert math.isnan(compute_weight_stats(mask * NAN, mask)["entropy"])


def test_running_statistics():
    ema, steps = TDStatsEMA(0.9), [torch.randn(1, n, dtype=torch.float64) for n in (6, 2, 9, 1, 4)]
    moments = [td_moments(step, torch.ones_like(step)) for step in steps]
    assert (float(ema.mean), float(ema.std)) == (0, 1)
    ema.update(moments[0])
    torch.testing.assert_close((ema.mean, ema.std), (steps[0].mean(), steps[0].std(correction=0)))
    for each in moments[1:]:
        ema.update(each)
    factors = [0.9**age for age in (4, 3, 2, 1, 0)]  # a step counts once, whatever its tokens
    first = sum(f * x.mean() for f, x in zip(factors, steps, strict=True)) / sum(factors)
    second = sum(f * (x**2).mean() for f, x in zip(factors, steps, strict=True)) / sum(factors)
    torch.testing.assert_close((ema.mean, ema.std), (first, (second - first**2).sqrt()))
    state = json.loads(json.dumps(ema.state_dict()))
    for broken in (torch.zeros(3), torch.tensor([1.0, NAN, 1.0]), torch.tensor([1, 1, math.inf])):
        ema.update(broken)
    assert ema.state_dict() == state
    resumed = TDStatsEMA(0.9)
    resumed.load_state_dict(state)
    for each in (ema, resumed):
        each.update(moments[0])
    assert ema.state_dict() == resumed.state_dict()
    assert moments_mean_std(torch.tensor([2, 2, 2 - 1e-9], dtype=torch.float64))[1] == 0
    with pytest.raises(ValueError, match="decay"):
        TDStatsEMA(1.0)


def test_sums_of_float32_are_kept_in_float64():
    """A million and 1/32: float32 would lose what is small beside what is large."""
    errors = torch.tensor([[1e6, 1 / 32, -1e6, 1 / 32]])
    moments = td_moments(errors, torch.ones(1, 4, dtype=torch.bool))
    assert moments.dtype == torch.float64
    assert moments.tolist() == [4, 1 / 16, 2e12 + 2 / 1024]


def test_weights_are_counted_as_clipped_at_the_default_bounds():
    mask = torch.ones(1, 8, dtype=torch.bool)
    weights = torch.tensor([[0.05, 0.1, 0.15, 1.0, 4.9, 5.0, 6.0, 7.0]])
    found = compute_weight_stats(weights, mask)
    assert (found["clipped_low"], found["clipped_high"]) == (2 / 8, 3 / 8)
