"""Speculative decoding gives the tokens of plain decoding, whatever the model, the batch and k."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.decoding import (
    LossyTypical,
    Sampling,
    Speculation,
    Stopping,
    Stream,
    complete,
    complete_naively,
    generate,
    products,
)
from weighted_mtp.decoding.batch import Batch
from weighted_mtp.decoding.draft_length import DraftLength
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.greedy import by_definition, tie_margin
from weighted_mtp.decoding.report import Report
from weighted_mtp.models.meta_mtp.transformer import Transformer

PROMPTS = [[1, 2, 3], [4], [5, 0, 2, 1, 3], [0, 0]]


@cache
def make_model(seed=0, vocab=6, n=4, dtype=torch.float64, **changes) -> Transformer:
    """A small vocabulary, so that chance makes some drafts right."""
    args = tiny_args(dim=16, vocab_size=vocab, n_future_tokens=n, **changes)
    return tiny_model(args, seed, dtype=dtype).requires_grad_(False)


@cache
def trained_model(dtype=torch.float32) -> Transformer:
    """Knows a language: from a random token on, each is the one before plus 1, or plus 2 after a
    multiple of 3, modulo 17. Its heads are right nearly always, but not always."""
    if dtype != torch.float32:
        whole = Transformer(trained_model().args).to(dtype)
        whole.load_state_dict(trained_model().state_dict())
        return whole.requires_grad_(False)
    model = tiny_model(tiny_args(vocab_size=17, n_future_tokens=4, max_seq_len=32), seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        tokens = language(torch.randint(17, (16,), generator=generator), 20)
        logits = model(tokens[:, :-4], return_all_heads=True)  # [B, S, n, V]
        targets = torch.stack([tokens[:, k : k - 4 or None] for k in range(1, 5)], 2)
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


def language(first, length):
    tokens = [first]
    for _ in range(length - 1):
        tokens.append((tokens[-1] + 1 + (tokens[-1] % 3 == 0).long()) % 17)
    return torch.stack(tokens, 1)


def texts(model, prompts, stopping, sampling=None, speculation=None):
    done, report = complete(model, prompts, stopping, sampling, speculation)
    return [(row.tokens, row.finish) for row in done], report


# --- greedy: token for token ---------------------------------------------------------------------


@settings(max_examples=45, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=5),
    new=st.integers(1, 23),
    seed=st.integers(0, 7),
    shape=st.sampled_from([(2, 1), (3, 2), (5, 4), (37, 5)]),  # vocabulary, heads
    k=st.integers(1, 5),
    adaptive=st.booleans(),
    penalty=st.sampled_from([1.0, 1.0, 1.4]),
    eos_id=st.none() | st.integers(0, 4),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_greedy_is_plain_greedy(prompts, new, seed, shape, k, adaptive, penalty, eos_id, dtype):
    """Near-ties settled by the definition: so in every number format."""
    vocab, n = shape
    model = make_model(seed, vocab, n, dtype)
    prompts = [[token % vocab for token in prompt] for prompt in prompts]
    sampling = Sampling(repetition_penalty=penalty, ties="exact")
    speculation = Speculation(min(k, n), adaptive, token_cost=0.2)
    plain, _ = texts(model, prompts, Stopping(new, eos_id), sampling)
    fast, report = texts(model, prompts, Stopping(new, eos_id), sampling, speculation)
    assert fast == plain
    assert report.tokens == sum(len(tokens) for tokens, _ in plain)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=7), min_size=1, max_size=4),
    seed=st.integers(0, 3),
    k=st.integers(1, 4),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_greedy_is_the_naive_definition(prompts, seed, k, dtype):
    model, stopping = make_model(seed, dtype=dtype), Stopping(8, eos_id=5)
    sampling = Sampling(ties="exact")
    fast, _ = texts(model, prompts, stopping, sampling, Speculation(k))
    naive = [complete_naively(model, prompt, stopping, sampling) for prompt in prompts]
    assert fast == [(row.tokens, row.finish) for row in naive]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [2, 4])
def test_a_trained_model_says_the_same_sooner(k, dtype):
    model, prompts = trained_model(dtype), [[3], [5, 6], [16, 0, 2], [9]]
    sampling = Sampling(ties="exact")
    plain, _ = texts(model, prompts, Stopping(24, eos_id=16), sampling)
    fast, report = texts(model, prompts, Stopping(24, eos_id=16), sampling, Speculation(k))
    assert fast == plain
    assert report.realised_fraction > 0.7
    assert report.acceptance[0] > 0.8
    assert report.forwards < 24


def tied(which: str, dtype) -> Transformer:
    """A model of its own whose unembedding holds exact ties."""
    model = tiny_model(tiny_args(dim=16, vocab_size=6, n_future_tokens=4), 2, dtype=dtype)
    with torch.no_grad():
        weight = model.output.weight
        if which == "all":
            weight.zero_()
        else:  # tokens 3 … 5 are copies of 0 … 2
            weight[3:] = weight[:3]
    return model.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_exact_ties_are_settled_alike(dtype):
    """Logits of equal rows may round apart, so copies are tied only nearly; zeros are exactly."""
    for which in ("all", "copies"):
        model, sampling = tied(which, dtype), Sampling(ties="exact")
        plain, _ = texts(model, PROMPTS, Stopping(8), sampling)
        fast, report = texts(model, PROMPTS, Stopping(8), sampling, Speculation())
        assert fast == plain
        assert report.rereads > 0
        if which == "all":
            assert {token for tokens, _ in fast for token in tokens} == {0}


def test_ties_are_looked_for_where_it_is_cheap():
    fine, coarse = make_model(dtype=torch.float32), make_model(dtype=torch.bfloat16)
    assert tie_margin(fine, Sampling()) == pytest.approx(1024 * 2**-23)
    assert tie_margin(fine, Sampling(ties="fast")) == 0
    assert tie_margin(coarse, Sampling()) == 0
    assert tie_margin(coarse, Sampling(ties="exact")) == 16 * 2**-7
    with torch.autocast("cpu", torch.bfloat16):
        assert tie_margin(fine, Sampling()) == 0
    assert texts(coarse, PROMPTS, Stopping(2))[1].ties == "fast"
    assert texts(fine, PROMPTS, Stopping(2))[1].ties == "exact"


def test_coarse_products_of_float32_have_the_margin_of_bfloat16():
    fine, exact = make_model(dtype=torch.float32), Sampling(ties="exact")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert tie_margin(fine, Sampling()) == 0
        assert tie_margin(fine, exact) == 16 * 2**-7
        assert tie_margin(make_model(dtype=torch.float64), exact) == 1024 * 2**-52
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("penalty", [1.0, 2.0, 5.0])
def test_the_definition_knows_the_repetition_penalty(penalty):
    model, changed = make_model(vocab=9), 0
    for prompt in torch.randint(9, (20, 7), generator=torch.Generator().manual_seed(0)).tolist():
        logits = model(torch.tensor([prompt]))[0, -1, 0]
        plain = int(logits.argmax())
        for token in set(prompt):
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        sampling = Sampling(repetition_penalty=penalty)
        assert by_definition(model, prompt, sampling) == int(logits.argmax())
        changed += plain != int(logits.argmax())
    assert (changed > 0) == (penalty > 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_margin_is_wider_than_rounding(dtype, monkeypatch):
    """What the guarantee rests on, measured: two readings of the same text."""
    model = make_model(0, 37, 4, dtype, max_seq_len=32)
    tokens = torch.randint(37, (6, 40), generator=torch.Generator().manual_seed(0))
    whole = model(tokens)[:, :, 0].double()
    margin = tie_margin(model, Sampling(ties="exact"))
    for row in range(6):
        for end in range(1, 40, 6):
            alone = model(tokens[row : row + 1, :end])[0, -1, 0].double()
            apart = alone - whole[row, end - 1]
            assert apart.max() - apart.min() < margin / 2 * alone.abs().max()
    if dtype in (torch.float32, torch.bfloat16):  # states in float32, weights in float16
        monkeypatch.setattr(products, "_SMALL", 0)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().to(dtype)
        whole = model(tokens)[:, :, 0].double()
        fast = FastModel(model.requires_grad_(False), 128)
        with torch.inference_mode():
            found = fast.output(fast.read(tokens, 0, fast.cache(6, 40))[0]).double()
        apart = found - whole
        spread = apart.amax(-1) - apart.amin(-1)
        assert bool((spread < margin / 2 * whole.abs().amax(-1)).all())


# --- the edges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_every_position_can_be_filled(monkeypatch, seed):
    """Rows at the end of the positions, beside rows that still draft further than there is room."""
    model, shifted = make_model(seed, 3, max_seq_len=10), []
    original = Batch._earlier
    monkeypatch.setattr(Batch, "_earlier", lambda *args: shifted.append(1) or original(*args))
    prompts = [[i, j] * 3 for i in range(3) for j in range(3)]
    for penalty in (1.0, 1.3):
        sampling, stopping = Sampling(repetition_penalty=penalty), Stopping(14)
        plain, _ = complete(model, prompts, stopping, sampling, logprobs=True)
        fast, _ = complete(model, prompts, stopping, sampling, Speculation(), logprobs=True)
        for ours, theirs in zip(fast, plain, strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-9)
    assert shifted
    for new in (1, 2, 3):
        edge = [[1] * (20 - new), [2]]
        plain, _ = texts(model, edge, Stopping(new))
        assert texts(model, edge, Stopping(new), None, Speculation())[0] == plain


def test_generate_speculates_too():
    model = make_model()
    assert generate(model, PROMPTS, 9, 2, speculation=Speculation()) == generate(
        model, PROMPTS, 9, 2
    )
    assert generate(model, [], 5, speculation=Speculation()) == []
    assert generate(model, PROMPTS, 0, speculation=Speculation()) == [[]] * 4


def test_eos_inside_a_step_ends_the_row_there():
    model = trained_model()
    whole = generate(model, [[1]], 20)[0]
    for eos_id in set(whole):
        ended = generate(model, [[1]], 20, eos_id, speculation=Speculation())[0]
        assert ended == whole[: whole.index(eos_id)]


@pytest.mark.parametrize("ends", [(), (3,), (3, 5), {2, 7, 11}])
def test_any_of_several_ends_of_sequence_ends_a_row(ends):
    """Also inside a step, with drafts past it; as the definition says."""
    model, prompts, new = trained_model(torch.float64), [[1], [4, 5], [9]], 20
    free = generate(model, prompts, new)
    stopping = Stopping(new, ends)
    naive = [complete_naively(model, prompt, stopping) for prompt in prompts]
    for speculation in (None, Speculation(), Speculation(2)):
        found, _ = texts(model, prompts, stopping, None, speculation)
        assert found == [(row.tokens, row.finish) for row in naive]
        for (tokens, finish), whole in zip(found, free, strict=True):
            first = next((place for place, token in enumerate(whole) if token in ends), new)
            assert (tokens, finish) == (whole[:first], "length" if first == new else "eos")


@pytest.mark.parametrize("speculation", [Speculation(), Speculation(adaptive=True, token_cost=0.6)])
def test_a_sampled_row_does_not_meet_its_neighbours(speculation):
    model = make_model(0, 4, max_seq_len=32)
    sampling = Sampling(1.0, 0.95, seed=3, repetition_penalty=1.1)
    stopping = Stopping(40, eos_id=3)
    prompts = [[token % 4 for token in prompt] for prompt in [*PROMPTS, [1] * 14, *PROMPTS, [2]]]
    together, _ = complete(model, prompts, stopping, sampling, speculation)
    assert len({len(row.tokens) for row in together}) > 4
    for row, prompt in enumerate(prompts):
        alone, _ = complete(model, [prompt], stopping, sampling, speculation, row_seeds=[row])
        assert alone[0] == together[row]


def test_log_probabilities_are_the_models_own():
    model = make_model()
    for sampling in (Sampling(), Sampling(1.0, 0.9)):
        done, _ = complete(model, PROMPTS, Stopping(9), sampling, Speculation(), logprobs=True)
        for prompt, row in zip(PROMPTS, done, strict=True):
            logits = model(torch.tensor([prompt + row.tokens]))[0, len(prompt) - 1 : -1, 0]
            own = logits.log_softmax(-1)[range(9), row.tokens]
            assert row.logprobs == pytest.approx(own.tolist(), abs=1e-9)


# --- the report ----------------------------------------------------------------------------------


def test_the_report_adds_up():
    model, k = trained_model(), 4
    stream = Stream(model, [[i] for i in range(17)], Stopping(21), speculation=Speculation(k))
    turns = list(stream)
    report = stream.report
    assert report.forwards == len(turns)
    assert report.steps == sum(len(turn) for turn in turns[1:]) == sum(report.histogram)
    seen = [len(piece.tokens) for turn in turns[1:] for piece in turn]
    assert report.histogram == [seen.count(count) for count in range(1, k + 1)]
    assert report.tokens == 17 + sum(seen) == 17 * 21
    assert report.tokens_per_forward == sum(seen) / len(seen)
    assert report.realised_fraction == report.tokens_per_forward / k
    assert sum(report.accepted) == sum(seen) - len(seen)  # no row ended before a step did
    assert report.tested[1:] <= report.accepted[:-1]


def test_plain_decoding_reports_one_token_a_forward():
    _, report = texts(make_model(), PROMPTS, Stopping(5))
    assert (report.k, report.forwards, report.steps, report.histogram) == (1, 5, 16, [16])
    assert (report.tokens_per_forward, report.realised_fraction) == (1, 1)
    assert math.isnan(Report(2).tokens_per_forward)
    assert math.isnan(Report(2).acceptance[0])


# --- how far to draft ----------------------------------------------------------------------------


def test_hopeless_drafts_are_given_up_and_tried_again():
    length, chosen = DraftLength(4, 0.1), []
    for _ in range(60):
        chosen.append(length.k)
        length.learn(tested=int(length.k > 1), accepted=0)
    assert chosen[0] == 4
    assert chosen.count(1) > 30
    assert any(k > 1 for k in chosen[30:])


def test_good_drafts_are_kept_and_free_ones_always():
    good, free, fixed = DraftLength(4, 0.1), DraftLength(4, 0.0), DraftLength(3, None)
    for _ in range(30):
        good.learn(3, 3)
        free.learn(1, 0)
        fixed.learn(1, 0)
    assert (good.k, free.k, fixed.k) == (4, 4, 3)


@pytest.mark.parametrize("rows", [1, 4])
def test_acceptance_is_remembered_as_stated(rows):
    """What was tested moves by a fifth a step of all rows (several rows: as a mean, while that is
    more), what was not regains two thousandths."""
    length, seen = DraftLength(4, 0.1, rows), [8 if rows > 1 else 1 << 30] * 3
    keep, regain, rates = 0.8 ** (1 / rows), 0.002 / rows, [0.7 if rows > 1 else 1.0] * 3
    for tested, accepted in [(3, 1), (2, 2), (1, 0), (3, 3), (2, 0)] * 3:
        length.learn(tested, accepted)
        for head in range(3):
            if head < tested:
                seen[head] += 1
                share = max(1 - keep, 1 / (1 + seen[head]))
                rates[head] = (1 - share) * rates[head] + share * (head < accepted)
            else:
                rates[head] += regain * (1 - rates[head])
        assert length._rates == pytest.approx(rates, rel=1e-12)
        expected, reached, gains = 0.0, 1.0, []
        for i in range(4):
            expected += reached
            gains.append(expected / (1 + 0.1 * i))
            reached *= rates[i] if i < 3 else 0
        gains[0] *= 1.25 if rows > 1 else 1  # its last rows have little company
        assert length.k == 1 + gains.index(max(gains))


def test_adaptive_drafting_tests_fewer_hopeless_drafts():
    model = make_model(1, 37)
    _, fixed = texts(model, PROMPTS, Stopping(24), None, Speculation())
    _, adaptive = texts(model, PROMPTS, Stopping(24), None, Speculation(adaptive=True))
    assert sum(adaptive.tested) < 0.7 * sum(fixed.tested)


# --- lossy, and mistakes -------------------------------------------------------------------------


def test_lossy_typical_acceptance_takes_more_and_changes_the_text():
    model, sampling = make_model(), Sampling(0.0)
    plain, _ = texts(model, PROMPTS, Stopping(20), sampling)
    _, exact = texts(model, PROMPTS, Stopping(20), sampling, Speculation())
    loose = Speculation(lossy_typical=LossyTypical(0.01, 0.01))
    text, lossy = texts(model, PROMPTS, Stopping(20), sampling, loose)
    assert lossy.tokens_per_forward > exact.tokens_per_forward
    assert text != plain
    tight = Speculation(lossy_typical=LossyTypical(1.0, 1.0))
    sampled, _ = texts(model, PROMPTS, Stopping(20), Sampling(1.0), tight)
    assert [len(tokens) for tokens, _ in sampled] == [20] * 4


@pytest.mark.parametrize(
    ("speculation", "message"),
    [
        (lambda: Speculation(5), r"k=5 .* the model has 4"),
        (lambda: Speculation(0), "k must be at least 1"),
        (lambda: Speculation(token_cost=-1.0), "token_cost"),
        (lambda: Speculation(lossy_typical=LossyTypical(epsilon=0.0)), "epsilon"),
    ],
)
def test_impossible_speculation_is_refused(speculation, message):
    with pytest.raises(ValueError, match=message):
        generate(make_model(), PROMPTS, 3, speculation=speculation())


def test_too_long_prompts_and_wrong_seeds_are_refused():
    with pytest.raises(ValueError, match="prompt 1 has 30 tokens, which with 3 new ones exceed"):
        generate(make_model(), [[1], [1] * 30], 3, speculation=Speculation())
    with pytest.raises(ValueError, match="1 row seeds for 4 prompts"):
        Stream(make_model(), PROMPTS, Stopping(3), row_seeds=[1])
