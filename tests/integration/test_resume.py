"""A run that was stopped and resumed is bit for bit the run that was never stopped."""

import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    checkpoint_names,
    interrupt,
    last_checkpoint,
    optimizer_tensors,
    records,
    resume,
    same,
    train,
    train_arguments,
    tree,
    weights,
)

from weighted_mtp.pipelines import checkpoint_utils
from weighted_mtp.pipelines.trainer import Trainer

rows_file = helpers_training.rows_file

RECIPES = ("baseline", "ntp")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rows_file) -> dict[str, Path]:
    """For each recipe a run of 8 steps that nothing disturbed; it saved after 3, 6 and 8."""
    runs = {}
    for recipe in RECIPES:
        runs[recipe] = tmp_path_factory.mktemp("whole") / recipe
        assert train(runs[recipe], rows_file, recipe) == 0
    return runs


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the library catches it, what is on disk stays."""


@pytest.fixture
def half_way(tmp_path, rows_file, monkeypatch) -> Path:
    """A baseline run that died in step 7; its checkpoints are those of steps 3 and 6."""
    run_dir = tmp_path / "half"
    with monkeypatch.context() as patch:
        die_in_step(patch, 7)
        with pytest.raises(Killed):
            train(run_dir, rows_file)
    assert checkpoint_names(run_dir) == ["step-00000003", "step-00000006"]
    return run_dir


def die_in_step(monkeypatch, step: int) -> None:
    original = Trainer.train_step

    def train_step(self):
        if self.step + 1 == step:
            raise Killed
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def assert_same_run(resumed: Path, undisturbed: Path) -> None:
    assert same(weights(resumed), weights(undisturbed))
    assert same(optimizer_tensors(resumed), optimizer_tensors(undisturbed))
    generators = [
        torch.load(last_checkpoint(run) / "rng-0.pt", weights_only=True)
        for run in (resumed, undisturbed)
    ]
    assert same(*generators)
    assert records(resumed) == records(undisturbed)
    assert [p for p in checkpoint_names(resumed) if p.endswith(".partial")] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_ctrl_c_saves_and_resume_goes_on(recipe, tmp_path, rows_file, whole):
    run_dir = tmp_path / "run"
    output = interrupt(run_dir, train_arguments(run_dir, rows_file, recipe), signal.SIGINT, 3)
    assert "Traceback" not in output
    assert f"weighted-mtp train --resume --output-dir {run_dir}" in output
    stopped_after = records(run_dir)[-1]["step"]
    assert 3 <= stopped_after < 8
    assert last_checkpoint(run_dir).name == f"step-{stopped_after:08d}"
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole[recipe])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("after_step", [1, 5])
def test_kill_nine_costs_nothing(recipe, after_step, tmp_path, rows_file, whole):
    run_dir = tmp_path / "run"
    interrupt(run_dir, train_arguments(run_dir, rows_file, recipe), signal.SIGKILL, after_step)
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole[recipe])


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(10))
def test_kill_nine_at_a_random_moment(trial, tmp_path, rows_file, whole):
    run_dir, recipe = tmp_path / "run", RECIPES[trial % 2]
    arguments = train_arguments(run_dir, rows_file, recipe)
    interrupt(run_dir, arguments, signal.SIGKILL, random.randint(1, 6))
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole[recipe])


@pytest.mark.parametrize("step", [1, 2, 4, 7, 8])
def test_death_in_any_step(step, tmp_path, rows_file, whole, monkeypatch):
    with monkeypatch.context() as patch:
        die_in_step(patch, step)
        with pytest.raises(Killed):
            train(tmp_path / "run", rows_file)
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole["baseline"])


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("save_model", 2),
        ("torch.save", 3),  # optimizer of step 6
        ("torch.save", 4),  # generators of step 6
        ("shutil.rmtree", 4),  # the marker of step 6 is set, its directory not yet renamed
        ("shutil.rmtree", 7),  # the checkpoint of step 3 has lost its marker, but is there
    ],
)
def test_death_while_saving(call, number, tmp_path, rows_file, whole, monkeypatch):
    calls = 0
    owner, _, name = call.rpartition(".")
    place = getattr(checkpoint_utils, owner) if owner else checkpoint_utils
    original = getattr(place, name)

    def dies(*args, **kwargs):
        nonlocal calls
        ours = name != "rmtree" or "step-" in str(args[0])
        calls += ours
        if ours and calls == number:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, dies)
        with pytest.raises(Killed):
            train(tmp_path / "run", rows_file)
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole["baseline"])
    assert checkpoint_names(tmp_path / "run") == ["step-00000006", "step-00000008"]


def test_death_twice(half_way, whole, monkeypatch):
    with monkeypatch.context() as patch:
        die_in_step(patch, 8)
        with pytest.raises(Killed):
            resume(half_way)
    assert resume(half_way) == 0
    assert_same_run(half_way, whole["baseline"])


def test_a_cut_metrics_line_is_written_again(half_way, whole):
    with (half_way / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 7, "lo')
    assert resume(half_way) == 0
    assert_same_run(half_way, whole["baseline"])


@pytest.mark.parametrize("remains", ["no marker", "partial"])
def test_a_half_written_checkpoint_is_ignored(remains, half_way, whole):
    newest = last_checkpoint(half_way)
    broken = newest.with_name("step-00000007" + (".partial" if remains == "partial" else ""))
    shutil.copytree(newest, broken)
    (broken / "COMPLETE").unlink()
    (broken / "optimizer.pt").write_bytes(b"")
    assert resume(half_way) == 0
    assert same(weights(half_way), weights(whole["baseline"]))
    assert records(half_way) == records(whole["baseline"])


def test_resuming_a_finished_run_changes_nothing(half_way, capsys):
    assert resume(half_way) == 0
    before = tree(half_way)
    assert resume(half_way) == 0
    assert "done: 8 steps" in capsys.readouterr().out
    assert tree(half_way) == before


def test_resume_of_nothing_is_refused(tmp_path, capsys):
    assert resume(tmp_path / "absent") == 2
    assert "no run to resume" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


def test_resume_as_another_recipe_is_refused(half_way, capsys):
    before = tree(half_way)
    assert resume(half_way, "--recipe", "ntp") == 2
    assert "is a baseline run; it cannot resume as ntp" in capsys.readouterr().err
    assert tree(half_way) == before
    assert resume(half_way, "--recipe", "baseline") == 0


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "absent"])
@pytest.mark.parametrize("name", ["optimizer.pt", "rng-0.pt", "trainer.json"])
def test_a_damaged_file_is_named(name, damage, half_way, capsys):
    if (name, damage) == ("rng-0.pt", "absent"):
        pytest.skip("a rank that was not there before starts from its seed")
    path = last_checkpoint(half_way) / name
    content = path.read_bytes()
    replaced = {"cut": content[: len(content) // 2], "text": b"not what it was\n", "empty": b""}
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(replaced[damage])
    capsys.readouterr()
    before = tree(half_way)
    assert resume(half_way) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert str(path) in error
    assert tree(half_way) == before


def test_a_resumed_run_can_be_made_longer(half_way):
    assert resume(half_way, "--set", "training.steps=10") == 0
    assert [r["step"] for r in records(half_way) if r["kind"] == "train"] == list(range(1, 11))
    assert "steps: 10" in (half_way / "config.yaml").read_text()  # or the next resume forgets it
