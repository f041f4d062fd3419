"""What must hold for the training loop whatever it trains: how a step is cut changes nothing,
clipping clips, validation only looks, and a loss that is not finite never reaches the weights."""

import copy
import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    largest_difference,
    run_steps,
    state,
    tiny_recipe,
    tree,
)

from weighted_mtp.core.config.sections import ObjectiveConfig, TrainingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Example
from weighted_mtp.pipelines.planning.estimate import estimate
from weighted_mtp.pipelines.training.objectives import Objective
from weighted_mtp.pipelines.training.optimization import learning_rate
from weighted_mtp.pipelines.training.trainer import Trainer
from weighted_mtp.runtime.environment import rng_state

rows_file = helpers_training.rows_file

make_trainer = helpers_training.make_trainer


def gradients_at_the_update(trainer: Trainer, monkeypatch) -> dict[str, torch.Tensor]:
    """The gradients that the next optimizer step sees."""
    seen = {}
    original = trainer.optimizer.step

    def step():
        for name, parameter in trainer.module.named_parameters():
            seen[name] = parameter.grad.clone()
        original()

    monkeypatch.setattr(trainer.optimizer, "step", step)
    trainer.train_step()
    return seen


def norm_of(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


CURVE = {"training__steps": 20, "training__learning_rate": 3e-3, "training__micro_batch_size": 8}


@pytest.fixture
def uncut(make_trainer):
    """Curve and final weights of 20 steps of 8 rows in one piece."""
    trainer = make_trainer(**CURVE)
    return run_steps(trainer, 20), state(trainer)


@pytest.mark.parametrize(
    "change",
    [{"training__micro_batch_size": size} for size in (1, 2, 4)]
    + [{"training__loss_chunk_rows": rows} for rows in (1, 7, 64)]
    + [{"training__micro_batch_size": 2, "training__loss_chunk_rows": 5}],
    ids=lambda change: ", ".join(f"{k.split('__')[1]} {v}" for k, v in change.items()),
)
def test_how_a_step_is_cut_changes_nothing(change, make_trainer, uncut):
    trainer = make_trainer(**{**CURVE, **change})
    curve = run_steps(trainer, 20)
    weight_gap = largest_difference(state(trainer), uncut[1])
    loss_gap, norm_gap = (
        max(abs(a[key] - b[key]) for a, b in zip(curve, uncut[0], strict=True))
        for key in ("loss", "grad_norm")
    )
    print(f"largest difference: loss {loss_gap:.1e}, norm {norm_gap:.1e}, weights {weight_gap:.1e}")
    assert curve[-1]["loss"] < curve[0]["loss"] - 1
    assert loss_gap < 1e-5
    assert norm_gap < 1e-5
    assert weight_gap < 1e-5
    assert [c["tokens"] for c in curve] == [c["tokens"] for c in uncut[0]]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("multiple", [1, 8, 13])
def test_batches_are_padded_to_a_multiple(multiple, packing, make_trainer):
    sizes = {"data__pad_to_multiple": multiple, "data__max_length": 200}
    trainer = make_trainer(data__packing=packing, training__micro_batch_size=1, **sizes)
    widths = []
    for batch in next(trainer.reader):
        if batch.packing is None:
            filled = (batch.labels != IGNORE_INDEX).nonzero()[-1, 1]
        else:
            filled = (batch.packing.source >= 0).sum()
        widths.append((batch.tokens.shape[1], int(filled)))
    assert widths == [(-(-filled // multiple) * multiple, filled) for _, filled in widths]
    assert multiple == 1 or any(width > filled for width, filled in widths)


def test_clipping_clips(make_trainer, monkeypatch):
    trainer = make_trainer(training__clip_norm=0.25)
    seen = gradients_at_the_update(trainer, monkeypatch)
    assert norm_of(seen) == pytest.approx(0.25, rel=1e-4)


def test_a_small_gradient_is_not_clipped(make_trainer, monkeypatch):
    free = gradients_at_the_update(make_trainer(training__clip_norm=1e9), monkeypatch)
    trainer = make_trainer(training__clip_norm=0.25)
    clipped = gradients_at_the_update(trainer, monkeypatch)
    scale = 0.25 / norm_of(free)
    assert scale < 0.5
    for name in free:
        torch.testing.assert_close(clipped[name], free[name] * scale, rtol=1e-4, atol=1e-9)


def test_the_reported_norm_is_that_before_clipping(make_trainer, monkeypatch):
    free = norm_of(gradients_at_the_update(make_trainer(training__clip_norm=1e9), monkeypatch))
    assert make_trainer(training__clip_norm=0.25).train_step()["grad_norm"] == pytest.approx(free)


def test_weight_decay_spares_norms_and_embeddings(make_trainer):
    trainer = make_trainer(training__weight_decay=0.5)
    decay = {
        id(p): group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }
    names = dict(trainer.module.named_parameters())
    assert len(decay) == len(names)
    for name, parameter in names.items():
        spared = name.endswith("norm.weight") or "tok_embeddings" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.5), name


def test_weight_decay_takes_effect_where_there_is_no_gradient(make_trainer):
    trainer = make_trainer(training__weight_decay=0.5)
    before = state(trainer)
    for parameter in trainer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    factor = 1 - trainer.config.learning_rate * 0.5
    for name, weight in state(trainer).items():
        spared = name.endswith("norm.weight") or "tok_embeddings" in name
        torch.testing.assert_close(weight, before[name] * (1.0 if spared else factor))


@pytest.mark.parametrize(
    ("schedule", "after", "middle", "end"),
    [
        ("cosine", 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 80)), 0.55, 0.1),
        ("linear", 1 - 0.9 / 80, 0.55, 0.1),
        ("constant", 1.0, 1.0, 1.0),
    ],
)
def test_learning_rate(schedule, after, middle, end):
    config = TrainingConfig(
        steps=100,
        learning_rate=1.0,
        final_learning_rate=0.1,
        schedule=schedule,
        warmup_fraction=0.2,
    )
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20] == pytest.approx(after)  # the peak is step 19 alone
    assert rates[59] == pytest.approx(middle)
    assert rates[99] == end
    assert all(later <= earlier for earlier, later in pairwise(rates[19:]))
    assert learning_rate(0, config.model_copy(update={"warmup_fraction": 0.0})) == 1.0


