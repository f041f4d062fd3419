"""What the loop does besides stepping: skips what is not finite, keeps the best, stops early."""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    SMALL,
    checkpoint_names,
    last_checkpoint,
    records,
    resume,
    run_steps,
    same,
    state,
    train,
    tree,
)

from weighted_mtp.core.config.sections import EarlyStopping, TrainingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.training.policies import BestCheckpoints
from weighted_mtp.pipelines.training.trainer import Trainer

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer

LM = {"objective__value__trunk": "all", "objective__value__lm_coef": 1.0}
EMA = {"objective__td__whiten": "ema"}
KINDS = {
    "baseline": {},
    "critic": LM,
    "verifiable": EMA,
    "rho1": {"objective__scope": "step"},
}


def poison(monkeypatch, trainer: Trainer, steps: set[int], factor: float = math.nan) -> None:
    """Spoil the loss of these steps (counted from 1)."""
    forward = trainer.module.forward

    def spoiled(batch, task="train", *args):
        out = forward(batch, task, *args)
        bad = task == "train" and trainer.step + 1 in steps
        return out._replace(loss=out.loss * factor) if bad else out

    monkeypatch.setattr(trainer.module, "forward", spoiled)


def optimizer_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    slots = trainer.optimizer.state_dict()["state"]
    found = {f"{i}.{name}": x for i, slot in slots.items() for name, x in slot.items()}
    return copy.deepcopy(found)


# --- steps that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_touches_nothing(kind, factor, make_trainer, monkeypatch):
    trainer = make_trainer(kind, **KINDS[kind], **SMALL)
    poison(monkeypatch, trainer, {3}, factor)
    run_steps(trainer, 2)
    before = (state(trainer), optimizer_state(trainer), trainer.objective.state_dict())
    figures = run_steps(trainer, 1)[0]
    assert same(state(trainer), before[0])
    assert same(optimizer_state(trainer), before[1])
    assert trainer.objective.state_dict() == before[2]
    assert all(p.grad is None for p in trainer.parameters)
    assert figures["skipped"] == 1
    assert figures["tokens"] == 0
    assert not math.isfinite(figures["loss"])
    assert "skipped" not in run_steps(trainer, 1)[0]
    assert not same(state(trainer), before[0])


def test_a_gradient_alone_is_enough(make_trainer, monkeypatch):
    trainer = make_trainer(**SMALL)
    poison(monkeypatch, trainer, set())
    trainer.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    before = state(trainer)
    figures = run_steps(trainer, 1)[0]
    assert math.isfinite(figures["loss"])
    assert figures["skipped"] == 1
    assert same(state(trainer), before)


def test_later_steps_are_as_if_nothing_had_been(make_trainer, monkeypatch):
    """The step that was skipped is over: its rows are not read again."""
    trainer = make_trainer(training__steps=6, training__schedule="constant", **SMALL)
    other = make_trainer(training__steps=6, training__schedule="constant", **SMALL)
    poison(monkeypatch, trainer, {2})
    for step in (0, 1, 2, 3):
        trainer.train_step()
        trainer.step += 1
        other.step = step
        if step != 1:
            other.train_step()
        else:
            next(other.reader)
    assert same(state(trainer), state(other))


def test_one_too_many_ends_the_run(make_trainer, monkeypatch):
    trainer = make_trainer(training__max_skipped_steps=2, training__save_every=1, **SMALL)
    poison(monkeypatch, trainer, {2, 4, 5})
    with pytest.raises(UserError, match=r"step 5: .*not finite.* 2 steps were skipped before"):
        trainer.fit()
    assert trainer.skipped.count == 3
    assert last_checkpoint(trainer.run_dir).name == "step-00000004"
    reader, size = trainer.reader, trainer.reader.groups_per_step
    for number in (2, 4, 5):
        examples = [e for (e,) in reader.groups.take((number - 1) * size, size)]
        report = json.loads((trainer.run_dir / f"nonfinite-step-{number}.json").read_text())
        assert report["step"] == number
        assert report["rows"] == [e.row for e in examples]
        assert report["task_ids"] == [e.task_id for e in examples]
    logged = {r["step"]: r.get("skipped") for r in records(trainer.run_dir) if r["kind"] == "train"}
    assert logged == {1: None, 2: 1, 3: None, 4: 2}


