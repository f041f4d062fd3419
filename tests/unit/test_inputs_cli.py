"""Models are named in the same ways everywhere, what cannot be a model is refused with the way out,
output paths are proved writable before the work, and nothing that is shown steers a terminal."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import train, train_arguments, tree

from weighted_mtp.cli import generate as generate_command
from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import load_recipe, setting
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_directory, check_output_file
from weighted_mtp.core.logging import get_logger, setup_logging
from weighted_mtp.core.model_folder import find_model, find_tokenizer, is_hub_id
from weighted_mtp.core.terminal import printable
from weighted_mtp.core.urls import holds_credentials, without_credentials
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, load_tokenizer
from weighted_mtp.evaluation.prompts import Prompting
from weighted_mtp.evaluation.result_files import Attempt, Journal
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import (
    inspect_checkpoint,
    load_meta_mtp_model,
    save_huggingface,
    save_native,
)
from weighted_mtp.pipelines.evaluating.evaluator import warn_of_fences

rows_file = helpers_training.rows_file
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, rows_file) -> Path:
    """A finished run, in a directory whose name a shell and YAML would cut."""
    path = tmp_path_factory.mktemp("runs") / "a run #1"
    assert train(path, rows_file, training__steps=1) == 0
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A cache of the hub with `org/small`: a native checkpoint, its bytes tokenizer, a pickle."""
    root = tmp_path_factory.mktemp("hub")
    model = root / "models--org--small"
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = model / "snapshots" / commit
    ByteTokenizer().save(root / "bytes")
    files = list((root / "bytes").iterdir())
    args = tiny_args(vocab_size=259, max_seq_len=512)
    save_native(tiny_model(args), folder, tokenizer_files=files)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return root


