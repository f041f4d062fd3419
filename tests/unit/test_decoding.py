"""Plain decoding equals its definition: no cache, one prompt at a time; pass@k by enumeration."""

import itertools
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.decoding import Sampling, Stopping, complete, complete_naively, generate
from weighted_mtp.decoding.batch import Batch, first_heads
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.rows import Row
from weighted_mtp.evaluation.scores import pass_at_k
from weighted_mtp.models.meta_mtp.transformer import Transformer

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


@cache
def make_model(seed: int = 0, n_future: int = 3, kv_heads: int = 2) -> Transformer:
    """In float64, where no two tokens tie and rounding changes no choice."""
    args = tiny_args(n_future_tokens=n_future, n_kv_heads=kv_heads)
    return tiny_model(args, seed, dtype=torch.float64).requires_grad_(False)


def greedy_by_definition(
    model: Transformer, prompt: list[int], max_new_tokens: int, eos_id: int | None = None
) -> list[int]:
    """The whole sequence is read again for every token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_new_tokens:
        chosen = int(model(torch.tensor([tokens]))[0, -1, 0].argmax())
        if chosen == eos_id:
            break
        tokens.append(chosen)
    return tokens[len(prompt) :]


# --- greedy --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.lists(st.integers(0, 36), min_size=1, max_size=9), max_size=4),
    max_new_tokens=st.integers(1, 8),
    eos_id=st.none() | st.integers(0, 36),
    seed=st.integers(0, 5),
    n_future=st.sampled_from([1, 3, 5]),
    kv_heads=st.sampled_from([1, 4]),
)
def test_greedy_equals_the_uncached_loop(prompts, max_new_tokens, eos_id, seed, n_future, kv_heads):
    model = make_model(seed, n_future, kv_heads)
    expected = [greedy_by_definition(model, p, max_new_tokens, eos_id) for p in prompts]
    assert generate(model, prompts, max_new_tokens, eos_id) == expected


def test_eos_ends_its_own_row_and_is_dropped():
    """A token that one row produces midway is made EOS: that row stops, the others go on."""
    model = make_model()
    free = generate(model, PROMPTS, 12)
    assert [len(row) for row in free] == [12] * 3
    for eos_id in {token for row in free for token in row}:
        ended = generate(model, PROMPTS, 12, eos_id)
        for row, whole in zip(ended, free, strict=True):
            assert row == whole[: whole.index(eos_id) if eos_id in whole else 12]


def test_an_immediate_eos_gives_nothing():
    model = make_model()
    first = generate(model, [PROMPTS[0]], 1)[0][0]
    assert generate(model, [PROMPTS[0]], 5, eos_id=first) == [[]]


def test_rows_of_a_batch_do_not_meet():
    model = make_model()
    assert generate(model, PROMPTS, 9) == [generate(model, [p], 9)[0] for p in PROMPTS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_number_format_decodes(dtype):
    rows = generate(tiny_model().to(dtype), PROMPTS, 6)
    assert [len(row) for row in rows] == [6] * 3
    assert all(0 <= token < 37 for row in rows for token in row)


def test_ended_rows_are_dropped_once_they_are_a_quarter():
    model = make_model()
    rows = [Row(i, [1 + i], Stopping(9)) for i in range(8)]
    batch = Batch(FastModel(model, 9), rows, 9, penalised=True)
    batch.read()
    rows[2].finish = "eos"
    assert batch.shrink() is None
    rows[5].finish = "eos"
    assert batch.shrink() == [0, 1, 3, 4, 6, 7]
    assert [row.index for row in batch.rows] == [0, 1, 3, 4, 6, 7]
    assert batch.seen is not None
    assert batch.seen.nonzero()[:, 1].tolist() == [1, 2, 4, 5, 7, 8]


def test_a_model_in_whole_is_not_built_again():
    model = make_model(n_future=3)
    assert first_heads(model, 3) is model
    narrow = first_heads(model, 2)
    assert (narrow.args.n_future_tokens, len(narrow.extra_heads)) == (2, 1)
    assert narrow.args.n_layers == model.args.n_layers - 1
    assert narrow.output is model.output


def test_the_last_position_can_be_filled():
    model = make_model()
    assert generate(model, [[1, 2]], 30) == [greedy_by_definition(model, [1, 2], 30)]


def test_no_prompts_and_no_new_tokens():
    assert generate(make_model(), [], 5) == []
    assert generate(make_model(), PROMPTS, 0) == [[], [], []]


# --- sampled -------------------------------------------------------------------------------------


def test_a_seed_gives_one_text():
    def sample(seed: int) -> list[list[int]]:
        return generate(make_model(), PROMPTS, 10, sampling=Sampling(1.0, 1.0, seed))

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)
    assert sample(3) != generate(make_model(), PROMPTS, 10)


def test_temperature_0_ignores_the_seed():
    texts = [generate(make_model(), PROMPTS, 6, sampling=Sampling(0.0, 1.0, s)) for s in range(3)]
    assert texts == [generate(make_model(), PROMPTS, 6)] * 3


def test_a_tiny_temperature_or_nucleus_is_greedy():
    greedy = generate(make_model(), PROMPTS, 6)
    for sampling in (Sampling(1e-6), Sampling(1.0, top_p=1e-9)):
        assert generate(make_model(), PROMPTS, 6, sampling=sampling) == greedy


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.lists(st.integers(0, 36), min_size=1, max_size=9), min_size=1, max_size=4),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_p=st.sampled_from([0.6, 1.0]),
    penalty=st.sampled_from([1.0, 1.5]),
    eos_id=st.none() | st.integers(0, 36),
    seed=st.integers(0, 5),
)
def test_sampling_equals_the_uncached_loop(prompts, temperature, top_p, penalty, eos_id, seed):
    """Token by token: chance depends on seeds and positions, and on nothing else."""
    model, stopping = make_model(seed), Stopping(6, eos_id)
    sampling = Sampling(temperature, top_p, seed, top_k=20, min_p=0.01, repetition_penalty=penalty)
    seeds = [7 * row - 3 for row in range(len(prompts))]
    done, _ = complete(model, prompts, stopping, sampling, row_seeds=seeds, logprobs=True)
    for completion, prompt, row_seed in zip(done, prompts, seeds, strict=True):
        naive = complete_naively(model, prompt, stopping, sampling, row_seed)
        assert (completion.tokens, completion.finish) == (naive.tokens, naive.finish)
        assert completion.logprobs == pytest.approx(naive.logprobs, abs=1e-9)


def test_a_sampled_row_does_not_meet_its_neighbours():
    """Not even where ended rows make the others move together in the cache."""
    model, stopping = make_model(), Stopping(20, eos_id=3)
    prompts, sampling = [*PROMPTS, *PROMPTS], Sampling(1.0, seed=5, repetition_penalty=1.2)
    together, _ = complete(model, prompts, stopping, sampling, row_seeds=range(6))
    assert len({len(row.tokens) for row in together}) > 2
    for row, prompt in enumerate(prompts):
        alone, _ = complete(model, [prompt], stopping, sampling, row_seeds=[row])
        assert alone[0] == together[row]


def test_log_probabilities_are_the_models_own():
    model = make_model()
    done, _ = complete(model, PROMPTS, Stopping(5), Sampling(0.3, 0.9), logprobs=True)
    for prompt, row in zip(PROMPTS, done, strict=True):
        logits = model(torch.tensor([prompt + row.tokens]))[0, len(prompt) - 1 : -1, 0]
        own = logits.log_softmax(-1)[range(5), row.tokens]
        assert row.logprobs == pytest.approx(own.tolist(), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_softmax(temperature):
    """χ² of 4000 first tokens, at most 36 degrees of freedom: chance passes 80 once in 20 000."""
    model, draws = make_model(), 4000
    logits = model(torch.tensor([PROMPTS[0]]))[0, -1, 0]
    expected = torch.softmax(logits / temperature, -1) * draws
    rows = generate(model, [PROMPTS[0]] * draws, 1, sampling=Sampling(temperature, 1.0, seed=11))
    seen = torch.bincount(torch.tensor(rows).flatten(), minlength=37)
    rare = expected < 5  # lumped together, as the test asks for
    cells = [(seen[~rare], expected[~rare]), (seen[rare].sum()[None], expected[rare].sum()[None])]
    chi2 = sum(((o - e) ** 2 / e.clamp(min=1e-9)).sum() for o, e in cells if e.sum() > 0)
    assert 0 < chi2 < 80


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"ties": "always"}, "ties"),
    ],
)
def test_impossible_sampling_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**changes)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        generate(make_model(), [[1], []], 3)


def test_an_unknown_token_is_refused():
    with pytest.raises(ValueError, match="prompt 1 has token 37"):
        generate(make_model(), [[1], [36, 37]], 3)


@pytest.mark.parametrize(("length", "new"), [(2, 31), (33, 1), (32, 1), (1, 1000)])
def test_more_than_the_models_positions_is_refused(length, new):
    with pytest.raises(ValueError, match="32 positions"):
        generate(make_model(), [[1], [1] * length], new)


# --- pass@k --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_equals_enumeration(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
        share = sum(any(draw) for draw in draws) / len(draws)
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [
        (10, 3, 1, 0.3),
        (10, 0, 10, 0.0),
        (10, 10, 1, 1.0),
        (10, 1, 10, 1.0),
        (5, 2, 2, 0.7),
        (200, 1, 100, 0.5),
        (200, 50, 1, 0.25),
        (100_000, 1, 1, 1e-5),
    ],
)
def test_pass_at_k_of_known_values(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6), (0, 0, 1)])
def test_pass_at_k_of_nonsense_is_refused(n, c, k):
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(n, c, k)
