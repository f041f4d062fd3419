"""What can be wrong with a weighted run ends in one line, which names the key and the remedy."""

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors import safe_open
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    CRITIC,
    reference_request,
    train,
    train_arguments,
)

from weighted_mtp.cli.main import main
from weighted_mtp.data.datasets import read_jsonl, write_jsonl
from weighted_mtp.data.reference_losses import Fingerprint, ReferenceLosses, write_reference
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native
from weighted_mtp.pipelines.training.reference import prepare_reference_losses

rows_file = helpers_training.rows_file
critic_model = helpers_training.critic_model
reference_file = helpers_training.reference_file


@pytest.fixture(scope="module")
def right_only(tmp_path_factory, rows_file) -> Path:
    path = tmp_path_factory.mktemp("data") / "right.jsonl"
    write_jsonl(path, [row for row in read_jsonl(rows_file) if row["is_correct"]])
    return path


@pytest.fixture(scope="module")
def no_pairs(tmp_path_factory, rows_file) -> Path:
    path = tmp_path_factory.mktemp("data") / "apart.jsonl"
    rows = [{**row, "task_id": str(i)} for i, row in enumerate(read_jsonl(rows_file))]
    write_jsonl(path, rows)
    return path


@pytest.fixture(scope="module")
def headless(tmp_path_factory, critic_model) -> Path:
    """The critic's model without its value head."""
    path = tmp_path_factory.mktemp("models") / "headless"
    files = sorted((critic_model / "tokenizer").iterdir())
    save_native(load_meta_mtp_model(critic_model, device="cpu"), path, tokenizer_files=files)
    return path


PAIRS = {"objective.value.loss": "pairwise"}
MISTAKES = {
    "a critic of right rows": ("critic", {"data.train": "right_only"}, ["no incorrect samples"]),
    "verifiable of right rows": (
        "verifiable",
        {"data.train": "right_only", "model.path": "critic_model"},
        ["no incorrect samples", "data.micro.incorrect_per_problem"],
    ),
    "two stages of right rows": (
        "verifiable",
        {"data.train": "right_only", "critic_stage.steps": 2},
        ["no incorrect samples"],
    ),
    "pairs that are none": (
        "critic",
        {"data.train": "no_pairs", **PAIRS},
        ["no task_id has both a correct and an incorrect row"],
    ),
    "pairs cut in two": (
        "critic",
        {**PAIRS, "training.micro_batch_size": 1},
        ["training.micro_batch_size", "pair"],
    ),
    "an odd batch of pairs": (
        "critic",
        {**PAIRS, "training.batch_size": 9, "training.micro_batch_size": 3},
        ["size", "pair"],
    ),
    "no critic at all": ("verifiable", {}, ["no value head", "model.path", "critic_stage.steps"]),
    "a model without a head": (
        "verifiable",
        {"model.path": "headless"},
        ["headless", "no value head", "critic_stage.steps"],
    ),
    "no reference": (
        "rho1",
        {},
        ["objective.rho1.reference", "objective.rho1.reference_model", "prepare reference-losses"],
    ),
    "two references": (
        "rho1",
        {
            "objective.rho1.reference": "reference_file",
            "objective.rho1.reference_model": "critic_model",
        },
        ["one of objective.rho1.reference", "objective.rho1.reference_model"],
    ),
    "absent reference": (
        "rho1",
        {"objective.rho1.reference": "/absent.safetensors"},
        ["/absent.safetensors", "weighted-mtp prepare reference-losses"],
    ),
    "absent reference model": (
        "rho1",
        {"objective.rho1.reference_model": "/absent/model"},
        ["/absent/model"],
    ),
    "k of 0": ("rho1", {"objective.rho1.k_percent": 0}, ["objective.rho1.k_percent", "0"]),
    "k above 1": ("rho1", {"objective.rho1.k_percent": 1.5}, ["rho1.k_percent", "1.5"]),
    "k in per cent": ("rho1", {"objective.rho1.k_percent": 60}, ["rho1.k_percent", "60"]),
    "unknown mode": ("rho1", {"objective.rho1.mode": "best"}, ["rho1.mode", "difficult"]),
    "beta of 0": ("verifiable", {"objective.td.beta": 0}, ["objective.td.beta", "0"]),
    "negative beta": ("verifiable", {"objective.td.beta": -0.5}, ["objective.td.beta", "-0.5"]),
    "lambda above 1": ("verifiable", {"objective.td.lam": 1.1}, ["objective.td.lam", "1.1"]),
    "bounds the wrong way": (
        "verifiable",
        {"objective.td.min_weight": 6},
        ["objective.td.min_weight (6.0)", "max_weight (5.0)"],
    ),
    "unknown key": (
        "verifiable",
        {"objective.td.betta": 1},
        ["objective.td.betta", "mean objective.td.beta?"],
    ),
    "unknown key of the stage": (
        "verifiable",
        {"critic_stage.stepps": 2, "critic_stage.steps": 2},
        ["critic_stage.stepps", "did you mean critic_stage.steps?"],
    ),
    "unknown key of early stopping": (
        "critic",
        {"training.early_stopping.patients": 2},
        ["training.early_stopping.patients", "mean training.early_stopping.patience?"],
    ),
    "a stage where it has no place": (
        "baseline",
        {"critic_stage.steps": 2},
        ["critic_stage", "baseline pipeline"],
    ),
    "a reference stage where it has no place": (
        "verifiable",
        {"reference_stage.steps": 2},
        ["reference_stage", "verifiable pipeline"],
    ),
    "an objective of another pipeline": (
        "baseline",
        {"objective.name": "shuffled"},
        ["objective.name shuffled", "baseline pipeline", "uniform"],
    ),
    "the oracle without micro tasks": (
        "baseline",
        {"objective.name": "oracle"},
        ["objective.name oracle", "data.source is jsonl", "data.source=micro"],
    ),
    "the oracle without wrong programs": (
        "baseline",
        {"objective.name": "oracle", "data.source": "micro"},
        ["objective.name oracle", "data.micro.incorrect_per_problem=3"],
    ),
    "surprise whose bounds cross": (
        "baseline",
        {"objective.name": "surprise", "objective.options.max_weight": 0.05},
        ["objective.options.min_weight (0.1) is above max_weight (0.05)"],
    ),
    "pairs for token weights": (
        "verifiable",
        {"model.path": "critic_model", **PAIRS},
        ["objective.value.loss pairwise", "mse"],
    ),
    "a language model on a frozen trunk": (
        "critic",
        {"objective.value.lm_coef": 1},
        ["objective.value.lm_coef", "objective.value.trunk=all"],
    ),
    "more blocks than there are": (
        "critic",
        {"objective.value.trunk": "top", "objective.value.top_blocks": 3},
        ["objective.value.top_blocks 3", "2 blocks"],
    ),
}


