"""Rho-1 keeps exactly the tokens a plain loop would keep."""

import math
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from weighted_mtp.losses import shift_labels
from weighted_mtp.value_weighting.rho1_weighting import (
    align_reference,
    compute_mtp_selective_weights,
    compute_rho1_stats,
    kept_count,
    rho1_stats,
    rho1_sums,
)

MODES = ("signed", "absolute", "difficult")
NAN, INF = math.nan, math.inf
shares = st.one_of(st.sampled_from([0.6, 0.7, 1 / 3, 1.0, 1]), st.floats(1e-9, 1.0))


class Case(NamedTuple):
    policy: Tensor
    reference: Tensor
    valid: Tensor


def make_case(b=2, s=6, n=3, seed=0, levels=5, filled=0.7) -> Case:
    """Losses on a grid of few `levels`, so that many tie; NaN wherever not valid."""
    g = torch.Generator().manual_seed(seed)
    valid = torch.rand(b, s, n, generator=g) < filled
    policy, reference = (torch.randint(levels, (b, s, n), generator=g).float() for _ in range(2))
    return Case(policy.where(valid, NAN), reference.where(valid, NAN), valid)


def naive(case: Case, k_percent, mode, first_head_always=False) -> Tensor:
    """The definition: list the valid tokens of a head, sort them, keep the first ones."""
    weights = torch.zeros(case.valid.shape)
    B, S, n = weights.shape
    for k in range(n):
        tokens = [(b, t, k) for b in range(B) for t in range(S) if case.valid[b, t, k]]

        def score(at):
            policy, reference = float(case.policy[at]), float(case.reference[at])
            signed = policy - reference
            return {"signed": signed, "absolute": abs(signed), "difficult": policy}[mode]

        kept = math.ceil(Fraction(str(k_percent)) * len(tokens))
        if k == 0 and first_head_always:
            kept = len(tokens)
        for at in sorted(tokens, key=score, reverse=True)[:kept]:  # sorted is stable
            weights[at] = 1
    return weights


@st.composite
def cases(draw) -> Case:
    return make_case(
        b=draw(st.integers(0, 3)),
        s=draw(st.integers(1, 8)),
        n=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 999)),
        levels=draw(st.sampled_from([1, 3, 1000])),
        filled=draw(st.sampled_from([0.0, 0.2, 0.8, 1.0])),
    )


# --- how many ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "k_percent", "kept"),
    [
        (10, 0.7, 7),
        (10, 0.1, 1),
        (20, 0.55, 11),
        (5, 0.6, 3),
        (1, 0.01, 1),
        (0, 0.6, 0),
        (7, 1, 7),
        (3, 1e-300, 1),
    ],
)
def test_known_counts(count, k_percent, kept):
    assert kept_count(count, k_percent) == kept
    assert int(kept_count(torch.tensor(count), k_percent)) == kept


@settings(max_examples=200, deadline=None, derandomize=True)
@given(counts=st.lists(st.integers(0, 9 * 10**12), max_size=5), k_percent=shares)
@example(counts=[3 * 10**12], k_percent=1 / 3)  # the product of numerator and count has 96 bits
def test_counts_are_exact_in_tensors_too(counts, k_percent):
    exact = [math.ceil(Fraction(str(k_percent)) * N) for N in counts]
    assert [kept_count(N, k_percent) for N in counts] == exact
    for dtype in (torch.int64, torch.float64):
        result = kept_count(torch.tensor(counts, dtype=dtype), k_percent)
        assert result.dtype == dtype
        assert result.tolist() == exact


def test_counts_keep_shape_and_type():
    result = kept_count(torch.tensor([[10, 20]], dtype=torch.int32), 0.123456789)
    assert (result.tolist(), result.dtype) == ([[2, 3]], torch.int32)


@pytest.mark.parametrize("k_percent", [0, -0.1, 1.0001, 60, NAN, INF])
@pytest.mark.parametrize("count", [5, torch.tensor([5])])
def test_a_share_outside_0_and_1_is_an_error(k_percent, count):
    with pytest.raises(ValueError, match="k_percent"):
        kept_count(count, k_percent)


