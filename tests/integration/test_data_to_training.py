"""From a file as it is found to a training that reads it."""

import json

import pytest
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    last_checkpoint,
    records,
    resume,
    train,
    train_curve,
    weights,
)

from weighted_mtp.cli.main import main

rows_file = helpers_training.rows_file


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """MBPP's published form, three problems and one that is broken."""
    folder = tmp_path_factory.mktemp("mbpp")
    problems = [
        {
            "task_id": 600 + i,
            "text": f"Write a function to add {i}.",
            "code": f"def add_{i}(x):\r\n\treturn x + {i}",
            "test_list": [f"assert add_{i}(1) == {1 + i}"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
        for i in range(1, 4)
    ]
    lines = [json.dumps(problem) for problem in problems] + ["{"]
    (folder / "train.jsonl").write_text("\n".join(lines))
    source, out = str(folder / "train.jsonl"), str(folder / "out")
    assert main(["prepare", "mbpp", "--source", source, "--out", out]) == 0
    return folder / "out"


def test_what_was_prepared_can_be_trained_on(prepared, tmp_path):
    assert len((prepared / "rejected.jsonl").read_text().splitlines()) == 1
    rows = prepared / "train.jsonl"
    assert train(tmp_path / "run", rows, training__steps=3, data__max_length=256) == 0
    curve = train_curve(tmp_path / "run")
    assert curve[-1] < curve[0]


def test_packed_training_is_the_padded_one_with_less_padding(rows_file, tmp_path):
    for name, packing, workers in (("padded", False, 0), ("packed", True, 1)):
        changes = {"data__packing": packing, "data__workers": workers, "data__max_length": 200}
        assert train(tmp_path / name, rows_file, **changes) == 0
    padded, packed = train_curve(tmp_path / "padded"), train_curve(tmp_path / "packed")
    assert packed == pytest.approx(padded, abs=2e-4)
    waste = [train_curve(tmp_path / name, "padding") for name in ("padded", "packed")]
    assert sum(waste[1]) < 0.5 * sum(waste[0])


def test_every_strategy_trains(rows_file, tmp_path):
    thirds = "{strategy: difficulty, bins: {a: {labels: [easy]}}, weights: {a: 1, other: 3}}"
    for i, sampling in enumerate(("{strategy: balanced}", thirds, "{n_samples: 5}")):
        changes = {"data__sampling": sampling, "objective__rows": "all", "training__steps": 4}
        assert train(tmp_path / str(i), rows_file, **changes) == 0


TEXT = {
    "data__source": "text",
    "data__packing": True,
    "data__train": None,
    "data__validation": None,
    "data__max_length": 33,
    "training__steps": 4,
    "training__batch_size": 4,
    "training__micro_batch_size": 2,
}


def test_pretraining_on_a_folder_of_text(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"file {i}: " + "the same words " * (i % 9))
    changes = {**TEXT, "data__text__path": tmp_path, "data__text__validation_fraction": 0.2}
    run = tmp_path / "run"
    assert train(run, tmp_path / "unused", "pretrain", **changes) == 0
    steps = [r for r in records(run) if r["kind"] == "train"]
    assert all(step["padding"] == 0 for step in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    held_out = [r for r in records(run) if r["kind"] == "validation"]
    assert len(held_out[-1]["head_loss"]) == 3
    assert main(["evaluate", str(run), "--n-problems", "2"]) == 0


def test_another_batch_size_on_resume_goes_on_at_the_same_row(rows_file, tmp_path):
    """Rows are counted, not steps: four steps of four rows, then two of eight are one epoch."""
    sixteen = {"training__batch_size": 4, "training__save_every": 4, "training__steps": 6}
    assert train(tmp_path / "run", rows_file, **sixteen) == 0
    for path in (tmp_path / "run" / "checkpoints").glob("step-00000006"):
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    assert resume(tmp_path / "run", "--set", "training.batch_size=8") == 0
    state = tmp_path / "run" / "checkpoints" / "step-00000006" / "trainer.json"
    assert json.loads(state.read_text())["reader"]["position"] == 4 * 4 + 2 * 8
    assert weights(tmp_path / "run")


def test_more_steps_on_resume_keep_the_order_that_was_planned(rows_file, tmp_path):
    """A curriculum's borders stay where they were; beyond its end the last stage continues."""
    stages = "[{until: 0.5, weights: {a: 1}}, {until: 1, weights: {other: 1}}]"
    sampling = f"{{strategy: curriculum, bins: {{a: {{labels: [easy]}}}}, stages: {stages}}}"
    run = tmp_path / "run"
    assert train(run, rows_file, data__sampling=sampling, training__steps=4) == 0
    position = json.loads((last_checkpoint(run) / "trainer.json").read_text())["reader"]
    assert position == {"position": 32, "planned": 32}
    assert resume(run, "--set", "training.steps=7") == 0
    position = json.loads((last_checkpoint(run) / "trainer.json").read_text())["reader"]
    assert position == {"position": 56, "planned": 32}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__joint": True}, "data.joint has no effect with data.source text"),
        ({"data__sampling": "{strategy: balanced}"}, "data.sampling has no effect"),
        ({"data__text__path": "/no/such/folder"}, "no such file or folder; set data.text.path"),
        ({"data__max_length": 4096}, "exceeds the model's 1024 positions"),
    ],
)
def test_a_mistake_about_text_is_one_line(changes, words, tmp_path, capsys):
    for more in ((), ("--dry-run",)):
        arguments = helpers_training.train_arguments(
            tmp_path / "run", tmp_path / "x", "pretrain", **{**TEXT, **changes}
        )
        assert main(["train", *arguments, *more]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
