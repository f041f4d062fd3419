"""Quality of each head on held-out text: against loops over whole logits, against what decoding
does, and the same however the text is cut, padded, packed or ordered."""

import json
import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from torch import Tensor

from weighted_mtp.analysis import run_report
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch, Example, pack_batch, pad_batch
from weighted_mtp.decoding import Speculation, Stopping, complete
from weighted_mtp.evaluation.critic_metrics import calibration_error
from weighted_mtp.evaluation.head_quality import (
    BINS,
    HeadReading,
    HeadSums,
    head_figures,
    head_sums,
    read_heads,
)
from weighted_mtp.losses import mtp_loss, shift_labels
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.metrics_utils import MetricsFile, in_words, read_metrics
from weighted_mtp.pipelines.training.module import read_batch
from weighted_mtp.pipelines.training.objectives.base import plain_targets

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer


@cache
def make_model(n: int = 3, vocab: int = 6, seed: int = 0) -> Transformer:
    """A small vocabulary, so that heads agree now and then; the later heads resemble the first."""
    args = tiny_args(dim=16, n_layers=n + 1, vocab_size=vocab, n_future_tokens=n)
    model = tiny_model(args, seed, dtype=torch.float64)
    return model.requires_grad_(False)


def read(model: Transformer, batch: Batch, chunk_rows: int | None = None) -> HeadReading:
    n = model.args.n_future_tokens
    targets = plain_targets(batch, n)
    places = None if batch.packing is None else batch.packing.slots
    states = read_batch(model, batch, all_heads=n > 1)
    return read_heads(states, model.output.weight, targets, places, chunk_rows)


def sums_of(model: Transformer, batch: Batch, chunk_rows: int | None = None) -> HeadSums:
    found = read(model, batch, chunk_rows)
    return head_sums(found, batch.correct[found.rows // batch.length])


def assert_same_sums(one: HeadSums, other: HeadSums) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@st.composite
def examples(draw, vocab: int = 6) -> list[Example]:
    """Rows of any length, right and wrong, some with a prompt alone; and pieces of windows, whose
    last targets are no inputs."""
    found = []
    for row in range(draw(st.integers(1, 4))):
        ids = draw(st.lists(st.integers(0, vocab - 1), min_size=2, max_size=9))
        prompt = draw(st.integers(1, len(ids)))
        found.append(Example(ids, prompt, False, row, is_correct=draw(st.booleans())))
    return found


# --- against loops -------------------------------------------------------------------------------


class Place(NamedTuple):
    """What one head says at one position, by the definitions."""

    ce: float
    hit: bool
    confidence: float
    agrees: bool | None  # None: there is no judge
    overlap: float


def by_definition(model: Transformer, example: Example) -> dict[tuple[int, int], Place]:
    """Of every position and head (from 0) with a target: the row read alone, one loop after the
    other."""
    S, n, ids = example.positions, model.args.n_future_tokens, list(example.ids)
    logits = model(torch.tensor([ids[:S]]), return_all_heads=True)[0]  # [S, n, V]
    p = torch.softmax(logits, -1)
    found = {}
    for t in range(S):
        for k in range(n):
            target = t + k + 1
            if not example.prompt_length <= target < len(ids):
                continue
            q, agrees, overlap = p[t, k], None, 0.0
            if t + 1 >= example.prompt_length and t + k < S:
                judge = p[t + k, 0]
                agrees = bool(logits[t, k].argmax() == logits[t + k, 0].argmax())
                overlap = sum(min(float(a), float(b)) for a, b in zip(judge, q, strict=True))
            found[t, k] = Place(
                float(-q[ids[target]].log()),
                int(q.argmax()) == ids[target],
                float(q.max()),
                agrees,
                overlap,
            )
    return found


def sums_by_definition(model: Transformer, rows: list[Example]) -> HeadSums:
    n = model.args.n_future_tokens
    cells = torch.zeros(2, 3, n, BINS, dtype=torch.float64)
    drafts = torch.zeros(2, 5, n, dtype=torch.float64)
    for example in rows:
        group, found = 0 if example.is_correct else 1, by_definition(model, example)
        for (_, k), place in found.items():
            inside = min(int(place.confidence * BINS), BINS - 1)
            told = [1, place.hit, place.confidence]
            cells[group, :, k, inside] += torch.tensor(told, dtype=torch.float64)
        for t in {t for t, _ in found}:
            chain, product = True, 1.0
            for k in range(n):
                place = found.get((t, k))
                if place is None or place.agrees is None:
                    break
                chain, product = chain and place.agrees, product * place.overlap
                told = [1, place.agrees, chain, place.overlap, product]
                drafts[group, :, k] += torch.tensor(told, dtype=torch.float64)
    return HeadSums(cells, drafts)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=examples(),
    n=st.integers(1, 4),
    seed=st.integers(0, 3),
    chunk=st.none() | st.integers(1, 7),
)
def test_chunked_sums_are_those_of_loops(rows, n, seed, chunk):
    model = make_model(n, seed=seed)
    assert_same_sums(
        sums_of(model, pad_batch(rows, 0), chunk),
        sums_by_definition(model, rows),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(1, 4), chunk=st.none() | st.integers(1, 7))
def test_pieces_of_windows_have_targets_behind_their_end(data, n, chunk):
    """A draft whose judge the next window reads is not counted."""
    model, rows = make_model(n), []
    for row in range(data.draw(st.integers(1, 4))):
        ids = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=9))
        inputs = data.draw(st.integers(max(1, len(ids) - n), len(ids)))
        rows.append(Example(ids, 1, False, row, inputs=inputs))
    cut = data.draw(st.integers(0, len(rows)))
    batch = pack_batch([part for part in (rows[:cut], rows[cut:]) if part], 0)
    assert_same_sums(sums_of(model, batch, chunk), sums_by_definition(model, rows))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=examples(), n=st.integers(1, 4), vocab=st.sampled_from([6, 48, 64]))
