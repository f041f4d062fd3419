"""From logits to a token: filters against their plainest form, and numbers as if random."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.decoding.dice import Dice, Use
from weighted_mtp.decoding.greedy import contested
from weighted_mtp.decoding.sampling import Sampling, penalise, probabilities, residual

CPU = torch.device("cpu")
PROBS = [0.1875, 0.5, 0.0625, 0.25]  # exact in binary


def plainly(logits: list[float], sampling: Sampling) -> list[float]:
    """The same in Python numbers, one filter after the other."""
    weights = [math.exp((x - max(logits)) / sampling.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -weights[i])
    kept = order[: sampling.top_k]
    total, before, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if before < sampling.top_p * total:
            nucleus.append(i)
        before += weights[i]
    nucleus = [i for i in nucleus if weights[i] >= sampling.min_p * weights[order[0]]]
    whole = sum(weights[i] for i in nucleus)
    return [weights[i] / whole if i in nucleus else 0.0 for i in range(len(logits))]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=2, max_size=8, unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1e-9, 0.31, 0.77, 0.99, 1.0]),
    top_k=st.none() | st.integers(1, 9),
    min_p=st.sampled_from([0.0, 0.037, 0.51, 1.0]),
)
def test_filters_equal_their_plainest_form(logits, temperature, top_p, top_k, min_p):
    scaled = [x / 10 for x in logits]
    sampling = Sampling(temperature, top_p, top_k=top_k, min_p=min_p)
    got = probabilities(torch.tensor([scaled], dtype=torch.float64), sampling)[0].tolist()
    assert got == pytest.approx(plainly(scaled, sampling), abs=1e-12)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.3, [1]),
        (0.5, [1]),
        (0.501, [1, 3]),
        (0.74, [1, 3]),
        (0.76, [1, 3, 0]),
        (0.999, [1, 3, 0, 2]),
    ],
)
def test_top_p_keeps_the_smallest_nucleus(top_p, kept):
    got = probabilities(torch.tensor(PROBS).log(), Sampling(1.0, top_p))
    total = sum(PROBS[i] for i in kept)
    assert got.tolist() == pytest.approx([PROBS[i] / total * (i in kept) for i in range(4)])


def test_filters_equal_hugging_face():
    process = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 50, generator=generator)
    ids = torch.randint(50, (4, 9), generator=generator)
    theirs = logits
    for step in (
        process.RepetitionPenaltyLogitsProcessor(1.3),
        process.TemperatureLogitsWarper(0.7),
        process.TopKLogitsWarper(20),
        process.TopPLogitsWarper(0.9),
        process.MinPLogitsWarper(0.05),
    ):
        theirs = step(ids, theirs)
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, ids, True)
    sampling = Sampling(0.7, 0.9, top_k=20, min_p=0.05, repetition_penalty=1.3)
    ours = probabilities(penalise(logits, seen, 1.3), sampling)
    torch.testing.assert_close(ours, theirs.softmax(-1))


def test_the_penalty_makes_every_seen_token_less_likely():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]
    assert penalise(logits, None, 2.0) is logits


def test_extreme_settings_stay_distributions():
    logits = torch.tensor([[3e4, 2e4, -3e4], [0.0, 0.0, 0.0]])
    for sampling in (Sampling(1e-30), Sampling(1e30), Sampling(0.0), Sampling(1.0, 1e-9)):
        probs = probabilities(logits, sampling)
        assert probs.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert probabilities(logits, Sampling(0.0)).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_top_k_is_exact_with_ties():
    probs = probabilities(torch.zeros(1, 6), Sampling(1.0, top_k=2))
    assert sorted(probs[0].tolist()) == [0, 0, 0, 0, 0.5, 0.5]


def test_what_is_left_of_a_rejected_draft():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    assert residual(p, q).tolist() == [1.0, 0.0, 0.0]
    assert residual(p, p).tolist() == p.tolist()


# --- chance --------------------------------------------------------------------------------------


def test_numbers_depend_on_their_address_alone():
    three = Dice(1, [10, 20, 30], CPU)
    numbers = three.uniforms([5, 0, 9], 4, Use.DRAFT)
    assert torch.equal(Dice(1, [20], CPU).uniforms([2], 2, Use.DRAFT)[0], numbers[1, 2:])
    three.keep([2, 0])
    assert torch.equal(three.uniforms([9, 5], 4, Use.DRAFT), numbers[[2, 0]])


def test_numbers_are_those_of_splitmix64():
    """Reference: the published finaliser (Steele et al. 2014), in Python's integers."""

    def mix(state: int, word: int) -> int:
        z = ((state ^ word) + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    for seed, row in ((0, 0), (7, 3), (-1, 2**70 + 5)):
        key = mix(mix(0, seed % 2**64), row % 2**64)
        for use in Use:
            expected = [(mix(mix(key, 4 + j), use) >> 12) / 2**52 for j in range(3)]
            assert Dice(seed, [row], CPU).uniforms([4], 3, use)[0].tolist() == expected


def test_numbers_of_different_addresses_differ():
    seen = Counter(
        number
        for seed in (-1, 0, 1, 2**63, 10**30)
        for use in Use
        for number in Dice(seed, range(-20, 20), CPU).uniforms([0] * 40, 40, use).flatten().tolist()
    )
    assert max(seen.values()) == 1
    assert 0 <= min(seen) < max(seen) < 1


@pytest.mark.parametrize("axis", ["seed", "row", "position"])
def test_numbers_are_uniform_and_independent_along_each_axis(axis):
    """χ² of 100 cells for neighbours: chance passes 170 less than once in 50 000."""
    count = 10_000
    if axis == "seed":
        parts = [Dice(seed, [0], CPU).uniforms([3], 1, Use.SAMPLE) for seed in range(count)]
        numbers = torch.cat(parts)[:, 0]
    elif axis == "row":
        numbers = Dice(0, range(count), CPU).uniforms([3] * count, 1, Use.SAMPLE)[:, 0]
    else:
        numbers = Dice(0, [0], CPU).uniforms([0], count, Use.SAMPLE)[0]
    tenths = (numbers * 10).long()
    cells = torch.bincount(10 * tenths[:-1] + tenths[1:], minlength=100).double()
    expected = (count - 1) / 100
    assert 40 < ((cells - expected) ** 2 / expected).sum() < 170


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0]), min_size=1, max_size=6).filter(any),
    number=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2.0**-52]),
)
def test_a_pick_inverts_the_cumulative_distribution(weights, number):
    number = min(number, 1 - 2.0**-52)  # the largest that uniforms gives
    probs = torch.tensor(weights, dtype=torch.float64)
    token = int(Dice(0, [0], CPU).pick(probs, torch.tensor(number, dtype=torch.float64)))
    below, total = sum(weights[:token]), sum(weights)
    assert weights[token] > 0
    assert below <= number * total + 1e-12
    assert number * total <= below + weights[token] + 1e-12


def test_a_pick_has_its_probability():
    """On a grid of 2¹² equally spaced numbers, counts are exact."""
    grid = torch.from_numpy((np.arange(4096) + 0.5) / 4096)
    tokens = Dice(0, [0], CPU).pick(torch.tensor(PROBS).expand(4096, 4), grid)
    assert torch.bincount(tokens).tolist() == [4096 * p for p in PROBS]


# --- near-ties -----------------------------------------------------------------------------------


def test_near_ties_are_seen():
    rows = torch.tensor(
        [[4.0, 3.0, -8.0], [4.0, 3.9, -8.0], [4.0, 4.0, 4.0], [math.nan, 1.0, 0.0], [0.0, 0.0, 0.0]]
    )
    assert contested(rows, 0.05).tolist() == [False, True, True, True, True]
    assert contested(rows[:1], 0.2).tolist() == [True]  # a share of the largest, here 8
