"""Rows that memory has no room for, unless activations are computed again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers import ROOT
from tests.integration import helpers_training
from tests.integration.helpers_training import last_checkpoint, train

from weighted_mtp.core.config.recipe import available, load_recipe
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint

rows_file = helpers_training.rows_file

LIMITED = Path(__file__).with_name("worker_limited.py")
LENGTH = 4096
ROOM = 320 * 2**20
"""A step takes 0.1 GiB with activation checkpointing and 0.6 without (`weighted-mtp plan`)."""
SHAPE = {"dim": 64, "n_layers": 32, "n_heads": 2, "n_future_tokens": 4, "max_seq_len": LENGTH // 2}
SETTINGS = {
    **{f"model.architecture.{key}": value for key, value in SHAPE.items()},
    "tokenizer.kind": "bytes",
    "data.template": "short",
    "data.max_length": LENGTH,
    "training.steps": 1,
    "training.batch_size": 1,
    "runtime.device": "cpu",
    "runtime.threads": 1,
    "runtime.compute_dtype": "float32",
    "runtime.fsdp.param_dtype": "float32",
}


@pytest.fixture(scope="module")
def long_row(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("long") / "rows.jsonl"
    output = "x = 1\n" * 1000
    row = {"instruction": "assign", "input": "", "output": output, "task_id": "long/0"}
    row |= {"is_correct": True, "metadata": {"source": "made by hand"}}
    path.write_text(json.dumps(row) + "\n")
    return path


def limited(run_dir: Path, rows: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`train --preset long` with `ROOM` bytes for its step."""
    sets = [f"{key}={value}" for key, value in {**SETTINGS, "data.train": rows}.items()]
    words = [word for change in [*sets, *more] for word in ("--set", change)]
    command = [sys.executable, str(LIMITED), str(ROOM), "--recipe", "baseline", "--preset", "long"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    give_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # at once
    env = {**os.environ, **give_back, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--output-dir", str(run_dir), *words], capture_output=True, text=True, env=env
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_a_row_beyond_memory_is_trained_with_checkpointing(tmp_path, long_row):
    done = limited(tmp_path / "full", long_row)
    assert done.returncode == 0, done.stderr
    assert last_checkpoint(tmp_path / "full").name == "step-00000001"
    failed = limited(tmp_path / "none", long_row, "training.activation_checkpointing=none")
    assert failed.returncode == 2, failed.stderr
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: rank 0, step 1: out of memory on cpu"), failed.stderr
    assert "training.activation_checkpointing=selective or full" in last
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("recipe", sorted(set(available()) - {"pretrain"}))
def test_the_preset_goes_with_every_recipe(recipe):
    found = load_recipe(recipe, "long", ["model.path=somewhere", "data.train=rows.jsonl"])
    assert found.training.activation_checkpointing == "full"
    assert found.training.micro_batch_size == 1


def test_a_checkpoint_is_given_more_positions(tmp_path, rows_file):
    short = {"model__architecture__max_seq_len": 32}
    assert train(tmp_path / "short", rows_file, training__steps=1, **short) == 0
    model = last_checkpoint(tmp_path / "short") / "model"
    further = {"model__path": model, "training__steps": 2, "data__max_length": 100}
    further |= {"tokenizer__kind": "auto"}
    assert train(tmp_path / "refused", rows_file, **further) == 2
    more = {"model__max_seq_len": 50, "model__rope_theta": 2e4}
    assert train(tmp_path / "longer", rows_file, **further, **more) == 0
    args = inspect_checkpoint(last_checkpoint(tmp_path / "longer") / "model").args
    assert (args.max_seq_len, args.rope_theta) == (50, 2e4)


def test_the_refusal_says_how(tmp_path, rows_file, capsys):
    assert train(tmp_path / "run", rows_file, data__max_length=2000) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "exceeds the model's 1024 positions" in error
    assert "--set model.architecture.max_seq_len=1000" in error