def test_a_save_in_the_background_is_completed_before_the_end(make_trainer, monkeypatch):
    trainer = make_trainer(training__max_skipped_steps=0, **SMALL)
    poison(monkeypatch, trainer, {2})
    settled = []
    monkeypatch.setattr(trainer.saver, "settle", lambda: settled.append(trainer.step))
    with pytest.raises(UserError, match=r"step 2: .*not finite"):
        trainer.fit()
    assert settled == [1]


def test_the_count_survives_a_resume(tmp_path, rows_file, monkeypatch, capsys):
    """Two of four bad steps before, two after: with three allowed the last is one too many."""
    original = Trainer.train_step

    def train_step(self):
        poison(monkeypatch, self, {2, 3, 5, 6}) if "forward" not in vars(self.module) else None
        if self.step == 4 and not resumed:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    change = {"training__max_skipped_steps": 3, "training__save_every": 2, **SMALL}
    resumed = False
    assert train(tmp_path / "run", rows_file, **change) == 130
    saved = json.loads((last_checkpoint(tmp_path / "run") / "trainer.json").read_text())
    assert saved["skipped"] == {"count": 2}
    resumed = True
    assert resume(tmp_path / "run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step 6" in error
    assert "3 steps were skipped before" in error


# --- the best ------------------------------------------------------------------------------------


def scripted(monkeypatch, trainer: Trainer, values: list[float], name: str = "loss") -> None:
    """Validations that find these figures, one after another."""
    ahead = iter(values)
    monkeypatch.setattr(
        trainer, "validate", lambda: {"head_loss": [1.0], name: next(ahead)} | WORDS
    )


WORDS = {"head_loss": [1.0], "head_accuracy": [0.5]}
LOSSES = [5, 3, 4, 2, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("keep_best", "mode", "kept"),
    [(0, "min", {7, 8}), (1, "min", {4, 7, 8}), (2, "min", {2, 4, 7, 8}), (3, "max", {6, 7, 8})],
)
def test_the_best_are_kept_beside_the_last(keep_best, mode, kept, make_trainer, monkeypatch):
    change = {"training__keep_best": keep_best, "training__monitor_mode": mode}
    often = {"training__validate_every": 1, "training__save_every": 1}
    trainer = make_trainer(training__keep_last=2, **change, **often, **SMALL)
    scripted(monkeypatch, trainer, LOSSES)
    trainer.fit()
    assert checkpoint_names(trainer.run_dir) == [f"step-{step:08d}" for step in sorted(kept)]


def test_the_best_is_saved_though_it_is_not_its_turn(make_trainer, monkeypatch):
    change = {"training__keep_best": 1, "training__keep_last": 1, "training__save_every": 100}
    trainer = make_trainer(training__validate_every=1, **change, **SMALL)
    scripted(monkeypatch, trainer, LOSSES)
    trainer.fit()
    assert checkpoint_names(trainer.run_dir) == ["step-00000004", "step-00000008"]


def test_another_figure_may_decide(make_trainer, monkeypatch):
    change = {"training__monitor": "auc_at_50", "training__monitor_mode": "max"}
    trainer = make_trainer(
        training__keep_best=1, training__keep_last=1, training__validate_every=1, **change, **SMALL
    )
    scripted(monkeypatch, trainer, [0.5, 0.6, 0.9, 0.7, 0.2, 0.1, 0.1, 0.1], "auc_at_50")
    trainer.fit()
    assert checkpoint_names(trainer.run_dir) == ["step-00000003", "step-00000008"]


def test_the_last_step_is_validated_though_it_is_not_its_turn(make_trainer, monkeypatch):
    trainer = make_trainer(training__validate_every=4, training__steps=6, **SMALL)
    scripted(monkeypatch, trainer, [1.0, 2.0])
    result = trainer.fit()
    seen = [(r["step"], r["loss"]) for r in records(trainer.run_dir) if r["kind"] == "validation"]
    assert seen == [(4, 1.0), (6, 2.0)]
    assert result.validation["loss"] == 2.0


def test_a_figure_that_is_not_there_is_named_with_those_that_are(make_trainer):
    trainer = make_trainer(training__monitor="los", training__validate_every=1, **SMALL)
    with pytest.raises(UserError, match=r"training\.monitor 'los'.* loss") as caught:
        trainer.fit()
    assert "\n" not in str(caught.value)


def test_a_figure_that_is_not_a_number_is_no_improvement():
    best = BestCheckpoints(TrainingConfig(keep_best=2, early_stopping=EarlyStopping(patience=2)))
    kept = [best.observe(i, {"loss": x}) for i, x in enumerate([2.0, math.nan, 1.0, math.nan])]
    assert kept == [True, False, True, False]
    assert best.steps == {0, 2}
    assert not best.exhausted
    best.observe(4, {"loss": 1.5})
    assert best.exhausted


@pytest.mark.parametrize("null", [None, math.nan])
def test_a_figure_that_is_null_from_the_start_does_not_stop_training(null):
    best = BestCheckpoints(TrainingConfig(keep_best=1, early_stopping=EarlyStopping(patience=1)))
    assert not any(best.observe(i, {"loss": null}) for i in range(3))
    assert not best.exhausted
    assert best.observe(3, {"loss": 2.0})
    best.observe(4, {"loss": null})  # now it means that the model diverged
    assert best.exhausted


def test_a_list_cannot_be_monitored():
    best = BestCheckpoints(TrainingConfig(monitor="head_loss"))
    with pytest.raises(UserError, match=r"head_loss' is not a number of the validation.* loss"):
        best.observe(1, {"loss": 1.0, "head_loss": [1.0, 2.0]})


# --- early stopping ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "min_delta", "stops_after"), [(2, 0, 6), (1, 0, 3), (4, 0, 8), (2, 1.5, 4)]
)
def test_it_stops_when_nothing_improves(
    patience, min_delta, stops_after, make_trainer, monkeypatch
):
    early = f"{{patience: {patience}, min_delta: {min_delta}}}"
    trainer = make_trainer(training__early_stopping=early, training__validate_every=1, **SMALL)
    scripted(monkeypatch, trainer, LOSSES)
    result = trainer.fit()
    assert (result.step, result.finished) == (stops_after, True)
    assert result.checkpoint == last_checkpoint(trainer.run_dir)
    assert result.checkpoint.name == f"step-{stops_after:08d}"