# --- which ---------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), k_percent=shares, mode=st.sampled_from(MODES), first=st.booleans())
def test_equals_the_naive_loop(case, k_percent, mode, first):
    weights = compute_mtp_selective_weights(*case, k_percent, mode, first)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, naive(case, k_percent, mode, first))
    if not first:
        counts = kept_count(case.valid.sum((0, 1)), k_percent)
        assert torch.equal(weights.sum((0, 1)).long(), counts)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases(), extra=st.integers(0, 5), seed=st.integers(0, 99), mode=st.sampled_from(MODES))
def test_padding_changes_nothing(case, extra, seed, mode):
    """Columns without a valid token, put anywhere, and rows cut otherwise: the choice stays."""
    B, S, n = case.valid.shape
    plain = compute_mtp_selective_weights(*case, mode=mode)
    columns = torch.randperm(S + extra, generator=torch.Generator().manual_seed(seed))[:S]
    columns = columns.sort().values
    wide = Case(*(torch.full((B, S + extra, n), fill) for fill in (NAN, INF)), None)
    wide = wide._replace(valid=torch.zeros(B, S + extra, n, dtype=torch.bool))
    for narrow, padded in zip(case, wide, strict=True):
        padded[:, columns] = narrow
    assert torch.equal(compute_mtp_selective_weights(*wide, mode=mode)[:, columns], plain)
    one_row = Case(*(x.reshape(1, B * S, n) for x in case))
    result = compute_mtp_selective_weights(*one_row, mode=mode)
    assert torch.equal(result.view(B, S, n), plain)


def test_ties_go_to_the_earlier_position():
    ones = torch.ones(2, 3, 1)
    weights = compute_mtp_selective_weights(ones, ones, ones.bool(), 0.6)
    assert weights[..., 0].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_modes_differ_as_they_should():
    policy, reference = torch.tensor([[4.0, 3, 1, 0]]), torch.tensor([[4.0, 1, 5, 1]])
    kept = {}
    for mode in MODES:
        args = policy[..., None], reference[..., None], torch.ones(1, 4, 1, dtype=torch.bool)
        kept[mode] = compute_mtp_selective_weights(*args, 0.25, mode)[0, :, 0].tolist()
    assert kept == {"signed": [0, 1, 0, 0], "absolute": [0, 0, 1, 0], "difficult": [1, 0, 0, 0]}


def test_infinite_and_nan_losses_are_ranked_and_never_replaced_by_padding():
    policy = torch.tensor([[-INF, 1.0, INF, -INF, NAN, INF]])[..., None]
    valid = torch.tensor([[False, True, True, True, True, False]])[..., None]
    order = [[0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
    for kept, expected in enumerate(order, start=1):
        weights = compute_mtp_selective_weights(policy, None, valid, kept / 4, "difficult")
        assert weights[0, :, 0].tolist() == [0, *expected, 0]


def test_reduced_precision_is_compared_in_float32():
    policy = torch.tensor([[[256.0], [256.0]]], dtype=torch.bfloat16)
    reference = torch.tensor([[[0.25], [0.125]]], dtype=torch.bfloat16)  # 256 − 0.25 is no bf16
    weights = compute_mtp_selective_weights(policy, reference, torch.ones(1, 2, 1).bool(), 0.5)
    assert weights.flatten().tolist() == [0, 1]


def test_no_gradient_and_inputs_untouched():
    case = make_case()
    copies = [x.clone() for x in case]
    policy = case.policy.requires_grad_()
    weights = compute_mtp_selective_weights(policy, case.reference, case.valid)
    assert not weights.requires_grad
    assert not rho1_sums(weights, policy, case.reference, case.valid).requires_grad
    for x, copy in zip(case, copies, strict=True):
        torch.testing.assert_close(x.detach(), copy, equal_nan=True)


def test_more_tokens_than_quantile_takes():
    """`torch.quantile` refuses 2^24 elements and more."""
    N = 2**24 + 1
    policy = torch.arange(N, dtype=torch.float32).remainder_(1000).view(1, N, 1)
    valid = torch.ones(1, 1, 1, dtype=torch.bool).expand(1, N, 1)
    weights = compute_mtp_selective_weights(policy, None, valid, 0.001, "difficult")
    assert int(weights.sum(dtype=torch.float64)) == math.ceil(Fraction(N, 1000)) == 16778
    assert torch.equal(policy[weights > 0].unique(), torch.tensor([998.0, 999.0]))


@pytest.mark.parametrize("mode", ["signed", "absolute", "quantile"])
def test_a_missing_reference_or_unknown_mode_is_an_error(mode):
    case = make_case()
    with pytest.raises(ValueError, match=mode):
        compute_mtp_selective_weights(case.policy, None, case.valid, mode=mode)


# --- alignment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, 6, 9])
def test_the_reference_is_aligned_as_the_targets_are(length):
    labels = torch.arange(1, 13).view(2, 6)
    targets = shift_labels(labels, 3, length)
    assert torch.equal(align_reference(labels.float(), 3, length), targets.clamp(min=0).float())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 4), h=st.integers(1, 5), length=st.integers(1, 9), wide=st.integers(1, 9))