@pytest.fixture
def offline(hub, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def one_error(capsys, *words: str) -> str:
    """The single line on standard error, which holds all `words`."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    return lines[0]


# --- one way to name a model ---------------------------------------------------------------------


def names_of(run_dir: Path) -> list[Path]:
    checkpoint = run_dir / "checkpoints" / "step-00000001"
    return [run_dir, run_dir / "checkpoints", checkpoint, checkpoint / "model"]


def test_every_name_of_a_run_is_its_newest_model(run_dir):
    for name in names_of(run_dir):
        assert find_model(name) == names_of(run_dir)[-1]
        assert find_tokenizer(name) == names_of(run_dir)[-1]
        assert load_meta_mtp_model(str(name), device="cpu").args.n_future_tokens == 3
        adapter = MetaLlamaMTPAdapter.from_pretrained(name, "cpu", initialize_value_head=False)
        assert adapter.args == inspect_checkpoint(name).args
        assert load_tokenizer(name).fingerprint == "bytes-v1"


def test_every_command_takes_a_run(run_dir, rows_file, tmp_path, capsys):
    for name in (run_dir, run_dir / "checkpoints" / "step-00000001"):
        assert main(["inspect", str(name)]) == 0
        assert main(["generate", str(name), "--prompt", "add", "--max-new-tokens", "2"]) == 0
        few = ["--set", "data.max_length=64"]
        assert main(["plan", "--recipe", "baseline", "--model", str(name), *few]) == 0
        out = tmp_path / f"export {name.name}"
        assert main(["convert", str(name), str(out), "--to", "hf"]) == 0
        losses = tmp_path / f"{name.name}.safetensors"
        scored = ["--data", str(rows_file), "--model", str(name), "--out", str(losses)]
        scored += ["--max-length", "64"]
        assert main(["prepare", "reference-losses", *scored]) == 0
        more = {"model__architecture": "null", "tokenizer__kind": "auto"}
        more |= {"training__steps": 1, "objective__rho1__mode": "signed"}
        arguments = train_arguments(tmp_path / f"run {name.name}", rows_file, "rho1", **more)
        for key in ("model.path", "objective.rho1.reference_model", "tokenizer.path"):
            arguments += ["--set", setting(key, name)]
        capsys.readouterr()
        assert main(["train", *arguments]) == 0, capsys.readouterr().err


def test_a_printed_command_can_be_given_to_a_shell(run_dir, rows_file, tmp_path, capsys):
    path = tmp_path / "it's #2 $HOME"
    assert train(path, rows_file, training__steps=1) == 0
    words = shlex.split(capsys.readouterr().out.split("next: ")[1].split("  ·  ")[0])
    assert words == ["weighted-mtp", "generate", str(path), "--prompt", "…"]
    rows = tmp_path / "rows #1: all.jsonl"
    shutil.copy(rows_file, rows)
    scored = ["--data", str(rows), "--model", str(run_dir), "--max-length", "64"]
    assert main(["prepare", "reference-losses", *scored]) == 0
    words = shlex.split(capsys.readouterr().out.split("next: ")[1])
    assert words[:2] == ["weighted-mtp", "train"]
    changes = [word for word in words if word.startswith(("data.", "objective."))]
    recipe = load_recipe("rho1", None, [*changes, "model.path=x"])
    assert recipe.data.train == rows


def test_a_model_of_the_hub(hub, offline, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert load_meta_mtp_model("org/small", device="cpu").args.vocab_size == 259
    assert find_model("org/small@main") == find_model("org/small")
    assert main(["inspect", "org/small"]) == 0
    few = ["--max-new-tokens", "2"]
    assert main(["generate", "org/small", "--prompt", "a", "--template", "raw", *few]) == 0
    short = ["--set", "data.max_length=64"]
    assert main(["plan", "--recipe", "baseline", "--model", "org/small", *short]) == 0
    assert main(["convert", "org/small", "here"]) == 0
    one = ["--n-problems", "1", "--template", "short", "--show", "0"]
    assert main(["evaluate", "org/small", *one, *few]) == 0
    assert Path("runs/org--small/evaluation/micro-test.jsonl").is_file()
    assert sorted(os.listdir()) == ["here", "runs"]


def test_what_is_fetched_holds_no_pickle_and_no_code(offline, monkeypatch):
    asked = {}

    def snapshot_download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        raise ConnectionError("no route to https://me:hunter2@hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="hf download org/other --local-dir") as error:
        find_model("org/other@v1")
    assert "hunter2" not in str(error.value)
    assert (asked["name"], asked["revision"]) == ("org/other", "v1")
    for name in ("pytorch_model.bin", "consolidated.00.pth", "modeling.py", "x.pt", "x.pkl"):
        assert not any(Path(name).match(pattern) for pattern in asked["patterns"])


@pytest.mark.parametrize("command", ["inspect", "generate", "evaluate", "convert", "plan"])
def test_an_unknown_model_of_the_hub_is_one_line(command, offline, tmp_path, capsys):
    words = {
        "generate": ["--prompt", "x"],
        "convert": [str(tmp_path / "out")],
        "plan": ["--recipe", "baseline", "--model"],
    }.get(command, [])
    place = [*words, "org/none"] if command == "plan" else ["org/none", *words]
    assert main([command, *place]) == 2
    one_error(capsys, "org/none", "not in the local cache", "hf download org/none")


def test_a_path_is_not_taken_for_a_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert not is_hub_id("runs/typo")
    assert is_hub_id("org/name")
    with pytest.raises(UserError, match="runs/typo: no such directory; give a run"):
        find_model("runs/typo")


# --- what looks like a model ---------------------------------------------------------------------


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"x")


def gguf(folder: Path) -> None:
    (folder / "model.Q4.gguf").write_bytes(b"GGUF\3\0\0\0")


def pointer(folder: Path) -> None:
    save_huggingface(tiny_model(), folder / "m")
    for path in (folder / "m").iterdir():
        shutil.move(path, folder / path.name)
    (folder / "m").rmdir()
    (folder / "model.safetensors").write_text(POINTER)


def pointer_to_pickle(folder: Path) -> None:
    (folder / "params.json").write_text("{}")
    (folder / "consolidated.00.pth").write_text(POINTER)


def pointer_to_config(folder: Path) -> None:
    (folder / "config.json").write_text(POINTER)


LOOKALIKES = {
    adapter: ["PEFT adapter for org/base", "merge_and_unload"],
    gguf: ["model.Q4.gguf", "GGUF", "the one that you mean"],
    pointer: ["model.safetensors", "Git-LFS pointer", "lfs pull"],
    pointer_to_pickle: ["consolidated.00.pth", "Git-LFS pointer", "lfs pull"],
    pointer_to_config: ["config.json", "Git-LFS pointer", "lfs pull"],
}


@pytest.mark.parametrize("make", LOOKALIKES, ids=lambda make: make.__name__)
def test_what_only_looks_like_a_model(make, tmp_path, rows_file, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    training = train_arguments(tmp_path / "run", rows_file, model__architecture="null")
    for words in (
        ["inspect", str(folder)],
        ["generate", str(folder), "--prompt", "x"],
        ["evaluate", str(folder)],
        ["convert", str(folder), str(tmp_path / "out")],
        ["plan", "--recipe", "baseline", "--model", str(folder)],
        ["train", *training, "--set", f"model.path={folder}"],
    ):
        assert main(words) == 2
        one_error(capsys, *LOOKALIKES[make])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_in_place_of_a_model(tmp_path, capsys):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "b.safetensors").write_text(POINTER)
    for name, word in (("a.gguf", "GGUF"), ("b.safetensors", "Git-LFS pointer")):
        assert main(["inspect", str(tmp_path / name)]) == 2
        one_error(capsys, name, word)


def test_a_checkpoint_that_is_not_complete(run_dir, tmp_path, capsys):
    copy = tmp_path / "step-00000001"
    shutil.copytree(run_dir / "checkpoints" / "step-00000001", copy)
    (copy / "COMPLETE").unlink()
    assert main(["inspect", str(copy)]) == 2
    one_error(capsys, "not complete")


def one_head(path: Path, **tokenizer_config: str) -> Path:
    """A model with the next-token head alone and the tokenizer of the micro tasks."""
    from weighted_mtp.data.tokens.tokenizers import make_tokenizer

    tokenizer = make_tokenizer("micro")
    tokenizer.save(path.parent / "tokenizer-files")
    config = path.parent / "tokenizer-files" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **tokenizer_config}))
    files = sorted((path.parent / "tokenizer-files").iterdir())
    args = tiny_args(vocab_size=tokenizer.vocab_size, n_future_tokens=1, max_seq_len=512)
    save_native(tiny_model(args), path, tokenizer_files=files)
    return path


def test_drafts_need_heads(tmp_path, capsys):
    model = str(one_head(tmp_path / "model"))
    for words in (
        ["generate", model, "--prompt", "x", "--speculate"],
        ["evaluate", model, "--speculate"],
        ["evaluate", model, "--dataset", "mbpp", "--allow-code-execution", "--speculate"],
    ):
        assert main(words) == 2
        one_error(capsys, "--speculate", "no heads", "--add-heads")
    assert main(["generate", model, "--prompt", "x", "--tree", "4"]) == 2
    one_error(capsys, "--tree", "no heads", "--add-heads")
    assert main(["generate", model, "--prompt", "x", "--max-new-tokens", "2"]) == 0


def test_an_instruct_model_prompted_with_alpaca(tmp_path, capsys):
    """Its own chat template is the default."""
    model = str(one_head(tmp_path / "model", chat_template="{{ messages[0]['content'] }}"))
    words = ["generate", model, "--prompt", "x", "--max-new-tokens", "2"]
    assert main(words) == 0
    assert "chat template" not in capsys.readouterr().err
    assert main([*words, "--template", "alpaca"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "chat template" in line]
    assert len(warned) == 1
    assert "--template chat" in warned[0]
    assert main([*words, "--template", "raw"]) == 0
    assert "chat template" not in capsys.readouterr().err


# --- plan refuses what train refuses -------------------------------------------------------------

REFUSED = {
    "muon and fsdp": (
        ["--gpus", "2", "--set", "runtime.parallel=fsdp", "--set", "training.optimizer=muon"],
        ["muon", "fsdp"],
    ),
    "offload on one GPU": (["--set", "runtime.fsdp.cpu_offload=true"], ["cpu_offload", "fsdp"]),
    "offload under ddp": (
        ["--gpus", "2", "--set", "runtime.fsdp.cpu_offload=true"],
        ["cpu_offload"],
    ),
    "no parallel mode": (["--gpus", "2", "--set", "runtime.parallel=none"], ["parallel=ddp"]),
    "uneven shards": (
        ["--gpus", "6", "--set", "runtime.parallel=hsdp", "--set", "runtime.fsdp.shard_size=4"],
        ["shard_size 4", "6 processes"],
    ),
    "rows too long": (["--set", "data.max_length=9000"], ["9000", "positions"]),
    "no such rows": (["--set", "data.source=jsonl", "--set", "data.train=/absent"], ["/absent"]),
    "early stopping on nothing": (
        ["--set", "data.source=jsonl", "--set", "data.train=ROWS", "--set", "training.keep_best=2"],
        ["keep_best", "data.validation"],
    ),
    "pairwise baseline": (["--set", "objective.value.loss=pairwise"], ["pairwise"]),
    "head weights": (["--set", "objective.head_weights=[1,2]"], ["head_weights"]),
    "a text and a critic": (["--recipe", "critic", "--set", "data.source=text"], ["text"]),
    "no such device": (["--set", "runtime.device=gpu"], ["device 'gpu'"]),
    "two references": (
        [
            *("--recipe", "rho1", "--set", "objective.rho1.reference=ROWS"),
            *("--set", "objective.rho1.reference_model=x"),
        ],
        ["one of objective.rho1.reference"],
    ),
    "an absent reference": (
        ["--recipe", "rho1", "--set", "objective.rho1.reference=/absent.safetensors"],
        ["/absent.safetensors"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_plan_refuses_what_train_refuses(case, rows_file, capsys):
    given, expected = REFUSED[case]
    words = [word.replace("ROWS", str(rows_file)) for word in given]
    recipe = [] if "--recipe" in words else ["--recipe", "baseline"]
    assert main(["plan", *recipe, "--preset", "micro", *words]) == 2
    one_error(capsys, *expected)


def test_plan_misses_a_value_head(run_dir, capsys):
    words = ["--set", "data.max_length=128", "--set", "critic_stage=null"]
    for named in (["--model", str(run_dir)], ["--set", setting("model.path", run_dir)]):
        assert main(["plan", "--recipe", "verifiable", *words, *named]) == 2
        one_error(capsys, "has no value head")
    assert main(["plan", "--recipe", "verifiable", "--model", "7b"]) == 0


@pytest.mark.parametrize(
    "case", ["offload on one GPU", "early stopping on nothing", "head weights"]
)
def test_a_dry_run_refuses_it_too(case, rows_file, tmp_path, capsys):
    given, expected = REFUSED[case]
    words = [word.replace("ROWS", str(rows_file)) for word in given]
    recipe = ["--recipe", "baseline", "--preset", "micro", "--output-dir", str(tmp_path / "run")]
    assert main(["train", "--dry-run", *recipe, *words]) == 2
    one_error(capsys, *expected)
    assert list(tmp_path.iterdir()) == []


# --- where it is written -------------------------------------------------------------------------


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "there.txt").write_text("x")
    before = tree(tmp_path)
    check_output_file(tmp_path / "a" / "b" / "page.html", "--output")
    check_output_file(tmp_path / "there.txt", "--output")
    check_output_directory(tmp_path / "a" / "b", "--out")
    check_output_directory(tmp_path, "--out")
    assert tree(tmp_path) == before


UNWRITABLE = ["FILE/x", "FILE/x/y", "/proc/x", "/proc/x/y", "/dev/full/x", "n" * 252, "n" * 300]


@pytest.mark.parametrize("place", UNWRITABLE)
def test_a_place_that_cannot_be_written_is_found_first(place, run_dir, tmp_path, rows_file, capsys):
    (tmp_path / "FILE").touch()
    target = str(tmp_path / place)
    before = tree(run_dir)
    for words in (
        ["train", *train_arguments(Path(target), rows_file)],
        ["train", "--dry-run", *train_arguments(Path(target), rows_file)],
        ["report", str(run_dir), "--output", target],
        ["evaluate", str(run_dir), "--output", target],
        [
            *("evaluate", str(run_dir), "--dataset", "mbpp", "--allow-code-execution"),
            *("--output", target),
        ],
        ["convert", str(run_dir), target],
        ["prepare", "micro", "--n", "9", "--out", target],
        ["prepare", "jsonl", "--source", str(rows_file), "--out", target],
        [
            *("prepare", "reference-losses", "--data", str(rows_file), "--model", str(run_dir)),
            *("--out", target),
        ],
        ["experiment", "wmtp", "--results", str(tmp_path / "r.md"), "--output-dir", target],
        ["experiment", "wmtp", "--output-dir", str(tmp_path / "e"), "--results", target],
    ):
        assert main(words) == 2, words
        line = one_error(capsys)
        assert "cannot be written" in line or "too long" in line
    assert tree(run_dir) == before
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_a_file_for_a_directory_and_the_reverse(run_dir, rows_file, tmp_path, capsys):
    (tmp_path / "file").touch()
    file, folder = str(tmp_path / "file"), str(tmp_path)
    for words, kind in (
        (["train", *train_arguments(Path(file), rows_file)], "not a directory"),
        (["report", str(run_dir), "--output", folder], "is a directory"),
        (["evaluate", str(run_dir), "--output", folder], "is a directory"),
        (["evaluate", str(run_dir), "--output", "/dev/full"], "not a regular file"),
        (["report", str(run_dir), "--output", "/dev/full"], "not a regular file"),
        (["prepare", "micro", "--n", "9", "--out", folder], "is a directory"),
        (["prepare", "micro", "--n", "9", "--overwrite", "--out", "/dev/full"], "not a regular"),
        (["prepare", "jsonl", "--source", str(rows_file), "--out", file], "not a directory"),
        (["convert", str(run_dir), file, "--overwrite"], "is a file"),
    ):
        assert main(words) == 2, words
        one_error(capsys, kind)


EMPTY = {
    "train": ["train", "--recipe", "baseline", "--preset", "micro", "--output-dir", ""],
    "a recipe": ["train", "--recipe", ""],
    "a setting": [
        *("train", "--recipe", "baseline", "--preset", "micro", "--set", "model.architecture=null"),
        *("--set", 'model.path=""'),
    ],
    "report": ["report", ""],
    "report's page": ["report", "x", "--output", ""],
    "evaluate": ["evaluate", ""],
    "generate": ["generate", "", "--prompt", "x"],
    "inspect": ["inspect", ""],
    "convert": ["convert", "x", ""],
    "verify": ["verify", "x", ""],
    "push": ["push", "", "org/name"],
    "prepare": ["prepare", "micro", "--n", "1", "--out", ""],
    "reference losses": ["prepare", "reference-losses", "--data", "", "--model", "x"],
    "experiment": ["experiment", "wmtp", "--results", ""],
    "plan": ["plan", "--recipe", "baseline", "--model", ""],
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_path_is_not_the_current_directory(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(EMPTY[case]) == 2
    one_error(capsys, "empty")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 300, "n/" * 3000])
def test_a_name_that_is_too_long_to_read(name, capsys):
    for words in (["inspect", name], ["report", name], ["generate", name, "--prompt", "x"]):
        assert main(words) == 2
        one_error(capsys, "too long")


ATTEMPT = Attempt("mbpp/1", 0, "x = 1", "x = 1", "passed", "", 0.1)


class FullDisk(io.FileIO):
    """A file on a disk that takes `room` more bytes, a few at a time."""

    room = 0

    def write(self, content):
        if type(self).room <= 0:
            raise OSError(28, os.strerror(28))
        part = bytes(content[: min(7, type(self).room)])
        type(self).room -= len(part)
        return super().write(part)


def test_a_full_disk_keeps_what_was_judged(tmp_path, monkeypatch):
    attempts = [Attempt(**{**vars(ATTEMPT), "task_id": f"mbpp/{i}"}) for i in range(20)]
    known = [attempt.task_id for attempt in attempts]
    real = Path.open

    def opened(path, mode="r", *args, **more):
        return FullDisk(path, mode) if mode == "ab" else real(path, mode, *args, **more)

    monkeypatch.setattr(Path, "open", opened)
    FullDisk.room = 1000
    journal = Journal(tmp_path / "out", {"dataset": "mbpp"}, known)
    with (
        pytest.raises(UserError, match=r"No space left.*judged programs are kept") as error,
        journal,
    ):
        list(map(journal.append, attempts))
    kept = len(journal.attempts)
    assert f"{kept} judged" in str(error.value)
    assert 5 < kept < 20
    FullDisk.room = 10**9
    with Journal(tmp_path / "out", {"dataset": "mbpp"}, known) as journal:
        assert journal.attempts == attempts[:kept]
        for attempt in attempts[kept:]:
            journal.append(attempt)
    with Journal(tmp_path / "out", {"dataset": "mbpp"}, known) as journal:
        assert journal.attempts == attempts


def test_fenced_completions_under_a_prompt_to_be_continued(capsys):
    fenced = "Here it is:\n```python\ndef one():\n    return 1\n```\n"
    attempt = Attempt("mbpp/1", 0, fenced, "", "failed", "", 0.1)
    setup_logging()
    warn_of_fences(Prompting("3-shot"), [attempt, ATTEMPT])
    line = capsys.readouterr().err
    assert line.startswith("1 failed completions contain fenced blocks")
    assert "--prompt template" in line
    warn_of_fences(Prompting("template"), [attempt])
    warn_of_fences(Prompting("3-shot"), [ATTEMPT])
    assert capsys.readouterr().err == ""


# --- converting in place -------------------------------------------------------------------------


def test_what_is_not_part_of_a_checkpoint_is_not_deleted_with_it(run_dir, tmp_path, capsys):
    place = tmp_path / "model"
    save_native(tiny_model(), place)
    for name in ("other", "evaluation", "checkpoints"):
        (place / name).mkdir()
        for source in (str(run_dir), str(place)):
            before = tree(place)
            assert main(["convert", source, str(place), "--overwrite"]) == 2
            one_error(capsys, str(place / name), "move it away")
            assert tree(place) == before
        (place / name).rmdir()
    assert main(["convert", str(place), str(place), "--overwrite"]) == 0


def test_the_model_of_a_run_is_not_overwritten(run_dir, capsys):
    before = tree(run_dir)
    for place in names_of(run_dir):
        assert main(["convert", str(run_dir), str(place), "--overwrite"]) == 2
        one_error(capsys, "not overwritten")
    assert tree(run_dir) == before


# --- standard streams ----------------------------------------------------------------------------


CHECK = """
import os, sys, tempfile
from weighted_mtp.core.streams import open_missing_streams
open_missing_streams()
with tempfile.TemporaryFile() as file:
    assert file.fileno() > 2  # else it would receive what C libraries print
print("x", file=sys.stdout, flush=True)
print("y", file=sys.stderr, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_opened(closed):
    command = f"{shlex.join([sys.executable, '-c', CHECK])} {closed}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("x\n" if closed in ("2>&-", "<&-") else "")
    assert done.stderr == ("y\n" if closed in (">&-", "<&-") else "")


def test_a_command_without_streams(tmp_path):
    out = tmp_path / "rows.jsonl"
    words = [
        sys.executable,
        "-m",
        "weighted_mtp",
        "prepare",
        "micro",
        "--n",
        "2",
        "--out",
        str(out),
    ]
    done = subprocess.run(["sh", "-c", f"{shlex.join(words)} <&- >&- 2>&-"], check=False)
    assert done.returncode == 0
    assert len(out.read_text().splitlines()) == 4


def test_output_that_cannot_be_written_is_one_line(run_dir):
    words = [sys.executable, "-m", "weighted_mtp", "inspect", str(run_dir)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: the output cannot be written: No space left on device"
    ]


# --- what a terminal shows -----------------------------------------------------------------------

NASTY = "a\x1b[31mb\rc\x07\x9b\u202ed\u2066\udc80\n\te"


def test_control_characters_are_escaped():
    shown = printable(NASTY, keep="\n\t")
    assert shown == "a\\x1b[31mb\\rc\\x07\\x9b\\u202ed\\u2066\\udc80\n\te"
    assert printable("naïve — 漢字 👩‍💻 é") == "naïve — 漢字 👩‍💻 é"
    assert printable("a\nb") == "a\\nb"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_models_text_on_a_terminal(terminal, run_dir, monkeypatch):
    monkeypatch.setattr(generate_command, "_pieces", lambda *_: iter([NASTY[:5], NASTY[5:-5]]))
    monkeypatch.setattr(sys, "stdout", out := Terminal() if terminal else io.StringIO())
    if not terminal:
        monkeypatch.setattr(generate_command, "_print_texts", lambda *_: print(NASTY[:-5], end=""))
    assert main(["generate", str(run_dir), "--prompt", "x"]) == 0
    escaped = not {"\x1b", "\r", "\x07", "\u202e"} & set(out.getvalue())
    assert escaped is terminal


def test_names_and_keys_with_control_characters(tmp_path, rows_file, capsys):
    name = tmp_path / "a\x1b[31m\u202eb\nc"
    save_native(tiny_model(), name)
    assert main(["inspect", str(name)]) == 0
    assert main(["inspect", str(name / "none")]) == 2
    assert main(["train", *train_arguments(tmp_path / "r", rows_file), "--set", "a\x1bb=1"]) == 2
    with pytest.raises(SystemExit):
        main(["inspect", "x", "--bogus\x1b[31m"])
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "\\x1b" in text
        assert not {"\x1b", "\u202e"} & set(text)
    assert len(captured.err.splitlines()) == 3


# --- credentials in URLs -------------------------------------------------------------------------

SECRETS = [
    "s3://hunter2@box/run",
    "https://user:hunter2@host/x",
    "https://host/x#secret=hunter2",
    "s3://box/run;password=hunter2",
    "https://host/x?token=hunter2",
    "https://box.s3.amazonaws.com/x?X-Amz-Signature=hunter2",
    "https://host/api_key=hunter2/x",
    "gs://box/x?sig=hunter2",
    "HTTPS://user%3Ahunter2%40host/x",
    "simplecache::s3://hunter2@box/x",
    "git+https://hunter2@host/x",
    "s3:/hunter2@box/run",
    "//user:hunter2@host/x",
]
HARMLESS = [
    *("runs/a", "/data/a@b/c", "a:b@c", "C:/x@y", "s3://box/a:b@c", "hdfs://host:9000/runs"),
    *("sftp://me@host/runs", "abfs://container@account.dfs.core.windows.net/x", "what?.txt"),
    *("org/name@main", "file:///a/b", "notes;v=2", "a#1", "https://host/path"),
]


@pytest.mark.parametrize("url", SECRETS)
def test_credentials_are_refused_everywhere_and_not_repeated(url, rows_file, tmp_path, capsys):
    assert holds_credentials(url)
    assert "hunter2" not in without_credentials(f"could not open '{url}' (reset)")
    training = train_arguments(tmp_path / "run", rows_file)
    settings = ("model.path", "tokenizer.path", "data.train", "data.cache_dir", "data.text.path")
    settings += ("objective.rho1.reference_model", "training.remote", "data.validation")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"pipeline: baseline\nmodel: {{path: {json.dumps(url)}}}\n")
    for words in (
        ["inspect", url],
        ["generate", url, "--prompt", "x"],
        ["generate", "x", "--prompts", url],
        ["evaluate", url],
        ["evaluate", "x", "--output", url],
        ["evaluate", "--dataset", "mbpp", "--completions", url, "--allow-code-execution"],
        ["convert", "x", url],
        ["report", url],
        ["plan", "--recipe", "baseline", "--model", url],
        ["plan", "--recipe", url],
        ["prepare", "jsonl", "--source", url, "--out", "x"],
        ["experiment", "wmtp", "--output-dir", url],
        ["train", "--recipe", "baseline", "--output-dir", url],
        ["train", "--recipe", str(recipe)],
        *(["train", *training, "--set", f"{key}={json.dumps(url)}"] for key in settings),
    ):
        assert main(words) == 2, words
        assert "hunter2" not in one_error(capsys, "holds a password or a key")
    assert main(["train", *training, "--set", url]) == 2  # without a key
    assert "hunter2" not in one_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret(text):
    assert not holds_credentials(text)
    assert without_credentials(text) == text


def test_a_log_line_is_clean(caplog, capsys):
    setup_logging()
    get_logger("test").warning("cannot reach %s\x1b[2J", "https://user:hunter2@host/x")
    assert capsys.readouterr().err == "cannot reach https://host/x\\x1b[2J\n"


def test_weights_are_what_they_were(hub, offline):
    """A model of the hub is the one that was saved there."""
    stored = load_meta_mtp_model("org/small", device="cpu").state_dict()
    saved = tiny_model(tiny_args(vocab_size=259, max_seq_len=512)).state_dict()
    assert all(torch.equal(stored[name], saved[name]) for name in saved)
