"""Damage is never taken for weights: one flipped bit in any file is refused by name."""

import io
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import CRITIC, SMALL, build_trainer, run_steps, train
from tests.unit.checkpoint_cases import tiny

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.sums import VERIFY_VARIABLE, Sums, write_sums
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.reference_losses import Fingerprint, ReferenceLosses, write_reference
from weighted_mtp.data.rows.store import open_rows
from weighted_mtp.data.tokens.row_tokens import tokenise
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_huggingface
from weighted_mtp.pipelines.checkpoint_utils import (
    MARKER,
    complete_checkpoints,
    restore_rng,
    saved_state,
)
from weighted_mtp.pipelines.checkpointing.remote_copies import Copies
from weighted_mtp.pipelines.checkpointing.sharded import ShardedSaver

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")

rows_file = helpers_training.rows_file
FEW = ["--prompt", "add", "--template", "raw", "--max-new-tokens", "2"]


def flip(path: Path, seed: int = 0) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    place = random.Random(f"{path.name} {seed}").randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def files_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if path.name != MARKER]


def refused(capsys, path: Path, *argv: object) -> str:
    """Run a command that must be refused in one line that names `path`."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2, path
    error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(error) == 1
    assert path.name in error[0], (path, error)
    return error[0]


def check_each(files: list[Path], command) -> None:
    """Damage each file in turn, each in three ways."""
    assert files
    for path in files:
        content = path.read_bytes()
        for seed in range(3):
            flip(path, seed)
            command(path)
            path.write_bytes(content)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, rows_file) -> Path:
    """A critic, saved after 2 of 3 steps."""
    run_dir = tmp_path_factory.mktemp("sums") / "run"
    changes = {**SMALL, **CRITIC, "training__steps": 3, "training__save_every": 2}
    assert train(run_dir, rows_file, "critic", **changes) == 0
    shutil.rmtree(complete_checkpoints(run_dir)[-1])
    return run_dir


@pytest.fixture
def run_dir(whole_run, tmp_path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory, rows_file) -> Path:
    """A checkpoint of a model in parts."""
    folder = tmp_path_factory.mktemp("parts")
    trainer = build_trainer(rows_file, folder, **SMALL)
    run_steps(trainer, 1)
    parts = (trainer.module.adapter, trainer.weights, trainer.optimizer, trainer.tokenizer)
    saver = ShardedSaver(folder, *parts, Copies(folder, 2, None))
    saver.save(1, (), {})
    saver.settle()
    return complete_checkpoints(folder)[0]


# --- training checkpoints ------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_not_resumed(run_dir, capsys):
    (checkpoint,) = complete_checkpoints(run_dir)
    names = {path.relative_to(checkpoint).as_posix() for path in files_of(checkpoint)}
    assert {"optimizer.pt", "rng-0.pt", "trainer.json", "sums.json"} <= names
    assert {"model/value_head.safetensors", "model/configs/params.json"} <= names
    resume = ("train", "--resume", "--output-dir", run_dir)

    def command(path: Path) -> None:
        if path.name == "sums.json":  # names the file whose sum it is
            capsys.readouterr()
            assert main([str(word) for word in resume]) == 2
        else:
            refused(capsys, path, *resume)

    check_each(files_of(checkpoint), command)
    assert main([str(word) for word in resume]) == 0


def test_a_damaged_model_is_neither_converted_nor_used(run_dir, tmp_path, capsys):
    model = complete_checkpoints(run_dir)[0] / "model"

    def command(path: Path) -> None:
        refused(capsys, path, "convert", run_dir, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        refused(capsys, path, "inspect", run_dir, "--verify")
        refused(capsys, path, "generate", run_dir, *FEW, "--device", "cpu")

    check_each(files_of(model), command)
    assert main(["generate", str(run_dir), *FEW, "--device", "cpu"]) == 0


def test_a_damaged_checkpoint_in_parts_is_not_read(in_parts, tmp_path, capsys):
    checkpoint = Path(shutil.copytree(in_parts, tmp_path / "parts"))
    names = {path.relative_to(checkpoint).as_posix() for path in files_of(checkpoint)}
    assert {"shards/.metadata", "shards/__0_0.distcp", "skeleton/params.json"} <= names

    def command(path: Path) -> None:
        if path.name != "sums.json":
            refused(capsys, path, "convert", checkpoint, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    check_each(files_of(checkpoint), command)
    assert main(["convert", str(checkpoint), str(tmp_path / "out")]) == 0


def test_removed_sums_are_missed(run_dir, in_parts, tmp_path, capsys):
    (checkpoint,) = complete_checkpoints(run_dir)
    sums = checkpoint / "sums.json"
    content = sums.read_text()
    sums.unlink()
    refused(capsys, sums, "train", "--resume", "--output-dir", run_dir)
    sums.write_text(json.dumps({"sha256": {}}))
    refused(capsys, sums, "train", "--resume", "--output-dir", run_dir)
    sums.write_text(content)
    metadata = checkpoint / "model" / "metadata.json"
    metadata.unlink()
    refused(capsys, metadata, "inspect", run_dir, "--verify")
    refused(capsys, metadata, "convert", run_dir, tmp_path / "out")
    parts = Path(shutil.copytree(in_parts, tmp_path / "parts"))
    (parts / "sums.json").unlink()
    refused(capsys, parts / "sums.json", "convert", parts, tmp_path / "out")


def test_a_missing_generator_state_is_refused(run_dir):
    """Also where an earlier version kept no sums."""
    (checkpoint,) = complete_checkpoints(run_dir)
    (checkpoint / "sums.json").unlink()
    fields = json.loads((checkpoint / "trainer.json").read_text())
    del fields["sums"]
    (checkpoint / "trainer.json").write_text(json.dumps(fields))
    restore_rng(checkpoint)
    assert saved_state(checkpoint)["step"] == 2
    (checkpoint / "rng-0.pt").unlink()
    with pytest.raises(UserError, match=r"rng-0\.pt: cannot be read"):
        restore_rng(checkpoint)
    (checkpoint / "trainer.json").write_text(json.dumps({**fields, "world_size": 0}))
    restore_rng(checkpoint)  # this rank was not there: it starts from its seed


def test_a_file_without_a_sum_is_told(run_dir, capsys):
    (checkpoint,) = complete_checkpoints(run_dir)
    (checkpoint / "notes.txt").write_text("mine")
    (checkpoint / "model" / "tokenizer" / "more.json").write_text("{}")
    assert main(["train", "--resume", "--output-dir", str(run_dir)]) == 0
    assert "not part of the checkpoint: notes.txt" in capsys.readouterr().err
    assert main(["inspect", str(checkpoint), "--verify"]) == 0
    assert "without a sum: tokenizer/more.json" in capsys.readouterr().out


# --- models --------------------------------------------------------------------------------------


def test_a_damaged_export_is_refused(tmp_path, capsys):
    export = tmp_path / "export"
    save_huggingface(tiny(), export, max_shard_bytes=30_000)

    def command(path: Path) -> None:
        if path.name == "sums.json":
            assert main(["convert", str(export), str(tmp_path / "out")]) == 2
        else:
            refused(capsys, path, "convert", export, tmp_path / "out")

    check_each(files_of(export), command)
    assert main(["inspect", str(export), "--verify"]) == 0
    (export / "mtp" / "sums.json").unlink()
    refused(capsys, export / "mtp" / "sums.json", "inspect", export, "--verify")


def test_verification_can_be_switched_off_but_not_for_a_copy(
    run_dir, tmp_path, capsys, monkeypatch
):
    model = complete_checkpoints(run_dir)[0] / "model"
    weights = model / "safetensors" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1  # of a fraction: every value stays finite
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: its SHA-256 is not the one"):
        load_meta_mtp_model(model, "cpu")
    monkeypatch.setenv(VERIFY_VARIABLE, "0")
    load_meta_mtp_model(model, "cpu")
    refused(capsys, weights, "convert", run_dir, tmp_path / "out")
    refused(capsys, weights, "inspect", run_dir, "--verify")


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "b/../../a", "", ".", "a/", "./a", "a\\..\\b", "a\0", ".."]
)
def test_sums_of_files_elsewhere_are_refused(name, tmp_path):
    (tmp_path / "a").write_text("text")
    write_sums(tmp_path, {name: "0" * 64})
    with pytest.raises(UserError, match="is not the name of a file in this folder"):
        Sums.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"sha256": {"a": 1}}', '{"sha256": {"a": "x"}}', "[" * 100_000),
        f'{{"sha256": {{"a": "{0:064}", "a": "{1:064}"}}}}',
        '{"sha256": [], "more": 1}',
    ],
)
def test_other_lists_of_sums_are_refused(text, tmp_path):
    (tmp_path / "sums.json").write_text(text)
    with pytest.raises(UserError, match=r"sums\.json"):
        Sums.read(tmp_path)


# --- prepared data -------------------------------------------------------------------------------


def test_damaged_tables_are_made_again(rows_file, tmp_path):
    """Every file of both, as they are opened."""

    def read() -> tuple[list, list]:
        store = open_rows(rows_file, tmp_path)
        collator = AlpacaCollator(ByteTokenizer(), "short", 64)
        return store[:], list(tokenise(store, np.arange(len(store)), collator, tmp_path))

    wanted = read()
    kept = [path for path in files_of(tmp_path) if path.suffix != ".lock" and path.stat().st_size]
    assert len(kept) > 10
    for path in kept:
        flip(path)
        assert read() == wanted, path


def test_damaged_reference_losses_are_refused(tmp_path):
    path = tmp_path / "losses.safetensors"
    fingerprint = Fingerprint("data", "tokenizer", "short", 64)
    write_reference(path, [torch.rand(3, 2), torch.rand(1, 2)], fingerprint)
    content = path.read_bytes()
    assert len(ReferenceLosses(path, fingerprint)) == 2
    for place in range(8, len(content)):
        data = bytearray(content)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        if data[place] == 0 and content[place] == ord(" "):
            continue
        with pytest.raises(UserError):
            ReferenceLosses(path, fingerprint)


# --- code in a model's folder --------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath(__file__).with_name('evil-was-here').touch()\n"


def test_code_in_a_model_folder_never_runs(tmp_path, rows_file, monkeypatch, capsys):
    """Not even where a `y` waits on standard input, which transformers would take for consent."""
    folder = tmp_path / "model"
    save_huggingface(tiny(n_future_tokens=1, vocab_size=259, max_seq_len=512), folder)
    ByteTokenizer().save(folder)
    auto = {f"Auto{kind}": "evil.Evil" for kind in ("Config", "ModelForCausalLM", "Tokenizer")}
    config = json.loads((folder / "config.json").read_text())
    del config["mtp_sums"]  # nobody vouches for it
    (folder / "mtp" / "sums.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    tokenizer = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "evil.py").write_text(EVIL)
    answers = io.StringIO("y\n" * 100)
    monkeypatch.setattr(sys, "stdin", answers)
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert main(["generate", str(folder), *FEW, "--device", "cpu"]) == 0
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "hf"]) == 0
    changes = {"model__path": folder, "tokenizer__kind": "auto", "training__steps": 1}
    assert train(tmp_path / "run", rows_file, **changes) == 0
    assert answers.tell() == 0  # nobody asked
    assert not list(tmp_path.rglob("evil-was-here"))
