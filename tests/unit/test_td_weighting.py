"""TD weighting is the plain recursion, token by token, in everything but speed."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weighted_mtp.value_weighting.td_weighting import (
    TDStatsEMA,
    build_weights,
    compute_advantages,
    compute_td_errors,
    compute_td_targets,
    compute_value_loss,
    compute_weight_stats,
    discounted_sum,
    moments_mean_std,
    renormalise,
    scale_rows,
    schedule,
    td_moments,
    weight_sums,
    whiten,
)

NAN = float("nan")
MASKS = ("holes", "left padding", "right padding", "one token", "all prompt", "all response")
unit = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


class Case(NamedTuple):
    values: Tensor
    rewards: Tensor
    mask: Tensor
    gamma: float = 1.0
    lam: float = 0.95
    truncated: Tensor | None = None

    def errors(self) -> Tensor:
        return compute_td_errors(*self[:4], self.truncated)


def naive(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """δ, A and targets by the definition, from the last token to the first."""
    B, S = case.mask.shape
    out = [torch.zeros(B, S, dtype=torch.float64) for _ in range(3)]
    for b in range(B):
        V, m, R = case.values[b, :, 0].tolist(), case.mask[b].tolist(), float(case.rewards[b])
        last = max((j for j in range(S) if m[j]), default=None)
        cut = case.truncated is not None and bool(case.truncated[b])
        running = 0.0
        for j in reversed(range(S)):
            before = V[j - 1] if j > 0 else 0.0
            if not m[j] or (j == last and cut):
                error = 0.0
            else:
                error = (R if j == last else case.gamma * V[j]) - before
            running = error + case.gamma * case.lam * running
            if m[j]:
                out[0][b, j], out[1][b, j] = error, running
                if j > 0:
                    out[2][b, j - 1] = before + running
    return out[0], out[1], out[2]


def needed(mask: Tensor) -> Tensor:
    """Where a value is asked for: before every response token, and on all but the last."""
    later = mask.flip(1).long().cumsum(1).flip(1) > 1  # this response token and one more
    before = torch.zeros_like(mask)
    before[:, :-1] = mask[:, 1:]
    return before | (mask & later)


def make_mask(kind: str, b: int, s: int, g: torch.Generator) -> Tensor:
    mask = torch.zeros(b, s, dtype=torch.bool)
    if kind == "holes":
        return torch.rand(b, s, generator=g) < 0.6
    for row in mask:
        start, end = sorted(torch.randint(s + 1, (2,), generator=g).tolist())
        if kind == "left padding":
            row[start:] = True
        elif kind == "right padding":
            row[start:end] = True
        elif kind == "one token":
            row[min(start, s - 1)] = True
        elif kind == "all response":
            row[:] = True
    return mask


@st.composite
def cases(draw) -> Case:
    b, s = draw(st.integers(0, 4)), draw(st.integers(1, 17))
    g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    mask = make_mask(draw(st.sampled_from(MASKS)), b, s, g)
    values = torch.randn(b, s, dtype=torch.float64, generator=g).masked_fill(~needed(mask), NAN)
    rewards = torch.tensor([draw(unit) for _ in range(b)], dtype=torch.float64)
    truncated = torch.rand(b, generator=g) < 0.3 if draw(st.booleans()) else None
    if truncated is not None:
        rewards[truncated] = NAN
    return Case(values[:, :, None], rewards, mask, draw(unit), draw(unit), truncated)


def response(b=3, s=12, start=4, seed=0) -> Case:
    """Rows whose response is `start` to the end; values and rewards in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(b, s, 1, dtype=torch.float64, generator=g)
    mask = torch.arange(s).expand(b, s) >= start
    return Case(values, torch.arange(b, dtype=torch.float64) % 2, mask)


# --- mistakes a forerunner made ------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_reward_reaches_every_token_that_lambda_lets_it(lam):
    case = response()._replace(lam=lam)
    more = compute_advantages(*case._replace(rewards=case.rewards + 1)) - compute_advantages(*case)
    distance = 11 - torch.arange(12.0, dtype=torch.float64)
    torch.testing.assert_close(more, torch.where(case.mask, lam**distance, 0.0))


def test_terminal_error_is_the_reward_less_the_state_before():
    values = torch.tensor([[0.9, 0.2, 0.5, 0.7]])[:, :, None]
    mask = torch.tensor([[False, False, True, True]])
    errors = compute_td_errors(values, torch.tensor([1.0]), mask, gamma=0.9)
    torch.testing.assert_close(errors, torch.tensor([[0, 0, 0.9 * 0.5 - 0.2, 1.0 - 0.5]]))
    wrong = compute_td_errors(
        values.index_fill(1, torch.tensor([3]), NAN), torch.ones(1), mask, 0.9
    )
    assert torch.equal(errors, wrong)  # V_T is not read


def test_lambda_1_is_the_limit_and_its_target_the_reward():
    case = response()
    for function in (compute_advantages, compute_td_targets):
        limit, near = (function(*case._replace(lam=x)) for x in (1.0, 1 - 1e-9))
        torch.testing.assert_close(limit, near, rtol=0, atol=1e-7)
    states = case.mask.roll(-1, 1) & (torch.arange(12) < 11)
    expected = torch.where(states, case.rewards[:, None], 0.0)[:, :, None]
    torch.testing.assert_close(compute_td_targets(*case._replace(lam=1.0)), expected)