def test_validation_only_looks(make_trainer):
    trainer = make_trainer()
    run_steps(trainer, 3)
    weights, optimizer = state(trainer), copy.deepcopy(trainer.optimizer.state_dict())
    generators = (rng_state()["cpu"], random.getstate(), np.random.get_state()[1].copy())
    figures = trainer.validate()
    assert trainer.validate() == figures
    assert all(torch.equal(w, weights[name]) for name, w in state(trainer).items())
    assert all(p.grad is None for p in trainer.parameters)
    after = trainer.optimizer.state_dict()
    assert after["param_groups"] == optimizer["param_groups"]
    for index, slot in optimizer["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in slot.items())
    assert torch.equal(rng_state()["cpu"], generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])


def test_validation_is_the_mean_over_tokens_however_it_is_cut(make_trainer):
    whole = make_trainer(training__micro_batch_size=8).validate()
    for size in (1, 4):
        cut = make_trainer(training__micro_batch_size=size).validate()
        assert cut["loss"] == pytest.approx(whole["loss"], abs=1e-6)
        assert cut["tokens"] == whole["tokens"]


def test_a_step_without_responses_has_zero_gradients(make_trainer, monkeypatch):
    prompts = [Example([257, 65, 66, 67], 4, truncated=True, row=i) for i in range(8)]
    trainer = make_trainer(train=prompts)
    figures = {}
    original = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda: figures.update(original()))
    seen = gradients_at_the_update(trainer, monkeypatch)
    assert figures["loss"] == figures["grad_norm"] == figures["tokens"] == 0
    assert all(torch.count_nonzero(gradient) == 0 for gradient in seen.values())


def test_an_empty_batch_is_a_graph_connected_zero(make_trainer):
    trainer = make_trainer()
    out = trainer.module(trainer.collator([]), "train", torch.ones(4))
    assert float(out.loss.detach()) == 0
    assert float(out.sums["heads"].abs().sum()) == 0
    out.loss.backward()
    for name, parameter in trainer.module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.count_nonzero(parameter.grad) == 0, name