def test_cross_entropy_and_hits_are_those_of_the_loss(rows, n, vocab):
    model, batch = make_model(n, vocab), pad_batch(rows, 0)
    targets, found = plain_targets(batch, n), read(model, batch, 5)
    states = model.head_states(batch.tokens, return_all_heads=n > 1)
    loss = mtp_loss(states, model.output.weight, targets, torch.ones(n))
    B, S, _ = targets.shape
    torch.testing.assert_close(found.spread(found.ce, B, S), loss.ce, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.spread(found.hit, B, S), loss.hit)


@pytest.mark.parametrize("vocab", [6, 48, 128])
def test_a_tie_goes_to_the_lowest_id_as_in_decoding(vocab):
    """All logits alike: every head says 0, surely no more than 1/V."""
    state, labels = torch.zeros(1, 5, 4), torch.full((1, 6), 1)
    targets = shift_labels(labels, 2, length=5)
    found = read_heads([state, state], torch.randn(vocab, 4), targets)
    assert found.agrees[:-1].all()
    assert found.hit.equal(found.targeted)  # no token was likelier
    torch.testing.assert_close(found.confidence, torch.full((5, 2), 1 / vocab))


@pytest.mark.parametrize("tied", [(3, 9), (3, 100), (70, 100)])
def test_a_tie_of_two_goes_to_the_lower(tied):
    """To the judge both are best, to the draft head the lower alone."""
    unembedding = torch.zeros(128, 2)
    unembedding[list(tied)] = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    judge, draft = torch.tensor([1.0, 0.0]), torch.tensor([1.0, -1.0])
    states = [state.expand(1, 4, 2) for state in (judge, draft)]
    found = read_heads(states, unembedding, shift_labels(torch.ones(1, 5).long(), 2, length=4))
    assert found.agrees[:-1].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_the_logits_are_those_of_the_loss(dtype):
    model = tiny_model(tiny_args(vocab_size=64)).requires_grad_(False)
    tokens = torch.randint(64, (3, 9), generator=torch.Generator().manual_seed(0))
    targets = shift_labels(tokens, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        states = model.head_states(tokens, return_all_heads=True)
        found = read_heads(states, model.output.weight, targets)
        loss = mtp_loss(states, model.output.weight, targets, torch.ones(3))
    torch.testing.assert_close(found.spread(found.ce, 3, 9), loss.ce, rtol=1e-5, atol=1e-6)
    assert found.ce.dtype == torch.float32


# --- however it is cut ---------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=examples(), data=st.data(), multiple=st.integers(1, 8), n=st.integers(1, 4))
def test_padding_packing_and_order_change_nothing(rows, data, multiple, n):
    model = make_model(n)
    expected = sums_of(model, pad_batch(rows, 0))
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if part]
    assert_same_sums(sums_of(model, pad_batch(shuffled, 0, multiple)), expected)
    assert_same_sums(sums_of(model, pack_batch(parts, 0, multiple)), expected)
    one_by_one = [sums_of(model, pad_batch([example], 0)) for example in rows]
    added = HeadSums(*(torch.stack(part).sum(0) for part in zip(*one_by_one, strict=True)))
    assert_same_sums(added, expected)