def test_head_k_is_compared_with_the_references_head_k(n, h, length, wide):
    """By a loop: the reference's head k on token t + k, its first head where it has no head k."""
    reference = torch.rand(2, wide, h, dtype=torch.float64)
    aligned = align_reference(reference, n, length)
    assert aligned.shape == (2, length, n)
    for b in range(2):
        for t in range(length):
            for k in range(1, n + 1):
                column = k - 1 if k <= h else 0
                expected = reference[b, t + k, column] if t + k < wide else 0
                assert aligned[b, t, k - 1] == expected
    if h == 1:
        assert torch.equal(align_reference(reference[:, :, 0], n, length), aligned)


# --- statistics ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases(), cut=st.integers(0, 3))
def test_sums_add_up_over_pieces(case, cut):
    weights = compute_mtp_selective_weights(*case)
    parts = [(weights[rows], *(x[rows] for x in case)) for rows in (slice(cut), slice(cut, None))]
    pieces = rho1_sums(*parts[0]) + rho1_sums(*parts[1])
    whole = rho1_sums(weights, *case)
    assert whole.shape == (case.valid.shape[2], 5)
    assert whole.dtype == torch.float64
    assert torch.equal(pieces, whole)
    stats = rho1_stats(whole)
    for head, (valid, kept) in enumerate(whole[:, :2].tolist(), 1):  # NaN only without a token
        assert math.isnan(stats[f"mean_excess_head_{head}"]) == (not valid)
        assert math.isnan(stats[f"mean_ce_kept_head_{head}"]) == (not kept)


def test_known_statistics():
    policy = torch.tensor([[[4.0, 9.0], [1.0, 9.0], [NAN, 9.0]]])
    reference = torch.tensor([[[1.0, 9.0], [3.0, NAN], [NAN, 9.0]]])
    valid = torch.tensor([[[True, False], [True, False], [False, False]]])
    weights = compute_mtp_selective_weights(policy, reference, valid, 0.5)
    head_1 = {"kept_share": 0.5, "mean_excess": 0.5, "mean_excess_kept": 3, "mean_ce_kept": 4}
    expected = head_1 | {f"{name}_head_1": value for name, value in head_1.items()}
    expected |= {f"{name}_head_2": math.nan for name in head_1}
    assert compute_rho1_stats(weights, policy, reference, valid) == expected
    everything = compute_rho1_stats(torch.ones(1, 3, 2), policy, reference, valid)
    assert (everything["kept_share"], everything["mean_ce_kept"]) == (1, 2.5)


def test_without_a_reference_the_excess_is_the_loss():
    case = make_case()
    weights = compute_mtp_selective_weights(case.policy, None, case.valid, mode="difficult")
    stats = compute_rho1_stats(weights, case.policy, None, case.valid)
    assert stats["mean_excess_kept"] == stats["mean_ce_kept"] > stats["mean_excess"]
