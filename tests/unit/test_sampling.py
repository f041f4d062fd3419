"""The order of rows: exact counts, nothing unseen, the same wherever it is asked for."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.sampling_cases import (
    NAN,
    epoch_of,
    everything,
    make,
    numbered,
    order_of,
    plain,
    quick,
    sampling,
    seeds,
)

from weighted_mtp.core.config.sampling import DEFAULT_STAGES
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.sampling import bin_counts
from weighted_mtp.data.sampling.plan import apportion, as_written

BINS = {"easy": {"difficulty_number": {"below": 4}}, "hard": {"difficulty_number": {"at_least": 4}}}

# --- any strategy --------------------------------------------------------------------------------


@st.composite
def orders(draw):
    """A way to make one and the same `RowOrder` again and again, its rows, its total."""
    n = draw(st.integers(8, 25))
    numbers = draw(st.permutations([1, 5, 9] + [i % 11 + 1 for i in range(n - 3)]))
    correct = draw(st.permutations([True, False] + [i % 3 > 0 for i in range(n - 2)]))
    metadata = make(correct, number=list(map(float, numbers)), problem=[i % 2 for i in range(n)])
    weights = {"easy": draw(st.sampled_from([1, 2, 0.5])), "hard": draw(st.sampled_from([0, 1, 3]))}
    stages = [{"until": 0.35, "weights": {"easy": 1}}, {"until": 1.0, "weights": weights}]
    size = draw(st.none() | st.integers(max(7, n // 2), n))
    kinds = {
        "uniform": sampling(n_samples=draw(st.none() | st.integers(1, n))),
        "balanced": sampling(strategy="balanced"),
        "difficulty": sampling(strategy="difficulty", bins=BINS, weights=weights, n_samples=size),
        "curriculum": sampling(strategy="curriculum", bins=BINS, stages=stages, n_samples=size),
        "pairs": sampling(),
        "near pairs": sampling(length_balanced_pairs=True),
    }
    name = draw(st.sampled_from(sorted(kinds)))
    cap = 3 if "pairs" in name else None
    if cap:
        assume(len({(p, c) for p, c in zip(metadata.problem, correct, strict=True)}) == 4)
    seed, total = draw(seeds), draw(st.integers(1, 80))
    return lambda: order_of(metadata, kinds[name], seed, total, cap=cap), total


@quick
@given(case=orders(), position=st.integers(0, 60), count=st.integers(0, 40))
def test_any_stretch_is_that_of_the_uninterrupted_sequence(case, position, count):
    """Resumed anywhere, across epochs, asked out of order, by another process: the same groups."""
    fresh, _ = case
    straight = fresh().take(0, 100)
    order = fresh()
    order.take(90, 5)
    for start in (position, 0, position):
        assert order.take(start, count).tolist() == straight[start : start + count].tolist()
    assert fresh().take(position, count).tolist() == straight[position : position + count].tolist()
    assert straight.dtype == np.int64
    assert straight.shape == (100, order.group)


@quick
@given(case=orders(), groups=st.integers(0, 90))
def test_the_rows_used_are_those_taken(case, groups):
    fresh, _ = case
    used = fresh().used(groups)
    assert used.tolist() == sorted(set(fresh().take(0, groups).ravel().tolist()))


@quick
@given(case=orders(), world=st.integers(1, 4), per_rank=st.integers(1, 3), step=st.integers(0, 9))
def test_ranks_share_a_step_without_overlap(case, world, per_rank, step):
    """Every rank makes the order for itself and takes its share of the step."""
    fresh, _ = case
    batch = world * per_rank
    shares = [fresh().take(step * batch, batch)[rank::world] for rank in range(world)]
    assert {len(share) for share in shares} == {per_rank}
    whole = fresh().take(step * batch, batch)
    assert Counter(map(tuple, np.concatenate(shares).tolist())) == Counter(
        map(tuple, whole.tolist())
    )


def test_only_two_epochs_are_kept():
    order = order_of(plain(5))
    order.take(0, 100)
    assert len(order._epochs) == 2


@quick
@given(n=st.integers(1, 30), chosen=st.sets(st.integers(0, 29), min_size=1), seed=seeds)
def test_only_candidates_are_drawn(n, chosen, seed):
    order = order_of(plain(30), candidates=sorted(chosen), seed=seed)
    assert order.epoch_size == len(chosen)
    assert set(order.take(0, n)[:, 0].tolist()) <= chosen
    assert order.used(len(chosen)).tolist() == sorted(chosen)


def test_without_candidates_the_data_are_named():
    with pytest.raises(UserError, match=r"no row is left.*data\.train"):
        order_of(plain(3), candidates=[])


# --- uniform -------------------------------------------------------------------------------------


def test_the_recipe_of_the_uniform_order_is_pinned():
    """Runs of last year resume: this sequence never changes."""
    expected = np.array([4, 7, 9])[np.random.default_rng([3, 1]).permutation(3)]
    assert order_of(plain(10), seed=3, candidates=[4, 7, 9]).take(3, 3)[:, 0].tolist() == [
        *expected
    ]


@quick
@given(n=st.integers(1, 30), size=st.integers(1, 30), first=st.integers(0, 9), seed=seeds)
def test_a_subset_has_no_row_twice_and_leaves_none_unseen(n, size, first, seed):
    size = min(size, n)
    order = order_of(plain(n), sampling(n_samples=size), seed)
    epochs = [epoch_of(order, first + i) for i in range(math.ceil(n / size))]
    assert all(len(set(epoch)) == size for epoch in epochs)
    assert set().union(*epochs) == set(range(n))


def test_more_samples_than_rows_are_refused():
    with pytest.raises(UserError, match=r"data\.sampling\.n_samples 11 is more than the 10"):
        order_of(plain(10), sampling(n_samples=11))


def test_epochs_and_seeds_have_orders_of_their_own():
    for size in (None, 49):
        config = sampling(n_samples=size)
        drawn = [epoch_of(order_of(plain(50), config, s), e) for s in range(3) for e in range(3)]
        assert len({tuple(epoch) for epoch in drawn}) == 9


# --- balanced ------------------------------------------------------------------------------------


@quick
@given(right=st.integers(1, 20), wrong=st.integers(1, 20), first=st.integers(0, 5), seed=seeds)
def test_balanced_has_as_many_of_each_and_takes_turns(right, wrong, first, seed):
    metadata = make([True] * right + [False] * wrong)
    order = order_of(metadata, sampling(strategy="balanced"), seed)
    less, more = sorted((right, wrong))
    assert order.epoch_size == 2 * less
    epochs = [epoch_of(order, first + i) for i in range(math.ceil(more / less))]
    for epoch in epochs:
        assert len(set(epoch)) == 2 * less
        assert metadata.is_correct[epoch].sum() == less
    assert set().union(*epochs) == set(range(right + wrong))


@quick
@given(
    right=st.integers(5, 20),
    wrong=st.integers(5, 20),
    fraction=st.sampled_from([0.2, 0.3, 0.6]),
    size=st.none() | st.integers(4, 6),
)
def test_the_correct_fraction_is_exact(right, wrong, fraction, size):
    metadata = make([True] * right + [False] * wrong)
    config = sampling(strategy="balanced", correct_fraction=fraction, n_samples=size)
    order = order_of(metadata, config)
    for epoch in range(3):
        rows = epoch_of(order, epoch)
        correct = int(metadata.is_correct[rows].sum())
        assert abs(correct - Fraction(str(fraction)) * len(rows)) <= Fraction(1, 2)
        assert len(set(rows)) == len(rows)
        if size is None:  # one side is used up
            assert correct == right or len(rows) - correct == wrong


@pytest.mark.parametrize(
    ("correct", "settings_", "message"),
    [
        ([True] * 4, {}, r"no incorrect row is left.*objective\.rows=all"),
        ([False] * 4, {}, r"no correct row is left"),
        ([True, False, False], {"n_samples": 4}, r"n_samples 4 takes 2 correct.*lower it to 2"),
        ([True, False], {"correct_fraction": 0.9}, r"correct_fraction 0.9 gives 1 correct and 0"),
        ([True, False], {"n_samples": 1}, r"and both are needed.*raise data\.sampling\.n_samples"),
    ],
)
def test_what_cannot_be_balanced_is_named(correct, settings_, message):
    with pytest.raises(UserError, match=message):
        order_of(make(correct), sampling(strategy="balanced", **settings_))


# --- difficulty ----------------------------------------------------------------------------------


@quick
@given(
    shares=st.lists(st.sampled_from([0, 0.1, 0.29, 0.3, 1, 7]), min_size=1, max_size=5),
    count=st.integers(0, 1000),
)
def test_shares_are_apportioned_by_largest_remainders(shares, count):
    assume(any(shares))
    exact = [as_written(share) * count / sum(map(as_written, shares)) for share in shares]
    counts = apportion([as_written(share) for share in shares], count)
    assert sum(counts) == count
    assert all(abs(c - e) < 1 for c, e in zip(counts, exact, strict=True))
    up = [e - math.floor(e) for c, e in zip(counts, exact, strict=True) if c > e]
    down = [e - math.floor(e) for c, e in zip(counts, exact, strict=True) if c <= e]
    assert not up or not down or min(up) >= max((d for d in down if d), default=0)


def test_equal_remainders_go_to_the_first():
    assert apportion([Fraction(1)] * 4, 6) == [2, 2, 1, 1]
    assert apportion([as_written(0.1), as_written(0.2)], 30) == [10, 20]


@quick
@given(
    easy=st.integers(1, 12),
    hard=st.integers(1, 12),
    size=st.integers(4, 60),
    weights=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=seeds,
)
def test_bins_have_their_counts_and_rows_take_turns(easy, hard, size, weights, seed):
    metadata = numbered([1] * easy + [7] * hard)
    config = sampling(
        strategy="difficulty",
        bins=BINS,
        n_samples=size,
        weights=dict(zip(BINS, weights, strict=True)),
    )
    order = order_of(metadata, config, seed, total=10**6)
    expected = apportion([Fraction(w) for w in weights], size)
    drawn: Counter[int] = Counter()
    for epoch in range(4):
        rows = Counter(epoch_of(order, epoch))
        assert [sum(rows[i] for i in range(easy)), sum(rows.values())] == [expected[0], size]
        drawn += rows
        for counts in (rows, drawn):  # within an epoch, and over all so far
            for members in (range(easy), range(easy, easy + hard)):
                each = [counts[i] for i in members]
                assert max(each) - min(each) <= 1


LETTERS = ["A", "B", None, "C", "B", "A"]


def test_labels_are_categories_and_other_needs_a_weight():
    metadata = make([True] * 6, labels=LETTERS)
    bins = {"easy": {"labels": ["A"]}, "hard": {"labels": ["C", "Z"]}}
    config = sampling(strategy="difficulty", bins=bins)
    assert bin_counts(metadata, everything(metadata), config) == {"easy": 2, "hard": 1, "other": 3}
    assert order_of(metadata, config).used(99).tolist() == [0, 3, 5]
    config = sampling(strategy="difficulty", bins=bins, weights={"hard": 1, "other": 1})
    assert order_of(metadata, config).used(99).tolist() == [1, 2, 3, 4]


def test_numeric_labels_may_be_written_as_numbers():
    metadata = make([True] * 3, labels=["1", "2", "10"])
    config = sampling(strategy="difficulty", bins={"easy": {"labels": [1, 2]}})
    assert bin_counts(metadata, everything(metadata), config) == {"easy": 2, "other": 1}


def test_ranges_are_half_open_and_rows_without_a_number_fit_none():
    metadata = make([True] * 5, rating=[800.0, 1200.0, NAN, 1600.0, 3500.0])
    bins = {
        "low": {"cf_rating": {"below": 1200}},
        "middle": {"cf_rating": {"at_least": 1200, "below": 1600}},
        "high": {"cf_rating": {"at_least": 1600}},
    }
    config = sampling(strategy="difficulty", bins=bins)
    counts = bin_counts(metadata, everything(metadata), config)
    assert counts == {"low": 1, "middle": 1, "high": 2, "other": 1}
    assert bin_counts(metadata, np.array([0, 2]), config)["other"] == 1


def test_only_rows_that_fit_a_weighted_bin_make_an_epoch():
    metadata = numbered([1, 2, 3, 7, 8])
    config = sampling(strategy="difficulty", bins=BINS, weights={"easy": 1})
    assert order_of(metadata, config).epoch_size == 3


@pytest.mark.parametrize(
    ("bins", "weights", "message"),
    [
        ({"top": {"labels": ["Z"]}}, None, r"bins\.top .*none of the 6 rows.*are: A, B, C;"),
        (
            {"top": {"difficulty_number": {"at_least": 12}}},
            None,
            r"bins\.top .*difficulty_number goes from 1 to 6",
        ),
        ({"top": {"cf_rating": {"below": 900}}}, None, r"bins\.top .*none has a cf_rating"),
        (
            {"all": {"difficulty_number": {}}},
            {"all": 1, "other": 1},
            r"bin other a weight, but every row fits",
        ),
        (
            {"a": {"labels": ["A"]}, "b": {"difficulty_number": {"below": 2}}},
            None,
            r"bins a and b overlap: row 0 fits both",
        ),
        (
            {"a": {"labels": ["A"]}, "b": {"labels": ["B"]}},
            {"a": 0.01, "b": 1},
            r"bin a comes to no row in an epoch of 4; set data\.sampling\.n_samples to 101",
        ),
    ],
)
def test_bins_that_the_rows_do_not_fill_are_named(bins, weights, message):
    metadata = make([True] * 6, labels=LETTERS, number=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    with pytest.raises(UserError, match=message) as caught:
        order_of(metadata, sampling(strategy="difficulty", bins=bins, weights=weights))
    assert "\n" not in str(caught.value)


# --- curriculum ----------------------------------------------------------------------------------


@quick
@given(
    total=st.integers(1, 120),
    size=st.none() | st.integers(8, 30),
    until=st.sampled_from([0.3, 0.35, 0.5, 0.7]),
    rows=st.integers(2, 20),
    seed=seeds,
)
def test_stages_begin_and_end_at_their_row(total, size, until, rows, seed):
    """Also within an epoch; each piece of a stage in an epoch has exact counts."""
    metadata = numbered([1] * rows + [7] * rows)
    stages = [
        {"until": until, "weights": {"easy": 1}},
        {"until": 1.0, "weights": {"easy": 1, "hard": 3}},
    ]
    config = sampling(strategy="curriculum", bins=BINS, stages=stages, n_samples=size)
    order = order_of(metadata, config, seed, total)
    drawn = order.take(0, total + order.epoch_size)[:, 0]
    hard = drawn >= rows
    border = sum(p < as_written(until) * total for p in range(total))
    assert not hard[:border].any()
    for epoch in range(total // order.epoch_size + 1):
        ends = [epoch * order.epoch_size, (epoch + 1) * order.epoch_size]
        start, stop = max(ends[0], border), min(ends[1], total)
        if start < stop:
            expected = apportion([Fraction(1), Fraction(3)], stop - start)
            assert hard[start:stop].sum() == expected[1]
    counts = Counter(drawn.tolist())
    for members in (range(rows), range(rows, 2 * rows)):
        walked = [Counter(drawn[: order.epoch_size].tolist())[i] for i in members]
        assert max(walked) - min(walked) <= 1
    assert set(counts) <= set(range(2 * rows))


def test_the_default_curriculum_moves_from_low_to_high():
    """The documented stages, on the thirds of eleven difficulties."""
    metadata = numbered([i % 11 + 1 for i in range(1100)])
    config = sampling(strategy="curriculum")
    counts = bin_counts(metadata, everything(metadata), config)
    assert counts == {"low": 400, "medium": 300, "high": 400, "other": 0}
    drawn = metadata.difficulty_number[order_of(metadata, config, total=1000).take(0, 1000)[:, 0]]
    borders = [0, 300, 700, 1000]
    for stage, start, stop in zip(DEFAULT_STAGES, borders, borders[1:], strict=False):
        part = drawn[start:stop]
        shares = [(part <= 4).mean(), ((part > 4) & (part < 8)).mean(), (part >= 8).mean()]
        assert shares == pytest.approx(list(stage.weights.values()))


@quick
@given(st.lists(st.integers(1, 9), min_size=3, max_size=40).filter(lambda v: len(set(v)) > 2))
def test_thirds_are_never_empty_and_keep_equal_values_together(values):
    for metadata in (numbered(values), make([True] * len(values), rating=list(map(float, values)))):
        config = sampling(strategy="difficulty")
        counts = bin_counts(metadata, everything(metadata), config)
        assert min(counts["low"], counts["medium"], counts["high"]) > 0
        assert counts["other"] == 0
        ordered = sorted(values)
        assert ordered[counts["low"] - 1] < ordered[counts["low"]]
        assert ordered[-counts["high"] - 1] < ordered[-counts["high"]]


def test_thirds_are_of_what_more_rows_have():
    metadata = make([True] * 7, number=[1.0, 2.0, 3.0, NAN, NAN, NAN, NAN],
                    rating=[NAN, NAN, NAN, 900.0, 1000.0, 1100.0, 1200.0])  # fmt: skip
    counts = bin_counts(metadata, everything(metadata), sampling(strategy="curriculum"))
    assert counts == {"low": 1, "medium": 2, "high": 1, "other": 3}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            make([True] * 2, labels=["A", "B"]),
            r"bins is missing.*no numbers.*labels there are: A, B",
        ),
        (numbered([1, 2, 2]), r"2 different values of difficulty_number"),
    ],
)
def test_without_numbers_bins_must_be_named(metadata, message):
    with pytest.raises(UserError, match=message):
        order_of(metadata, sampling(strategy="curriculum"))
