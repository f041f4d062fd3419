"""Head 1 teaches the others: the fused loss against a plain one, masks, and whole runs."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    last_checkpoint,
    records,
    resume,
    same,
    train,
    weights,
)

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Example, pack_batch, pad_batch
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import read_jsonl
from weighted_mtp.data.tokens import row_tokens
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.losses import Distillation, LossTerms, distillation_loss, mask_untaught
from weighted_mtp.losses.mtp_loss import count_targets, shift_labels
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.add_heads import add_heads
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective
from weighted_mtp.pipelines.training.objectives.distil import frequent_tokens

rows_file = helpers_training.rows_file
ALL = {"ce": 0.3, "hard": 0.2, "kl": 0.7, "tv": 1.1}
B, S, N, D, V = 2, 9, 4, 8, 23


def inputs(dtype=torch.float64, scale=1.0):
    """States, unembedding and terms with holes, a head without weight, and the end of rows."""
    generator = torch.Generator().manual_seed(3)
    states = [
        torch.randn(B, S, D, generator=generator, dtype=torch.float64) * scale for _ in range(N)
    ]
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(V, (B, S + 1), generator=generator)
    labels[0, :3] = labels[1, 5] = IGNORE_INDEX
    targets = shift_labels(labels, N, length=S)
    targets = mask_untaught(targets, torch.ones(B, S, dtype=torch.bool))
    c = torch.tensor([0.0, 0.5, 0.3, 0.2], dtype=torch.float64)
    terms = LossTerms(targets, count_targets(targets), None, c)
    return [x.to(dtype) for x in states], weight.to(dtype), terms


def naive(states, weight, terms, kind):
    """The same loss with all logits `[B, S, n, V]` in memory, one token after the other."""
    logits = torch.stack([state @ weight.T for state in states], dim=2)
    total = 0.0
    for b, t, k in (terms.targets[..., 1:] != IGNORE_INDEX).nonzero().tolist():
        k += 1
        teacher, student, y = logits[b, t + k, 0].detach(), logits[b, t, k], terms.targets[b, t, k]
        tau = kind.temperature
        p, q = (teacher / tau).softmax(-1), (student / tau).softmax(-1)
        cut = p
        if kind.top_n is not None:
            kept = torch.zeros_like(p).scatter(0, p.topk(kind.top_n).indices, 1.0)
            cut = p * kept / (p * kept).sum()
        loss = kind.ce * F.cross_entropy(student, y)
        loss = loss + kind.hard * F.cross_entropy(student, teacher.argmax())
        kl = F.kl_div(q.log(), cut, reduction="sum")
        loss = loss + kind.kl * tau**2 * kl + kind.tv * (1 - torch.minimum(p, q).sum())
        total = total + terms.head_weights[k] * loss / terms.denominators[k]
    return total


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    "kind",
    [Distillation(**{name: 1.0}) for name in ALL]
    + [Distillation(kl=1.0, top_n=3), Distillation(**ALL, temperature=1.7, top_n=5)],
)
def test_the_fused_loss_is_the_plain_one(kind, frozen):
    results = []
    for compute in (naive, lambda *args: distillation_loss(*args, chunk_rows=4).loss):
        states, weight, terms = inputs()
        states = [state.requires_grad_() for state in states]
        weight.requires_grad_(not frozen)
        loss = compute(states, weight, terms, kind)
        loss.backward()
        results.append((loss.detach(), weight.grad, [state.grad for state in states]))
    (loss, gradient, of_states), (fused, fused_gradient, of_fused) = results
    torch.testing.assert_close(fused, loss, rtol=0, atol=1e-10)
    assert of_fused[0] is None or not of_fused[0].any()
    for one, other in zip(of_states[1:], of_fused[1:], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-10)
    if not frozen:
        torch.testing.assert_close(fused_gradient, gradient, rtol=0, atol=1e-10)


def test_what_is_reported_of_every_head():
    states, weight, terms = inputs()
    out = distillation_loss(states, weight, terms, Distillation(kl=1.0), chunk_rows=5)
    logits = torch.stack([state @ weight.T for state in states], dim=2)
    known = terms.targets != IGNORE_INDEX
    ce = F.cross_entropy(logits[known], terms.targets[known], reduction="none")
    torch.testing.assert_close(out.ce[known], ce, rtol=0, atol=1e-10)
    assert torch.equal(out.hit, (logits.argmax(-1) == terms.targets) & known)
    assert not out.ce[~known].any()
    assert not out.taught[~known].any()
    assert not out.taught[..., 0].any()
    total = (out.taught.sum((0, 1)) / terms.denominators * terms.head_weights).sum()
    torch.testing.assert_close(out.loss, total)


@pytest.mark.parametrize(
    "kind",
    [Distillation(**{name: 1.0}) for name in ALL] + [Distillation(**ALL, temperature=1.7, top_n=5)],
)
def test_part_of_the_vocabulary_is_the_plain_loss_of_its_rows(kind):
    vocabulary = torch.tensor([1, 2, 5, 7, 8, 11, 13, 17, 20, 22])
    results = []
    for fused in (False, True):
        states, weight, terms = inputs()
        states = [state.requires_grad_() for state in states]
        if fused:
            out = distillation_loss(states, weight, terms, kind, 4, vocabulary)
            loss = out.loss
        else:
            loss = 0.0
            inside = torch.isin(terms.targets, vocabulary)
            known = terms.targets != IGNORE_INDEX
            places = torch.searchsorted(vocabulary, terms.targets).clamp(max=9)
            for part, coefficients in (
                (inside, kind),
                (known & ~inside, kind._replace(ce=0.0, hard=0.0)),
            ):
                some = terms._replace(targets=torch.where(part, places * inside, IGNORE_INDEX))
                loss = loss + naive(states, weight[vocabulary], some, coefficients)
        loss.backward()
        results.append((loss.detach(), [state.grad for state in states]))
    (loss, of_states), (fused, of_fused) = results
    torch.testing.assert_close(fused, loss, rtol=0, atol=1e-10)
    for one, other in zip(of_states[1:], of_fused[1:], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-10)
    logits = torch.stack([state.detach() @ weight[vocabulary].T for state in states], dim=2)
    ce = F.cross_entropy(logits[inside], places[inside], reduction="none")
    torch.testing.assert_close(out.ce[inside], ce, rtol=0, atol=1e-10)
    assert not out.ce[~inside].any()
    assert not out.hit[~inside].any()


def test_the_whole_vocabulary_is_none():
    states, weight, terms = inputs()
    for kind in (Distillation(**ALL), Distillation(hard=1.0)):
        one = distillation_loss(states, weight, terms, kind)
        other = distillation_loss(states, weight, terms, kind, None, torch.arange(V))
        for x, y in zip(one, other, strict=True):
            assert torch.equal(x, y)
    with pytest.raises(ValueError, match="must be frozen"):
        distillation_loss(states, weight.requires_grad_(), terms, kind, None, torch.arange(3))


def test_the_most_frequent_tokens_and_eos():
    counts = np.array([3, 0, 5, 3, 1, 0, 9])
    assert frequent_tokens(counts, 3, {1}).tolist() == [1, 2, 6]
    assert frequent_tokens(counts, 3, {6}).tolist() == [0, 2, 6]
    assert frequent_tokens(counts, 3, {1, 5, 99}).tolist() == [1, 5, 6]
    assert frequent_tokens(counts, 1, {5}).tolist() == [5]
    assert frequent_tokens(counts, 100, {6}).tolist() == [0, 2, 3, 4, 6]


def test_targets_are_counted_without_prompts_and_holes(monkeypatch):
    monkeypatch.setattr(row_tokens, "_COUNTED", 2)
    rows = object.__new__(row_tokens.TokenisedRows)
    rows.rows = np.arange(3)
    rows._ids = np.array([1, 2, 3, 4, 5, 1, 1, 2, 2, 3, 4, 0], np.uint16)
    rows._offsets, rows._prompt_lengths = np.array([0, 5, 7, 12]), np.array([1, 2, 0], np.int32)
    rows._holes, rows._hole_offsets = np.array([2, 4, 1, 2, 3, 5], np.int32), np.array([0, 2, 2, 6])
    assert rows.target_counts(7).tolist() == [0, 0, 2, 1, 0, 1, 0]  # 2, 5; none; 2, 3


@pytest.mark.parametrize("sure", ["teacher", "student", "both"])
def test_confident_heads_in_bfloat16(sure):
    """Logits of hundreds: nothing overflows, and a sure teacher still gives the right gradient."""
    kind = Distillation(**ALL, top_n=5)
    exact, weight, terms = inputs(torch.bfloat16)
    for k, state in enumerate(exact):
        if sure == "both" or (k == 0) == (sure == "teacher"):
            state.mul_(60)
    if sure == "both":  # and of one mind
        for k in range(1, N):
            exact[k][:, : S - k] = exact[0][:, k:]
    grads = []
    for dtype in (torch.bfloat16, torch.float64):
        states = [state.detach().to(dtype, copy=True).requires_grad_() for state in exact]
        loss = distillation_loss(states, weight.to(dtype), terms, kind).loss
        loss.backward()
        assert loss.isfinite()
        grads.append(torch.stack([state.grad for state in states[1:]]).double())
    assert grads[0].isfinite().all()
    if sure == "teacher":  # else bfloat16 has other logits, by more than 1
        assert F.cosine_similarity(grads[0].flatten(), grads[1].flatten(), 0) > 0.99


def test_nothing_to_teach_gives_a_gradient_of_zero():
    states, weight, terms = inputs()
    states = [state[:, :1].clone().requires_grad_() for state in states]  # S = 1 < n
    targets = mask_untaught(terms.targets[:, :1], torch.ones(B, 1, dtype=torch.bool))
    assert (targets[..., 1:] == IGNORE_INDEX).all()
    counts = count_targets(targets)
    loss = distillation_loss(states, weight, LossTerms(targets, counts), Distillation(tv=1)).loss
    loss.backward()
    assert loss == 0
    assert not states[1].grad.any()


# --- in a training -------------------------------------------------------------------------------


def module_of(*changes):
    sets = ["model.path=unread", "data.train=unread", *changes]
    recipe = load_recipe("heads", None, sets)
    adapter = MetaLlamaMTPAdapter(tiny_model(tiny_args()).double())
    objective = make_objective(recipe.objective, adapter.args.n_future_tokens)
    return TrainingModule(adapter, objective)


def test_packing_changes_nothing():
    """A teacher is in the same document; a window's last targets have none."""
    module, generator = module_of(), torch.Generator().manual_seed(1)
    examples = [
        Example(torch.randint(30, (m,), generator=generator).tolist(), 2, False, i)
        for i, m in enumerate((9, 4, 7))
    ]
    losses = []
    for batch in (pad_batch(examples, 0), pack_batch([examples[:2], examples[2:]], 0)):
        denominators = module.objective.denominators(module.objective.counts(batch)[None])
        out = module(batch, "train", denominators)
        losses.append((out.loss, out.sums["heads"], out.sums["taught"]))
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other)
    part = Example(list(range(12)), 0, False, 0, inputs=8)  # tokens 9 … 11 are targets only
    targets = module.objective.make_targets(pack_batch([[part]], 0))[0]
    assert targets[7].tolist() == [8, IGNORE_INDEX, IGNORE_INDEX]
    assert targets[6].tolist() == [7, 8, IGNORE_INDEX]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, rows_file):
    """A model with the next-token head only, trained for a little."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    shape = {"model__architecture__n_layers": 2, "objective__heads": 1}
    quick = {"training__steps": 40, "training__validate_every": 40, "training__save_every": 40}
    assert train(run_dir, rows_file, "ntp", **shape, **quick) == 0
    return last_checkpoint(run_dir) / "model"


# For runs that are made longer: ten steps hold fewer rows for a fit than twenty.
COPY = {"model__head_start": "copy"}


def heads_of(plain, **changes):
    quick = {"training__steps": 20, "training__validate_every": 10, "training__save_every": 10}
    quick |= {"training__learning_rate": 0.01, "data__packing": True}
    return {"model__path": plain, "tokenizer__kind": "auto", "model__add_heads": 2} | (
        quick | changes
    )


def test_added_heads_learn_to_draft_and_the_model_stays(plain, tmp_path, rows_file):
    whole = tmp_path / "run"
    assert train(whole, rows_file, "heads", **heads_of(plain, training__validate_every=4)) == 0
    before, after = (
        load_meta_mtp_model(plain),
        load_meta_mtp_model(last_checkpoint(whole) / "model"),
    )
    assert after.args.n_future_tokens == 3
    start = dict(add_heads(before, 3).named_parameters())
    for name, weight in after.named_parameters():
        assert torch.equal(weight, start[name]) != name.startswith("extra_heads."), name
    checks = [r for r in records(whole) if r["kind"] == "validation"]
    for head in (1, 2):
        first, last = (r["head_acceptance_sampled"][head] for r in (checks[0], checks[-1]))
        assert last > first + 0.1, checks
    steps = [r for r in records(whole) if r["kind"] == "train"]
    assert steps[-1]["distil_loss"][0] < 0.7 * steps[0]["distil_loss"][0]
    assert steps[-1]["head_loss"][0] > 0
    assert steps[-1]["tokens"] > 0


def test_a_resumed_run_adds_nothing(plain, tmp_path, rows_file):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    change = {"training__schedule": "constant", "objective__distil__tv": 1, **COPY}
    assert train(whole, rows_file, "heads", **heads_of(plain, **change)) == 0
    assert train(parts, rows_file, "heads", **heads_of(plain, **change, training__steps=10)) == 0
    assert resume(parts, "--set", "training.steps=20") == 0
    assert same(weights(parts), weights(whole))
    assert resume(parts, "--set", "model.add_heads=3") == 2


def test_a_run_keeps_the_vocabulary_that_it_counted(plain, tmp_path, rows_file, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    change = {"training__schedule": "constant", "objective__distil__vocabulary": 12, **COPY}
    assert train(whole, rows_file, "heads", **heads_of(plain, **change)) == 0
    assert train(parts, rows_file, "heads", **heads_of(plain, **change, training__steps=10)) == 0
    assert resume(parts, "--set", "training.steps=20") == 0
    assert same(weights(parts), weights(whole))
    collator = AlpacaCollator(ByteTokenizer(), "short", 64)
    examples = [collator.encode(row) for row in read_jsonl(rows_file)]
    counts = Counter(token for e in examples for token in e.ids[e.prompt_length :])
    kept = json.loads((last_checkpoint(whole) / "trainer.json").read_text())["objective"]
    most = sorted(counts, key=lambda token: (token != 258, -counts[token], token))[:12]
    assert kept["vocabulary"] == sorted(most)
    for run_dir in (whole, parts):  # what the heads were not taught they do not draft
        ids = load_meta_mtp_model(run_dir, device="cpu").draft_ids
        assert ids is not None
        assert ids.tolist() == sorted(most)
    steps = [r for r in records(whole) if r["kind"] == "train"]
    check = [r for r in records(whole) if r["kind"] == "validation"][-1]
    assert check["head_loss"][0] > steps[-1]["head_loss"][0]  # of all tokens, not of 12
    assert resume(parts, "--set", "objective.distil.vocabulary=30") == 2
    assert "two objectives" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__add_heads": None}, "n is 1"),
        ({"training__adapt": "full"}, "training.adapt=heads"),
        ({"training__adapt": "lora"}, "--add-heads 2, and set model.path=START"),
        ({"objective__head_weights": [1, 1, 1]}, "objective.distil.beta"),
        ({"objective__distil__kl": 0, "objective__distil__hard": 0}, "objective.distil.kl=1"),
        (
            {"objective__distil__kl": 0, "objective__distil__tv": 1, "objective__distil__top_n": 2},
            "top_n is a setting of kl",
        ),
        ({"pipeline": "ntp", "objective__heads": 1}, "does not run in the ntp pipeline"),
    ],
)
def test_mistakes_take_a_line(plain, changes, said, tmp_path, rows_file, capsys):
    assert train(tmp_path / "run", rows_file, "heads", **heads_of(plain, **changes)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "run").exists()


def test_heads_are_not_added_twice(tmp_path, rows_file, capsys):
    save_native(
        add_heads(tiny_model(tiny_args(n_future_tokens=1, vocab_size=259)), 2), tmp_path / "model"
    )
    changes = heads_of(tmp_path / "model", tokenizer__kind="bytes")
    assert train(tmp_path / "run", rows_file, "heads", **changes) == 2
    assert "has 2 heads already" in capsys.readouterr().err
    scratch = {"model__add_heads": 2}
    assert train(tmp_path / "run", rows_file, "heads", **scratch) == 2
    assert "model.architecture.n_future_tokens" in capsys.readouterr().err