@pytest.fixture(params=[math.nan, math.inf], ids=str)
def poisoned(request, make_trainer, monkeypatch):
    """A trainer that saves after step 2 and whose weights are spoiled before step 4; with it the
    weights just before that step."""
    trainer = make_trainer(training__save_every=2, training__max_skipped_steps=0)
    original, before = trainer.train_step, {}
    weight = trainer.module.adapter.transformer.layers[0].feed_forward.w1.weight

    def train_step():
        if trainer.step == 3:
            weight.detach()[0, 0] = request.param
            before.update(state(trainer))
        return original()

    monkeypatch.setattr(trainer, "train_step", train_step)
    return trainer, before


def test_a_loss_that_is_not_finite_stops_the_run(poisoned):
    trainer, before = poisoned
    with pytest.raises(UserError, match=r"step \d+: loss .* not finite") as caught:
        trainer.fit()
    report = next(trainer.run_dir.glob("nonfinite-step-*.json"))
    number = int(report.stem.rpartition("-")[2])
    assert str(report) in str(caught.value)
    assert f"step {number}:" in str(caught.value)
    assert json.loads(report.read_text())["step"] == number
    assert len(json.loads(report.read_text())["rows"]) == 8
    for name, weight in state(trainer).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)
    checkpoints = trainer.run_dir / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000002"]
    assert "COMPLETE" in tree(checkpoints / "step-00000002")


def test_the_step_that_is_not_finite_is_numbered_as_in_the_metrics(poisoned):
    trainer, _ = poisoned
    with pytest.raises(UserError):
        trainer.fit()
    logged = (trainer.run_dir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(logged[-1])["step"] == 3
    assert (trainer.run_dir / "nonfinite-step-4.json").exists()


PLAIN = ObjectiveConfig(name="uniform")


def test_head_weights_default_to_equal_shares():
    assert Objective(PLAIN, 4).head_weights.tolist() == [0.25] * 4
    given = PLAIN.model_copy(update={"head_weights": (1.0, 0.0)})
    assert Objective(given, 2).head_weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "given", [[1.0], [1.0, 1.0, 1.0], [0.0, 0.0], [1.0, -0.5], [math.nan, 1.0], [math.inf, 1.0]]
)
def test_head_weights_that_make_no_sense_are_refused(given):
    with pytest.raises(UserError, match=r"objective\.head_weights"):
        Objective(PLAIN.model_copy(update={"head_weights": given}), 2)


def test_head_weights_decide_which_heads_learn(make_trainer, monkeypatch):
    trainer = make_trainer(objective__head_weights="[1, 0, 0]")
    seen = gradients_at_the_update(trainer, monkeypatch)
    learning = {name for name, gradient in seen.items() if torch.count_nonzero(gradient)}
    assert not any("extra_heads" in name for name in learning)
    assert any("layers.1" in name for name in learning)


@pytest.mark.parametrize(
    "changes",
    [{}, {"objective__heads": 1}, {"model__architecture__tie_embeddings": True}],
    ids=["plain", "one head", "tied"],
)
def test_estimate_counts_what_is_there(changes, make_trainer):
    trainer = make_trainer(**changes)
    found = estimate(trainer.recipe)
    assert found.parameters == sum(p.numel() for p in trainer.module.parameters())
    assert found.tokens_per_step == 8 * 64
    size = sum(p.numel() * p.element_size() for p in trainer.parameters)
    memory = found.memory  # in the loss of the second of two micro-batches
    assert (memory.moment, memory.weights, memory.gradients) == ("loss", size, size)
    trainer.train_step()
    moments = [v for s in trainer.optimizer.state.values() for v in s.values() if v.ndim]
    assert memory.optimizer == sum(v.numel() * v.element_size() for v in moments)
    assert min(memory.activations, memory.loss) > 0
    assert memory.total == 4 * size + memory.activations + memory.loss


def test_estimate_follows_the_recipe(rows_file):
    base = estimate(tiny_recipe(rows_file))
    narrow = estimate(tiny_recipe(rows_file, runtime__compute_dtype="bfloat16"))
    wider = estimate(tiny_recipe(rows_file, training__micro_batch_size=8))
    one_head = estimate(tiny_recipe(rows_file, "ntp"))
    assert narrow.memory.activations < base.memory.activations
    assert narrow.memory.weights == base.memory.weights  # float32 master weights
    assert wider.memory.activations == 2 * base.memory.activations
    assert one_head.parameters == base.parameters