def test_results_are_detached():
    case = response()
    values = case.values.clone().requires_grad_()
    errors = torch.randn(3, 12, requires_grad=True)
    one, mask = errors.sum(), case.mask
    results = [f(values, *case[1:3]) for f in (compute_td_errors, compute_td_targets)]
    results += [compute_advantages(values, *case[1:3]), build_weights(errors, mask)]
    results += [discounted_sum(errors, 0.9), whiten(errors, mask, one, one), td_moments(one, mask)]
    results += [renormalise(errors, mask, one), weight_sums(errors, mask, 0.1, 5.0)]
    assert not any(x.requires_grad for x in results)


def test_truncated_rows_get_no_reward():
    case = response()._replace(truncated=torch.tensor([False, True, False]))
    other = case._replace(rewards=case.rewards + 5)
    same = [torch.equal(a, b) for a, b in zip(case.errors(), other.errors(), strict=True)]
    assert same == [False, True, False]
    assert case.errors()[1, -1] == 0
    torch.testing.assert_close(case.errors()[:, :-1], response().errors()[:, :-1])
    targets = compute_td_targets(*case)
    assert targets[1, -2] == case.values[1, -2]  # its own value: nothing is learned


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_and_means_are_exact_in_low_precision(dtype):
    ones = torch.ones(3, 4099, dtype=dtype)  # bfloat16 cannot count past 256
    n = 3 * 4099
    assert td_moments(ones, ones).tolist() == [n, n, n]
    assert weight_sums(ones, ones, 1, 1).tolist() == [n, n, n, 0, n, n]
    assert torch.equal(renormalise(2 * ones, ones), ones.float())
    for name, bound in (("clipped_low", 0.1), ("clipped_high", 0.3)):  # as the weights round them
        assert compute_weight_stats(ones.fill_(bound), ones, 0.1, 0.3)[name] == 1


# --- equal to the definition ---------------------------------------------------------------------


@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=cases())
def test_equals_the_plain_recursion(case):
    errors, advantages, targets = naive(case)
    results = case.errors(), compute_advantages(*case), compute_td_targets(*case)[:, :, 0]
    for value, expected in zip(results, (errors, advantages, targets), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    plain = compute_advantages(*case._replace(lam=0.0))
    torch.testing.assert_close(plain, errors, rtol=0, atol=0)
    weights = build_weights(advantages, case.mask)
    expected = advantages.div(0.9).exp().clamp(0.1, 5.0) * case.mask
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(s=st.integers(0, 70), discount=unit, seed=st.integers(0, 99))
def test_discounted_sum(s, discount, seed):
    errors = torch.randn(2, s, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    before, exact = errors.clone(), errors.clone()
    for j in reversed(range(s - 1)):
        exact[:, j] += discount * exact[:, j + 1]
    torch.testing.assert_close(discounted_sum(errors, discount), exact, rtol=1e-10, atol=1e-10)
    assert torch.equal(errors, before)


def test_steps_grow_with_the_logarithm_and_nothing_is_read_back():
    """On the meta device `.item()`, or a size that depends on data, would raise."""

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))

    def operations(s: int) -> int:
        values, mask = torch.zeros(4, s, 1, device="meta"), torch.zeros(4, s, device="meta")
        rewards, ema = torch.zeros(4, device="meta"), TDStatsEMA()
        with Count() as count:
            advantages = compute_advantages(values, rewards, mask, 1.0, 0.9, rewards)
            targets = compute_td_targets(values, rewards, mask)
            moments = td_moments(advantages, mask)
            errors = whiten(advantages, mask, *moments_mean_std(moments))
            ema.update(moments)
            weights = renormalise(build_weights(errors, mask), mask)
            weight_sums(weights, mask, 0.1, 5.0)
            compute_value_loss(values, targets, mask, 0.2, 1.0)
        return count.n

    per_doubling = operations(64) - operations(32)
    assert operations(4096) - operations(64) == 6 * per_doubling
    assert per_doubling <= 2 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_number_formats(dtype):
    case = response(s=2048, start=1)._replace(lam=1.0)
    rounded = case.values.to(dtype)
    exact = compute_td_targets(rounded.double(), *case[1:])
    result = compute_td_targets(rounded, *case[1:])
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2e-6)
    assert build_weights(rounded[:, :, 0], case.mask).dtype == torch.float32
    assert compute_value_loss(rounded, result, case.mask).dtype == torch.float32


def test_shapes_and_settings_are_checked():
    values, rewards, mask, *_ = response()
    for bad in ((values[:, :, 0], rewards, mask), (values, rewards[:, None], mask)):
        with pytest.raises(ValueError, match="for a mask"):
            compute_td_errors(*bad)
    with pytest.raises(ValueError, match="for a mask"):
        compute_value_loss(values, values[:1], mask)
    with pytest.raises(ValueError, match="discount"):
        compute_advantages(values, rewards, mask, gamma=1.1)
    for name in ("value_clip", "huber_delta"):
        with pytest.raises(ValueError, match=name):
            compute_value_loss(values, values, mask, **{name: 0.0})