def test_nothing_to_read_adds_nothing():
    """As on a process that has no batch left: the sums have their shapes all the same."""
    for batch in (pad_batch([], 0), pack_batch([], 0)):
        sums = sums_of(make_model(3), batch)
        assert [tuple(x.shape) for x in sums] == [(2, 3, 3, BINS), (2, 5, 3)]
        assert not any(x.any() for x in sums)
    figures = head_figures(sums.calibration[0], sums.acceptance[0])
    assert all(math.isnan(x) for x in figures["head_confidence"] + figures["head_acceptance"])
    assert math.isnan(figures["tokens_per_forward"])


HELD_OUT = (
    "head_loss",
    "head_accuracy",
    "head_confidence",
    "head_calibration_error",
    "head_acceptance",
    "head_acceptance_sampled",
    "tokens_per_forward",
    "tokens_per_forward_sampled",
)


def test_validation_counts_every_token_once_however_it_is_cut(make_trainer):
    steps = {"training__steps": 24, "training__micro_batch_size": 8}
    trainer = make_trainer(**steps, dtype=torch.float64)
    helpers_training.run_steps(trainer, 12)
    weights, whole = trainer.module.state_dict(), trainer.validate()
    assert 1 < whole["tokens_per_forward"] < 3
    assert whole["head_acceptance"][0] == whole["head_acceptance_sampled"][0] == 1
    for changes in (
        {"training__micro_batch_size": 1},
        {"training__micro_batch_size": 4},
        {"data__packing": True, "training__loss_chunk_rows": 5},
    ):
        other = make_trainer(dtype=torch.float64, **changes)
        other.module.load_state_dict(weights)
        cut = other.validate()
        for name in HELD_OUT:
            assert cut[name] == pytest.approx(whole[name], abs=2e-6), name


def test_a_head_alone_gains_one_token_a_forward(make_trainer):
    figures = make_trainer("ntp").validate()
    assert figures["tokens_per_forward"] == figures["tokens_per_forward_sampled"] == 1
    assert figures["head_acceptance"] == [1]
    assert "forward" not in in_words(figures)


def test_training_steps_have_no_such_figures(make_trainer):
    assert "tokens_per_forward" not in helpers_training.run_steps(make_trainer(), 1)[0]


# --- calibration ---------------------------------------------------------------------------------


def test_calibration_error_is_that_of_the_critic_s_formula():
    """The same number from all probabilities at once, in 15 bins."""
    model = make_model(2)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, (8, 15), generator=generator).tolist()
    rows = [Example(row, 3, False, i) for i, row in enumerate(ids)]
    found = read(model, pad_batch(rows, 0))
    sums = head_sums(found, torch.ones(len(found.rows), dtype=torch.bool))
    figures = head_figures(sums.calibration[0], sums.acceptance[0])
    for k in range(2):
        here = found.targeted[:, k]
        sure, hit = found.confidence[here, k].numpy(), found.hit[here, k].numpy()
        expected = calibration_error(sure, hit, BINS)
        assert figures["head_calibration_error"][k] == pytest.approx(expected, abs=1e-6)
        assert figures["head_confidence"][k] == pytest.approx(sure.mean(), abs=1e-6)


