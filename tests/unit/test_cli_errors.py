"""Every mistake a person makes at the command line ends in one line that says what is wrong, and in
status 2; a start that fails leaves nothing behind that would stand in the way of the next one."""

import json
import re
from pathlib import Path

import pytest
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import train, train_arguments, tree

from weighted_mtp.cli.main import main
from weighted_mtp.models.meta_mtp.checkpoints import save_native

rows_file = helpers_training.rows_file

ROW = {"instruction": "add 1 and 2", "output": "return 3", "is_correct": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A native checkpoint of 3 heads, 37 tokens and 32 positions, without a tokenizer."""
    path = tmp_path_factory.mktemp("models") / "small"
    save_native(tiny_model(tiny_args()), path)
    return path


@pytest.fixture(scope="module")
def byte_checkpoint(tmp_path_factory) -> Path:
    """The same with 259 tokens, enough for bytes."""
    path = tmp_path_factory.mktemp("models") / "bytes"
    save_native(tiny_model(tiny_args(vocab_size=259, max_seq_len=64)), path)
    return path


def one_error(capsys, *words: str) -> str:
    """The single line on standard error, which holds all `words`."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    return lines[0]


def write_rows(path: Path, *lines: str | dict) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n")
    return path


SETTINGS = {
    "unknown section": ({"nonsense": 1}, ["unknown key nonsense"]),
    "unknown key": ({"training__stepps": 3}, ["training.stepps", "did you mean training.steps?"]),
    "not a number": ({"training__learning_rate": "fast"}, ["training.learning_rate", "'fast'"]),
    "out of range": ({"training__steps": 0}, ["training.steps", "greater than 0"]),
    "fraction": ({"training__steps": 1.5}, ["training.steps"]),
    "scalar for a section": ({"training": 3}, ["training"]),
    "not a choice": ({"training__schedule": "cosin"}, ["training.schedule", "cosine"]),
    "batch not cut evenly": ({"training__micro_batch_size": 3}, ["batch_size (8)", "(3)"]),
    "no data": ({"data__train": "null"}, ["data.train"]),
    "absent model": ({"model__path": "/absent/model"}, ["/absent/model"]),
    "head width": ({"model__architecture__n_heads": 5}, ["n_heads (5)"]),
    "negative width": ({"model__architecture__ffn_dim_multiplier": -1}, ["ffn_dim_multiplier"]),
    "zero width": ({"model__architecture__ffn_dim_multiplier": 0}, ["ffn_dim_multiplier"]),
    "more heads than blocks": ({"objective__heads": 5}, ["(5)", "n_layers (4)"]),
    "too few head weights": ({"objective__head_weights": "[1, 1]"}, ["objective.head_weights"]),
    "negative head weight": ({"objective__head_weights": "[1, -1, 1]"}, ["head_weights"]),
    "infinite head weight": ({"objective__head_weights": "[.inf, 1, 1]"}, ["head_weights"]),
    "beta above one": ({"training__betas": "[0.9, 1.5]"}, ["training.betas"]),
    "infinite learning rate": ({"training__learning_rate": ".inf"}, ["training.learning_rate"]),
    "negative seed": ({"runtime__seed": -1}, ["runtime.seed"]),
    "huge seed": ({"runtime__seed": 10**20}, ["runtime.seed"]),
    "no such device": ({"runtime__device": "gpu"}, ["device 'gpu'", "cpu"]),
    "device that cannot train": ({"runtime__device": "meta"}, ["device 'meta'"]),
    "device of another build": ({"runtime__device": "xpu"}, ["device 'xpu'"]),
    "max_length beyond positions": ({"data__max_length": 1025}, ["1025", "1024 positions"]),
    "auto tokenizer from scratch": ({"tokenizer__kind": "auto"}, ["tokenizer.kind auto"]),
    "absent tokenizer": (
        {"tokenizer__kind": "sentencepiece", "tokenizer__path": "/absent.model"},
        ["/absent.model"],
    ),
    "absent rows": ({"data__train": "/absent.jsonl"}, ["/absent.jsonl", "cannot be read"]),
    "absent validation rows": ({"data__validation": "/absent.jsonl"}, ["/absent.jsonl"]),
    "a folder of rows": ({"data__train": "/tmp"}, ["/tmp", "it is a folder"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_setting(case, tmp_path, rows_file, capsys):
    changes, words = SETTINGS[case]
    assert train(tmp_path / "run", rows_file, **changes) == 2
    one_error(capsys, *words)
    assert list(tmp_path.iterdir()) == []


# What can be known without reading the rows, a dry run says too.
@pytest.mark.parametrize(
    "case",
    [
        "unknown key",
        "head width",
        "more heads than blocks",
        "too few head weights",
        "no such device",
        "max_length beyond positions",
        "absent model",
        "absent rows",
        "absent validation rows",
    ],
)
def test_dry_run_finds_it_too(case, tmp_path, rows_file, capsys):
    changes, words = SETTINGS[case]
    arguments = train_arguments(tmp_path / "run", rows_file, **changes)
    assert main(["train", "--dry-run", *arguments]) == 2
    one_error(capsys, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "words"),
    [("rho2", ["no recipe 'rho2'", "baseline"]), ("/absent.yaml", ["/absent.yaml"])],
)
def test_unknown_recipe(recipe, words, tmp_path, rows_file, capsys):
    assert train(tmp_path / "run", rows_file, recipe) == 2
    one_error(capsys, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[1, 2]", "training: [", "just words", "\x00"])
def test_recipe_file_that_is_none(content, tmp_path, rows_file, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert train(tmp_path / "run", rows_file, str(path)) == 2
    one_error(capsys, str(path))


def test_unknown_preset(tmp_path, capsys):
    arguments = ["--recipe", "baseline", "--preset", "macro", "--output-dir", str(tmp_path / "r")]
    assert main(["train", *arguments]) == 2
    one_error(capsys, "no preset 'macro'", "micro")


def test_no_recipe(capsys):
    assert main(["train"]) == 2
    one_error(capsys, "--recipe", "baseline", "ntp")


@pytest.mark.parametrize("override", ["training.steps", "=3", "training.betas=[1", "steps"])
def test_override_that_is_none(override, tmp_path, rows_file, capsys):
    arguments = train_arguments(tmp_path / "run", rows_file)
    assert main(["train", *arguments, "--set", override]) == 2
    one_error(capsys, override.split("=")[0])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", ["not valid JSON"]),
        ("[1, 2]", ["list"]),
        ('"text"', ["str"]),
        ({**ROW, "is_correct": "yes"}, ["is_correct", "bool"]),
        ({**ROW, "output": None}, ["output", "str"]),
        ({"instruction": "x"}, ["output", "missing"]),
        ({**ROW, "metadata": []}, ["metadata", "dict"]),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_malformed_line_is_named(split, line, words, tmp_path, rows_file, capsys):
    path = write_rows(tmp_path / "rows.jsonl", ROW, ROW, line, ROW)
    assert train(tmp_path / "run", rows_file, **{f"data__{split}": path}) == 2
    one_error(capsys, f"{path}, line 3:", *words)
    assert not (tmp_path / "run").exists()


def test_no_rows(tmp_path, rows_file, capsys):
    path = write_rows(tmp_path / "rows.jsonl", "", "")
    assert train(tmp_path / "run", rows_file, data__train=path) == 2
    one_error(capsys, str(path), "no rows")


def test_no_correct_rows(tmp_path, rows_file, capsys):
    path = write_rows(tmp_path / "rows.jsonl", {**ROW, "is_correct": False})
    assert train(tmp_path / "run", rows_file, data__train=path) == 2
    one_error(capsys, "no row has is_correct true")
    assert not (tmp_path / "run").exists()


def test_no_room_for_a_response(tmp_path, rows_file, capsys):
    assert train(tmp_path / "run", rows_file, data__max_length=8) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # a warning comes before it
    assert re.match(r"error: data\.max_length 8 leaves no row a response", error)
    assert not (tmp_path / "run").exists()


def test_more_heads_than_the_checkpoint_has(tmp_path, rows_file, byte_checkpoint, capsys):
    changes = {"model__path": byte_checkpoint, "objective__heads": 4}
    assert train(tmp_path / "run", rows_file, **changes) == 2
    assert "error: objective.heads is 4, but the model has 3 heads" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["train", "--dry-run", *train_arguments(tmp_path, rows_file, **changes)]) == 2


def test_tokenizer_of_another_model(tmp_path, rows_file, checkpoint, capsys):
    assert train(tmp_path / "run", rows_file, model__path=checkpoint) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {checkpoint}: the tokenizer has 259 tokens and the model only")
    assert not (tmp_path / "run").exists()


def test_checkpoint_without_a_tokenizer(tmp_path, rows_file, checkpoint, capsys):
    changes = {"model__path": checkpoint, "tokenizer__kind": "auto"}
    assert train(tmp_path / "run", rows_file, **changes) == 2
    one_error(capsys, str(checkpoint), "holds no tokenizer")


def test_a_failed_start_does_not_block_the_corrected_one(tmp_path, rows_file, capsys):
    path = write_rows(tmp_path / "rows.jsonl", ROW, "{")
    run = {"data__train": path, "data__validation": None, "training__steps": 1}
    assert train(tmp_path / "run", rows_file, **run) == 2
    write_rows(path, ROW, ROW)
    assert train(tmp_path / "run", rows_file, **run) == 0
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("command", ["generate", "evaluate", "report", "inspect"])
def test_a_directory_that_is_not_there(command, tmp_path, capsys):
    prompt = ["--prompt", "x"] if command == "generate" else []
    assert main([command, str(tmp_path / "absent"), *prompt]) == 2
    one_error(capsys, str(tmp_path / "absent"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_run_without_a_checkpoint(command, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("pipeline: baseline\n")
    prompt = ["--prompt", "x"] if command == "generate" else []
    assert main([command, str(tmp_path), *prompt]) == 2
    one_error(capsys, str(tmp_path), "no complete checkpoint")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [None, "", '{"kind": "valid', "[]\n", "3\n", "{}\n"])
def test_report_on_what_is_no_run(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    one_error(capsys, str(tmp_path))


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("generate", ["--temperature", "-1"]),
        ("generate", ["--top-p", "0"]),
        ("generate", ["--max-new-tokens", "100000"]),
        ("generate", ["--max-new-tokens", "0"]),
        ("generate", ["--max-new-tokens", "-3"]),
        ("generate", ["--device", "gpu"]),
        ("generate", ["--dtype", "int3"]),
        ("evaluate", ["--n-problems", "0"]),
        ("evaluate", ["--max-new-tokens", "100000", "--n-problems", "1"]),
        ("evaluate", ["--top-p", "2"]),
        ("evaluate", ["--device", "gpu"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_option(command, option, tmp_path, rows_file, capsys):
    run_dir = tmp_path / "run"
    assert train(run_dir, rows_file, training__steps=1) == 0
    capsys.readouterr()
    before = tree(run_dir)
    prompt = ["--prompt", "add"] if command == "generate" else []
    assert main([command, str(run_dir), *prompt, *option]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert captured.out == ""
    assert tree(run_dir) == before