# --- the value loss ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases(), clip=st.none() | st.floats(0.1, 3), delta=st.none() | st.floats(0.1, 3))
def test_value_loss_and_its_gradient(case, clip, delta):
    values = case.values.clone().requires_grad_()
    targets = compute_td_targets(*case)
    loss = compute_value_loss(values, targets, case.mask, clip, delta)
    loss.sum().backward()
    states = case.mask.roll(-1, 1)
    states[:, -1] = False
    distance = (case.values - targets)[:, :, 0]
    distance = distance.clamp(-(clip or math.inf), clip or math.inf)
    far = distance.abs() > (delta or math.inf)
    line = (delta or 0.0) * (2 * distance.abs() - (delta or 0.0))
    slope = 2 * distance.clamp(-(delta or math.inf), delta or math.inf)
    expected = torch.where(states, torch.where(far, line, distance**2), 0.0)
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(values.grad[:, :, 0], torch.where(states, slope, 0.0))


def test_value_loss_passes_no_gradient_to_its_targets():
    values, _, mask, *_ = response()
    targets = torch.rand_like(values).requires_grad_()
    compute_value_loss(values.clone().requires_grad_(), targets, mask, 0.2).sum().backward()
    assert targets.grad is None


# --- weights -------------------------------------------------------------------------------------


def test_weights_are_bounded_whatever_the_advantages():
    errors = torch.tensor([[1e38, -1e38, math.inf, -math.inf, 0.0, NAN]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    weights = build_weights(errors, mask, beta=1e-3, min_weight=0.0)
    assert weights.tolist() == [[5, 0, 5, 0, 1, 0]]


@pytest.mark.parametrize(
    "bad",
    [
        *({"beta": x} for x in (0.0, -1.0, NAN)),
        {"min_weight": -0.1},
        *({"max_weight": x} for x in (0.05, math.inf, NAN)),
    ],
)
def test_bad_weight_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        build_weights(torch.zeros(1, 1), torch.ones(1, 1), **bad)


def test_whitened_and_renormalised():
    case = response()
    errors = case.errors()
    white = whiten(errors, case.mask, *moments_mean_std(td_moments(errors, case.mask)))
    kept = white[case.mask]
    assert abs(kept.mean()) < 1e-12
    assert abs(kept.std(correction=0) - 1) < 1e-6
    assert not white[~case.mask].any()
    constant = torch.full((3, 12), 0.1)
    flat = whiten(constant, case.mask, *moments_mean_std(td_moments(constant, case.mask)))
    assert flat.abs().max() < 1e-6
    assert not whiten(constant, case.mask, constant[0, 0], 0.0).any()
    weights = build_weights(errors, case.mask)
    assert abs(renormalise(weights, case.mask)[case.mask].mean() - 1) < 1e-12
    assert torch.equal(renormalise(weights, case.mask, 2.0), weights / 2)
    nothing = torch.zeros_like(case.mask)
    assert torch.equal(renormalise(weights * NAN, nothing), torch.zeros_like(weights))
    assert torch.equal(renormalise(weights * 0, case.mask), torch.zeros_like(weights))


def test_rows_scaled_to_means_of_their_own():
    case = response()
    weights = build_weights(case.errors(), case.mask)
    means = torch.tensor([1.0, 0.1, 0.0])[: len(weights)]
    scaled = scale_rows(weights, case.mask, means)
    for before, after, mask, mean in zip(weights, scaled, case.mask, means, strict=True):
        assert float(after[mask].mean()) == pytest.approx(float(mean), abs=1e-7)
        ratio = after[mask] / before[mask]
        assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-6)  # the shape is kept
        assert not after[~mask].any()
    nothing = torch.zeros_like(case.mask)
    assert torch.equal(scale_rows(weights * NAN, nothing, means), torch.zeros_like(weights))
    assert torch.equal(scale_rows(weights * 0, case.mask, means), torch.zeros_like(weights))


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_schedule(shape):
    at = [schedule(x, 0.9, 0.3, 0.2, shape) for x in (-1.0, 0.0, 0.2, 0.6, 1.0, 2.0)]
    assert at == pytest.approx([0.9, 0.9, 0.9, 0.6, 0.3, 0.3], abs=1e-12)
    path = [schedule(x / 50, 0.9, 0.3, 0.2, shape) for x in range(51)]
    assert path == sorted(path, reverse=True)
    assert [schedule(x, 0.9, 0.3, 1.0, shape) for x in (0.0, 1.0, 2.0)] == [0.9] * 3
    quarter = schedule(0.25, 0.0, 1.0, 0.0, shape)
    assert quarter == pytest.approx(0.25 if shape == "linear" else (1 - math.sqrt(0.5)) / 2)
    for bad in ((0.5, 1.0, 0.0, 1.1, shape), (0.5, 1.0, 0.0, 0.0, "step")):
        with pytest.raises(ValueError, match=r"hold|shape"):
            schedule(*bad)