def test_figures_by_hand():
    cells = torch.zeros(3, 1, BINS)
    cells[:, 0, 7] = torch.tensor([4.0, 3.0, 2.0])  # 4 targets, 3 hits, confidence 0.5 each
    cells[:, 0, 14] = torch.tensor([6.0, 5.0, 6.0])
    drafts = torch.tensor([[10.0, 8.0], [10.0, 6.0], [10.0, 4.0], [10.0, 6.4], [10.0, 2.0]])
    figures = head_figures(cells, drafts[:, :1])
    assert figures["head_calibration_error"] == [pytest.approx((1 + 1) / 10)]
    assert figures["head_confidence"] == [0.8]
    figures = head_figures(cells.expand(3, 2, BINS), drafts)
    assert figures["head_acceptance"] == [1, 0.75]
    assert figures["head_acceptance_sampled"] == [1, 0.8]
    assert figures["tokens_per_forward"] == 1.5
    assert figures["tokens_per_forward_sampled"] == 1.25


# --- against decoding ----------------------------------------------------------------------------


@cache
def trained_model(n: int = 4) -> Transformer:
    """Knows a language (each token is the one before plus 1, or plus 2 after a multiple of 3,
    modulo 17), but not well: its heads are often wrong."""
    model = tiny_model(tiny_args(vocab_size=17, n_future_tokens=n, n_layers=n + 2, max_seq_len=40))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        tokens = [torch.randint(17, (16,), generator=generator)]
        for _ in range(19):
            tokens.append((tokens[-1] + 1 + (tokens[-1] % 3 == 0).long()) % 17)
        text = torch.stack(tokens, 1)
        logits = model(text, return_all_heads=True)  # [B, S, n, V]
        loss = F.cross_entropy(logits.flatten(0, 2), shift_labels(text, n).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.double().requires_grad_(False)


def steps_along(chain: Tensor, prompt: int, length: int, n: int) -> list[int]:
    """Tokens that each speculative step decides along a text, from how many drafts stay at each
    position `[S]`. The drafts of a step were made where its newest token was decided: one before
    it."""
    newest, steps = prompt, []
    while newest < length - 1:
        most = min(n, length - 1 - newest)
        steps.append(min(1 + int(chain[newest - 1]), most))
        newest += steps[-1]
    return steps


@pytest.mark.parametrize("model", [trained_model, make_model])
def test_on_its_own_greedy_text_the_estimate_is_what_decoding_does(model):
    model = model(4)
    n, V = 4, model.args.vocab_size
    prompts = [[token % V for token in p] for p in ([3], [5, 6], [16, 0, 2], [9], [1, 1, 1, 1])]
    done, told = complete(model, prompts, Stopping(26), speculation=Speculation())
    assert 1.1 < told.tokens_per_forward < 3.9  # neither all nor nothing

    histogram, rows = [0] * n, []
    for prompt, completion in zip(prompts, done, strict=True):
        rows.append(Example([*prompt, *completion.tokens], len(prompt), True, len(rows)))
        found = read(model, pad_batch(rows[-1:], 0))
        chain = torch.zeros(len(rows[-1].ids), dtype=torch.long)
        chain[found.rows] = found.agrees.long().cumprod(1).sum(1) - 1  # head 1 drafts nothing
        for decided in steps_along(chain, len(prompt), len(chain), n):
            histogram[decided - 1] += 1
    assert histogram == told.histogram

    sums, expected = sums_of(model, pad_batch(rows, 0)), sums_by_definition(model, rows)
    figures = head_figures(sums.calibration[0], sums.acceptance[0])
    drafts, _, chains, _, _ = expected.acceptance[0]
    by_hand = float((chains / drafts).sum())
    assert figures["tokens_per_forward"] == pytest.approx(by_hand, abs=1e-6)
    assert figures["tokens_per_forward"] == pytest.approx(told.tokens_per_forward, abs=0.6)
    calibrated = sums.calibration[0].sum(2)  # [3, n]
    assert calibrated[0, 0] == calibrated[1, 0] == len(prompts) * 26  # head 1 says its own text


def test_sampled_acceptance_is_the_chance_that_a_draft_stays():
    """Of drafts drawn from q and judged by p, over the whole vocabulary: Σ q(x) min(1, p/q)."""
    model, ids = make_model(2), [0, 3, 1, 4, 2]
    found = read(model, pad_batch([Example(ids, 1, True, 0)], 0))
    p = torch.softmax(model(torch.tensor([ids[:-1]]), return_all_heads=True)[0], -1)
    for t in range(3):
        q, judge = p[t, 1], p[t + 1, 0]
        stays = sum(float(q[x]) * min(1.0, float(judge[x] / q[x])) for x in range(6))
        assert float(found.overlap[t, 1]) == pytest.approx(stays)


# --- where the figures go ------------------------------------------------------------------------


def test_a_figure_that_is_not_finite_is_null_in_the_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    figures = {"head_loss": [0.5, math.nan], "stats": {"max": -math.inf}, "tokens": 3}
    file.write("train", 1, figures)
    line = file.path.read_text()
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert strict.pop("elapsed") >= 0
    assert strict == {
        "kind": "train",
        "step": 1,
        "head_loss": [0.5, None],
        "stats": {"max": None},
        "tokens": 3,
    }
    record = read_metrics(file.path)[0]
    assert record["head_loss"][0] == 0.5
    assert math.isnan(record["head_loss"][1])
    assert math.isnan(record["stats"]["max"])


def test_a_file_with_bare_nan_is_read_and_mended(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.path.write_text(
        '{"kind": "train", "step": 1, "loss": NaN}\n{"kind": "train", "step": 2, "loss": 1.0}\n'
    )
    assert math.isnan(read_metrics(file.path)[0]["loss"])
    file.rewind(1)
    assert file.path.read_text() == '{"kind": "train", "step": 1, "loss": null}\n'


def test_the_report_has_a_row_for_each_head():
    held_out = {
        "head_loss": [0.1, math.nan],
        "head_accuracy": [0.9, math.nan],
        "head_confidence": [0.91, math.nan],
        "head_calibration_error": [0.02, math.nan],
        "head_acceptance": [1.0, 0.75],
        "head_acceptance_sampled": [1.0, 0.7],
        "tokens_per_forward": 1.75,
        "tokens_per_forward_sampled": 1.7,
    }
    (table,) = run_report.heads(held_out)
    assert [row[0] for row in table.rows] == ["head 1", "head 2"]
    assert table.rows[0][1:] == ("0.100", "90.0%", "91.0%", "2.0%", "100.0%", "100.0%")
    assert table.rows[1][1:] == ("–", "–", "–", "–", "75.0%", "70.0%")
    assert "1.75" in table.caption
    assert run_report.heads({"head_loss": [0.1]}) == []  # a run of an earlier version
    alone = {k: v[:1] if isinstance(v, list) else v for k, v in held_out.items()}
    assert len(run_report.heads(alone)[0].header) == 5
    words = in_words(held_out)
    assert words.endswith("1.75 tokens a forward")


def test_targets_alone_decide_which_positions_count():
    """Neither the prompt's own tokens nor the padding: a draft made inside the prompt is never
    asked for."""
    model = make_model(3)
    batch = pad_batch(
        [Example([0, 1, 2, 3, 4, 5, 0, 1], 5, True, 0), Example([1, 2], 2, True, 1)], 0
    )
    found = read(model, batch)
    assert found.rows.tolist() == [2, 3, 4, 5, 6]  # heads 2 and 3 look out of the prompt
    assert found.targeted.sum(0).tolist() == [3, 3, 3]
    assert found.paired.sum(0).tolist() == [3, 2, 1]
    assert IGNORE_INDEX not in found.ce