def test_a_run_that_stopped_early_is_over(tmp_path, rows_file, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    losses = iter(LOSSES)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", lambda self: {**WORDS, "loss": next(losses)})
        change = {"training__early_stopping": "{patience: 2}", "training__validate_every": 1}
        assert train(run_dir, rows_file, **change, **SMALL) == 0
    assert "done: 6 steps" in capsys.readouterr().out
    before = tree(run_dir)
    assert resume(run_dir) == 0
    assert "done: 6 steps" in capsys.readouterr().out
    assert tree(run_dir) == before
    more = ["--set", "training.early_stopping.patience=100"]  # a change of mind
    assert resume(run_dir, *more) == 0
    assert records(run_dir)[-1]["step"] == 8


def test_patience_survives_a_resume():
    config = TrainingConfig(keep_best=2, early_stopping=EarlyStopping(patience=3))
    whole, first = BestCheckpoints(config), BestCheckpoints(config)
    for step, loss in enumerate(LOSSES[:5]):
        whole.observe(step, {"loss": loss})
        first.observe(step, {"loss": loss})
        second = BestCheckpoints(config)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        first = second
    assert vars(first) == vars(whole)


# --- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_nothing(kind, make_trainer):
    runs = []
    for how in ("none", "selective", "full"):
        trainer = make_trainer(kind, **KINDS[kind], **SMALL, training__activation_checkpointing=how)
        calls = []
        attention = trainer.module.adapter.transformer.layers[0].attention
        attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        curve = [(f["loss"], f["grad_norm"]) for f in run_steps(trainer, 4)]
        runs.append((curve, state(trainer), len(calls)))
    backward = 8  # two micro-batches a step
    for curve, weights, calls in runs[1:]:
        assert curve == runs[0][0]
        assert same(weights, runs[0][1])
        assert calls - runs[0][2] == backward


@pytest.mark.parametrize("kind", KINDS)
def test_validation_only_looks(kind, make_trainer):
    trainer = make_trainer(kind, **KINDS[kind], **SMALL)
    run_steps(trainer, 3)
    before = (
        state(trainer),
        optimizer_state(trainer),
        copy.deepcopy(trainer.objective.state_dict()),
    )
    generators = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    figures = trainer.validate()
    assert trainer.validate() == figures
    assert same(state(trainer), before[0])
    assert same(optimizer_state(trainer), before[1])
    assert trainer.objective.state_dict() == before[2]
    assert all(p.grad is None for p in trainer.parameters)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_with_and_without_validation(kind, make_trainer):
    runs = []
    for looks in (False, True):
        trainer = make_trainer(kind, **KINDS[kind], **SMALL)
        for _ in range(4):
            run_steps(trainer, 1)
            if looks:
                trainer.validate()
        runs.append(state(trainer))
    assert same(*runs)
