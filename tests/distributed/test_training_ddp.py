"""Training on two processes is training on one: same curve, same weights, one set of files."""

import shutil
from pathlib import Path

import pytest
from tests.helpers import torchrun
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    checkpoint_names,
    largest_difference,
    last_checkpoint,
    records,
    resume,
    train,
    train_arguments,
    train_curve,
    weights,
)
from tests.integration.test_stored_states import heads, prepare, save

pytestmark = pytest.mark.distributed

rows_file = helpers_training.rows_file

RUN = {
    "training__steps": 10,
    "training__micro_batch_size": 2,
    "training__learning_rate": 3e-3,
    "training__save_every": 5,
    "training__validate_every": 5,
}


def train_on_two(run_dir: Path, rows: Path, **changes) -> str:
    return torchrun("-m", "weighted_mtp", "train", *train_arguments(run_dir, rows, **changes))


def assert_same_training(run_dir: Path, reference: Path, weight_gap: float = 1e-6) -> None:
    """Equal up to the order in which floats were added."""
    gaps = {
        key: max(
            abs(a - b)
            for a, b in zip(train_curve(run_dir, key), train_curve(reference, key), strict=True)
        )
        for key in ("loss", "grad_norm", "tokens", "learning_rate")
    }
    gaps["weights"] = largest_difference(weights(run_dir), weights(reference))
    held_out = [
        [r["loss"] for r in records(run) if r["kind"] == "validation"]
        for run in (run_dir, reference)
    ]
    gaps["validation"] = max(abs(a - b) for a, b in zip(*held_out, strict=True))
    print("largest differences:", {key: f"{gap:.1e}" for key, gap in gaps.items()})
    assert gaps["tokens"] == gaps["learning_rate"] == 0
    assert gaps["loss"] < 1e-5
    assert gaps["grad_norm"] < 1e-5
    assert gaps["validation"] < 1e-5
    assert gaps["weights"] < weight_gap


@pytest.mark.slow
def test_two_processes_train_on_stored_states(tmp_path, rows_file):
    """Three micro-batches of two: the second process gets an empty one, which has no states."""
    model, states = save(tmp_path / "model"), tmp_path / "states"
    assert prepare(model, rows_file, states) == 0
    cut = {"training__batch_size": 6, "training__micro_batch_size": 2}
    changes = heads(model, states, **cut, data__validation=rows_file)
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, rows_file, "heads", **changes) == 0
    torchrun("-m", "weighted_mtp", "train", *train_arguments(two, rows_file, "heads", **changes))
    assert_same_training(two, one, weight_gap=1e-4)


def steps_logged(run_dir: Path, kind: str) -> list[int]:
    return [r["step"] for r in records(run_dir) if r["kind"] == kind]


@pytest.mark.parametrize("batch_size", [6, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(batch_size, tmp_path, rows_file):
    """Cut in micro-batches of two, neither batch divides: the second process gets an empty one."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, rows_file, **RUN, training__batch_size=batch_size) == 0
    output = train_on_two(two, rows_file, **RUN, training__batch_size=batch_size)
    assert_same_training(two, one)

    # One rank writes.
    assert steps_logged(two, "train") == list(range(1, 11))
    assert steps_logged(two, "validation") == [5, 10]
    assert checkpoint_names(two) == ["step-00000005", "step-00000010"]
    assert {p.name for p in last_checkpoint(two).iterdir() if p.suffix == ".pt"} == {
        "optimizer.pt",
        "rng-0.pt",
        "rng-1.pt",
    }

    # Two processes, then one.
    shutil.rmtree(last_checkpoint(two))
    assert resume(two) == 0
    assert_same_training(two, one)

    # One rank speaks.
    assert output.count("step 10  validation") == 1
    assert output.count("done: 10 steps") == 1


@pytest.mark.slow
def test_one_process_then_two(tmp_path, rows_file):
    """With gradients added up over two micro-batches on each."""
    run_dir, reference = tmp_path / "run", tmp_path / "one"
    assert train(reference, rows_file, **RUN) == 0
    shutil.copytree(reference, run_dir)
    shutil.rmtree(last_checkpoint(run_dir))
    torchrun("-m", "weighted_mtp", "train", "--resume", "--output-dir", str(run_dir))
    assert_same_training(run_dir, reference)
    assert steps_logged(run_dir, "train") == list(range(1, 11))


@pytest.mark.slow
def test_a_mistake_ends_both_processes(tmp_path, rows_file):
    with pytest.raises(AssertionError, match=r"error: objective.head_weights \[1.0, 1.0\]") as end:
        train_on_two(tmp_path / "run", rows_file, objective__head_weights="[1, 1]")
    assert "no end within" not in str(end.value)
    assert not (tmp_path / "run").exists()