def mistake(case: str, request) -> tuple[str, dict, list[str]]:
    """With the paths of the files that it names."""
    recipe, changes, words = MISTAKES[case]
    files = ("right_only", "no_pairs", "critic_model", "headless", "reference_file")
    given = {k: request.getfixturevalue(v) if v in files else v for k, v in changes.items()}
    return recipe, given, words


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, tmp_path, rows_file, capsys, request):
    recipe, given, words = mistake(case, request)
    capsys.readouterr()
    assert train(tmp_path / "run", rows_file, recipe, **given) == 2
    printed = capsys.readouterr().err  # the log may come before it
    error = printed.splitlines()[-1]
    assert printed.count("error: ") == 1
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()


KNOWN_BEFORE = (
    "no critic at all",
    "a model without a head",
    "no reference",
    "two references",
    "absent reference",
    "absent reference model",
    "beta of 0",
    "pairs for token weights",
    "a language model on a frozen trunk",
    "more blocks than there are",
)


@pytest.mark.parametrize("case", KNOWN_BEFORE)
def test_dry_run_finds_it_too(case, tmp_path, rows_file, capsys, request):
    """What can be known without reading the rows."""
    recipe, given, words = mistake(case, request)
    capsys.readouterr()
    arguments = train_arguments(tmp_path / "run", rows_file, recipe, **given)
    assert main(["train", "--dry-run", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(word in error for word in words)
    assert not (tmp_path / "run").exists()


STALE = ("data", "tokenizer", "template", "max_length")


@pytest.mark.parametrize("what", STALE)
def test_stale_reference_losses(what, tmp_path, rows_file, reference_file, capsys):
    data, changes, stored = rows_file, {}, reference_file
    if what == "data":
        data = tmp_path / "rows.jsonl"
        data.write_text(rows_file.read_text().replace("add 1", "sum 1"))
    elif what == "max_length":
        changes = {"data__max_length": 48}
    else:
        stored = tmp_path / "other.safetensors"
        made_for = fingerprint_of(reference_file)
        losses = ReferenceLosses(reference_file, made_for)
        other = dataclasses.replace(made_for, **{what: "another"})
        write_reference(stored, [losses[i] for i in range(len(losses))], other)
    changes |= {"objective__rho1__reference": stored, "data__train": data}
    assert train(tmp_path / "run", rows_file, "rho1", **changes) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {stored}: these losses were made with another {what} (")
    assert "build them again with: weighted-mtp prepare reference-losses" in error
    assert not (tmp_path / "run").exists()


def fingerprint_of(path: Path) -> Fingerprint:
    with safe_open(path, framework="pt") as file:
        return Fingerprint(**json.loads(file.metadata()["fingerprint"]))


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "another file"])
def test_damaged_reference_losses(
    damage, tmp_path, rows_file, reference_file, capsys, critic_model
):
    path, whole = tmp_path / "losses.safetensors", reference_file.read_bytes()
    other = critic_model / "safetensors" / "model.safetensors"
    content = {
        "cut": whole[: len(whole) // 2],
        "text": b"not what it was\n" * 9,
        "empty": b"",
        "another file": other.read_bytes(),
    }
    path.write_bytes(content[damage])
    assert train(tmp_path / "run", rows_file, "rho1", objective__rho1__reference=path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}: no reference losses, or damaged")


def test_a_start_that_failed_does_not_block_the_corrected_one(tmp_path, rows_file, right_only):
    run = {"critic_stage__steps": 2, "training__steps": 2, **CRITIC}
    assert train(tmp_path / "run", rows_file, "verifiable", data__train=right_only, **run) == 2
    assert train(tmp_path / "run", rows_file, "verifiable", **run) == 0


def test_a_reference_for_another_set_of_rows(tmp_path, rows_file, critic_model, capsys):
    other = tmp_path / "other.jsonl"
    write_jsonl(other, read_jsonl(rows_file)[::-1])
    path = prepare_reference_losses(reference_request(other, critic_model))
    assert path == tmp_path / "other.reference.safetensors"
    assert train(tmp_path / "run", rows_file, "rho1", objective__rho1__reference=path) == 2
    assert "another data" in capsys.readouterr().err
