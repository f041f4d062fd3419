"""Pairs of a right and a wrong row: unique, capped, in turns, and length gives nothing away."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.sampling_cases import everything, make, order_of, quick, sampling, seeds

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.sampling import draw_pairs


@st.composite
def problems(draw, longest=6):
    """Rows of a few problems, some with one kind only; lengths often equal."""
    rows = [
        (problem, correct, draw(st.integers(1, longest)))
        for problem in range(draw(st.integers(1, 4)))
        for correct, count in ((True, draw(st.integers(0, 6))), (False, draw(st.integers(0, 6))))
        for _ in range(count)
    ]
    rows = draw(st.permutations(rows))
    metadata = make(
        [row[1] for row in rows],
        problem=[row[0] for row in rows],
        length=[row[2] for row in rows],
    )
    assume(rows and any(possible(metadata, everything(metadata)).values()))
    return metadata


def possible(metadata, candidates) -> dict[int, set[tuple[int, int]]]:
    """All pairs of each problem, by the plainest loop."""
    pairs: dict[int, set[tuple[int, int]]] = {int(metadata.problem[i]): set() for i in candidates}
    for i, j in product(candidates.tolist(), repeat=2):
        same = metadata.problem[i] == metadata.problem[j]
        if same and metadata.is_correct[i] and not metadata.is_correct[j]:
            pairs[int(metadata.problem[i])].add((i, j))
    return pairs


def drawn(metadata, cap, seed, epoch, length_balanced=False, candidates=None):
    chosen = everything(metadata) if candidates is None else candidates
    return list(
        map(tuple, draw_pairs(metadata, chosen, cap, seed, epoch, length_balanced).tolist())
    )


def of_problem(metadata, pairs, problem):
    return {pair for pair in pairs if metadata.problem[pair[0]] == problem}


@quick
@given(metadata=problems(), cap=st.integers(1, 9), seed=seeds, first=st.integers(0, 4))
def test_pairs_are_unique_capped_and_take_turns(metadata, cap, seed, first):
    for problem, there_are in possible(metadata, everything(metadata)).items():
        if not there_are:
            continue
        each = min(cap, len(there_are))
        epochs = range(first, first + math.ceil(len(there_are) / each))
        seen: list[tuple[int, int]] = []
        for epoch in epochs:
            pairs = drawn(metadata, cap, seed, epoch)
            assert len(set(pairs)) == len(pairs)
            own = of_problem(metadata, pairs, problem)
            assert own <= there_are
            assert len(own) == each
            seen += own
        assert set(seen) == there_are  # all came before any came again
        counts = Counter(seen)
        assert sum(n > 1 for n in counts.values()) == each * len(epochs) - len(there_are)


@quick
@given(metadata=problems(), cap=st.integers(1, 9), seed=seeds, data=st.data())
def test_pairs_are_of_candidates_alone(metadata, cap, seed, data):
    chosen = data.draw(st.sets(st.sampled_from(range(len(metadata))), min_size=1))
    candidates = np.array(sorted(chosen))
    there_are = set().union(*possible(metadata, candidates).values())
    if not there_are:
        with pytest.raises(UserError, match="no task_id has both"):
            drawn(metadata, cap, seed, 0, candidates=candidates)
        return
    assert set(drawn(metadata, cap, seed, 0, candidates=candidates)) <= there_are


def test_lengths_are_balanced_only_if_asked_for():
    """Of one problem whose right rows are all longer, no pair would be left."""
    metadata = make([True, True, False], problem=[0] * 3, length=[9, 8, 1])
    assert len(draw_pairs(metadata, everything(metadata), 4, 0, 0)) == 2
    with pytest.raises(UserError, match="length_balanced_pairs leaves no pair"):
        draw_pairs(metadata, everything(metadata), 4, 0, 0, length_balanced=True)


def test_a_draw_spreads_over_the_rows():
    """300 × 300 pairs of one problem, four at a time: every row comes as soon as it can."""
    metadata = make([True] * 300 + [False] * 300, problem=[0] * 600)
    pairs = np.concatenate([draw_pairs(metadata, everything(metadata), 4, 0, e) for e in range(75)])
    assert len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == 300


def test_problems_are_mixed_and_differently_each_epoch():
    metadata = make([True, False] * 50, problem=np.arange(100) // 2)
    orders = [drawn(metadata, 4, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert len({frozenset(order) for order in orders}) == 1


def sign_of(metadata, pair) -> int:
    """1 where the right row is the longer one."""
    return int(np.sign(metadata.length[pair[0]] - metadata.length[pair[1]]))


# --- length --------------------------------------------------------------------------------------


@quick
@given(metadata=problems(), cap=st.integers(1, 9), seed=seeds, first=st.integers(0, 9))
def test_the_right_row_is_longer_as_often_as_the_wrong_one(metadata, cap, seed, first):
    there_are = possible(metadata, everything(metadata))
    signs = {sign_of(metadata, pair) for pairs in there_are.values() for pair in pairs}
    a_single_pair = cap == 1 and sum(map(bool, there_are.values())) == 1 and 0 not in signs
    if a_single_pair or signs in ({1}, {-1}):
        always = {(1,): "longer", (-1,): "shorter"}.get(tuple(signs), "(longer|shorter)")
        with pytest.raises(UserError, match=rf"length_balanced_pairs leaves no pair.*{always}"):
            drawn(metadata, cap, seed, first, length_balanced=True)
        return
    epochs = [drawn(metadata, cap, seed, first + i, length_balanced=True) for i in range(3)]
    assert len({len(pairs) for pairs in epochs}) == 1
    for pairs in epochs:
        assert pairs
        assert len(set(pairs)) == len(pairs)
        counts = Counter(sign_of(metadata, pair) for pair in pairs)
        assert counts[1] == counts[-1]
        for problem, allowed in there_are.items():
            own = of_problem(metadata, pairs, problem)
            assert own <= allowed
            assert len(own) <= cap


def test_all_pairs_are_drawn_where_they_balance():
    lengths = [5, 9, 4, 8, 6]  # right 5 and 9; wrong 4, 8 and 6
    metadata = make([True, True, False, False, False], problem=[0] * 5, length=lengths)
    for epoch in range(4):
        assert len(drawn(metadata, 4, 0, epoch, length_balanced=True)) == 4


def test_the_surplus_takes_turns():
    """Four problems where the right row is longer, one where it is shorter: two pairs an epoch,
    and the four come one after the other."""
    lengths = [5, 1] * 4 + [1, 5]
    metadata = make([True, False] * 5, problem=np.arange(10) // 2, length=lengths)
    epochs = [drawn(metadata, 4, 0, epoch, length_balanced=True) for epoch in range(4)]
    assert all(len(pairs) == 2 and (8, 9) in pairs for pairs in epochs)
    assert set().union(*epochs) == {(i, i + 1) for i in range(0, 10, 2)}


def test_a_problem_that_could_go_either_way_makes_up_for_others():
    """One pair a problem: the ten with both kinds of pair go against the ten with one."""
    lengths = [5, 1, 1] * 10 + [5, 1, 9] * 10
    metadata = make([True, False, False] * 20, problem=np.arange(60) // 3, length=lengths)
    pairs = drawn(metadata, 1, 0, 0, length_balanced=True)
    assert len(pairs) == 20


def test_pairs_are_of_similar_length():
    """Of 100 × 100 pairs with lengths in the thousands, those drawn are neighbours."""
    length = np.random.default_rng(0).integers(1, 10_000, 200)
    metadata = make([True] * 100 + [False] * 100, problem=[0] * 200, length=length)
    gaps = {}
    for balanced in (False, True):
        pairs = [drawn(metadata, 8, 0, epoch, balanced) for epoch in range(9)]
        gaps[balanced] = np.mean([abs(length[i] - length[j]) for epoch in pairs for i, j in epoch])
    assert gaps[True] < gaps[False] / 10


def test_rows_of_one_length_meet_different_partners():
    metadata = make([True] * 20 + [False] * 20, problem=[0] * 40, length=[7] * 40)
    pairs = np.array([p for e in range(10) for p in drawn(metadata, 4, 0, e, length_balanced=True)])
    assert len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == 20


# --- as a training reads them --------------------------------------------------------------------


@quick
@given(metadata=problems(), cap=st.integers(1, 5), seed=seeds, epoch=st.integers(0, 5))
def test_an_epoch_of_pairs_is_a_draw(metadata, cap, seed, epoch):
    order = order_of(metadata, seed=seed, cap=cap)
    taken = order.take(epoch * order.epoch_size, order.epoch_size)
    assert list(map(tuple, taken.tolist())) == drawn(metadata, cap, seed, epoch)


def test_bins_hold_pairs_too():
    """Pairs are made within each bin, and the bins keep their shares."""
    metadata = make([True, False] * 20, problem=np.arange(40) // 4, number=[1.0] * 20 + [7.0] * 20)
    bins = {"easy": {"difficulty_number": {"below": 4}}}
    config = sampling(strategy="difficulty", bins=bins, weights={"easy": 3, "other": 1})
    order = order_of(metadata, config, cap=2)
    assert order.epoch_size == 20
    for epoch in range(4):
        pairs = order.take(epoch * 20, 20)
        assert (metadata.difficulty_number[pairs] == 1).all(axis=1).sum() == 15
        assert (metadata.problem[pairs[:, 0]] == metadata.problem[pairs[:, 1]]).all()


@pytest.mark.parametrize(
    ("settings_", "cap", "message"),
    [
        (
            {"strategy": "balanced"},
            4,
            r"strategy balanced has no meaning for objective\.value\.loss",
        ),
        ({"length_balanced_pairs": True}, None, r"length_balanced_pairs is for pairs"),
        (
            {"strategy": "difficulty", "bins": {"a": {"difficulty_number": {"below": 2}}}},
            4,
            r"the rows of data\.sampling\.bins\.a: no task_id has both",
        ),
        ({"n_samples": 4}, 4, r"n_samples 4 is more than the 1 "),
    ],
)
def test_what_pairs_cannot_be_is_named(settings_, cap, message):
    metadata = make([True, True, False], problem=[0, 1, 1], number=[1.0, 5.0, 5.0])
    with pytest.raises(UserError, match=message):
        order_of(metadata, sampling(**settings_), cap=cap)
