"""Every objective learns the same on several processes as on one."""

import shutil
from pathlib import Path

import pytest
import torch
from tests.distributed.test_training_ddp import RUN, assert_same_training
from tests.helpers import tiny_args, tiny_model, torchrun
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    CRITIC,
    SMALL,
    last_checkpoint,
    resume,
    train,
    train_arguments,
    train_curve,
)
from torch.distributed.checkpoint import FileSystemReader

from weighted_mtp.cli.main import main
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).with_name("worker_equality.py")

rows_file = helpers_training.rows_file


@pytest.mark.parametrize(
    ("groups", "processes"),
    [
        ("parts,empty", 2),
        pytest.param("curves,others,even", 2, marks=pytest.mark.slow),
        pytest.param("curves,others,hsdp,even", 4, marks=pytest.mark.slow),
    ],
)
def test_every_objective_learns_the_same(groups, processes, tmp_path, rows_file):
    """On one process, under DDP and under FSDP."""
    arguments = (groups, str(rows_file), str(tmp_path))
    output = torchrun(WORKER, *arguments, nproc=processes, timeout=400)
    assert f"runs agree on {processes} processes" in output
    print(output)


STAGES = {
    **SMALL,
    **CRITIC,
    "training.micro_batch_size": 2,
    "training.learning_rate": 1e-3,
    "critic_stage.steps": 4,
}


@pytest.mark.slow
def test_two_stages_on_two_processes(tmp_path, rows_file):
    """The process group is formed twice in one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, rows_file, "verifiable", **STAGES) == 0
    torchrun(WORKER, "late", "train", *train_arguments(two, rows_file, "verifiable", **STAGES))
    assert_same_training(two / "critic", one / "critic")
    assert_same_training(two, one)
    assert resume(two) == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_compiled_blocks_learn_the_same(mode, tmp_path, rows_file):
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    short = {**SMALL, **RUN, "training__steps": 3, "runtime__parallel": mode}
    assert train(plain, rows_file, **short) == 0
    arguments = train_arguments(compiled, rows_file, **short, runtime__compile=True)
    torchrun("-m", "weighted_mtp", "train", *arguments, timeout=400)
    assert_same_training(compiled, plain, weight_gap=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("added", [None, 2])
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_heads_on_a_frozen_trunk(mode, added, tmp_path, rows_file):
    """Frozen weights in bfloat16 and trained ones in float32, beside each other in FSDP's units.
    Heads that are added are first fitted to the rows of all processes."""
    start = tmp_path / "start"
    shape = {} if added is None else {"n_future_tokens": 1}
    args = tiny_args(vocab_size=259, max_seq_len=64, **shape)
    save_native(tiny_model(args).bfloat16(), start)
    changes = {
        **SMALL,
        **RUN,
        "model__path": start,
        "model__architecture": "null",
        "training__adapt": "heads",
        "training__steps": 4,
        "runtime__compute_dtype": "bfloat16",
    }
    if added is not None:
        changes |= {"model__add_heads": added, "model__head_start": "fit"}
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, rows_file, **changes) == 0
    arguments = train_arguments(two, rows_file, **changes, runtime__parallel=mode)
    torchrun("-m", "weighted_mtp", "train", *arguments)
    curves = zip(train_curve(two), train_curve(one), strict=True)
    assert max(abs(a - b) for a, b in curves) < 5e-3  # bfloat16 products, cut in another way
    frozen = load_meta_mtp_model(two, "cpu", keep_formats=True).layers.state_dict()
    before = load_meta_mtp_model(start, "cpu").layers.state_dict()
    assert all(torch.equal(frozen[name].float(), before[name].float()) for name in before)


@pytest.mark.parametrize("mode", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_adapters_on_two_processes(mode, tmp_path, rows_file):
    """Trained as on one; a checkpoint in parts holds the adapters alone, and one process takes it
    up."""
    start = tmp_path / "start"
    save_native(tiny_model(tiny_args(vocab_size=259, max_seq_len=64)).bfloat16(), start)
    changes = {
        **SMALL,
        **RUN,
        "model__path": start,
        "model__architecture": "null",
        "training__adapt": "lora",
        "training__lora__rank": 4,
        "training__steps": 4,
        "training__save_every": 2,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, rows_file, **changes) == 0
    arguments = train_arguments(two, rows_file, **changes, runtime__parallel=mode)
    torchrun("-m", "weighted_mtp", "train", *arguments)
    assert max(abs(a - b) for a, b in zip(train_curve(two), train_curve(one), strict=True)) < 1e-5
    last, whole = last_checkpoint(two), tmp_path / "whole"
    expected = load_meta_mtp_model(one, "cpu", "float32").state_dict()
    ended = [two]
    if mode == "fsdp":
        names = FileSystemReader(last / "shards").read_metadata().state_dict_metadata
        assert not any(name.startswith("weights.transformer.tok_emb") for name in names)
        assert any("lora_A" in name for name in names)
        parts = tmp_path / "parts"
        shutil.copytree(last, parts / "checkpoints" / last.name)
        shutil.rmtree(parts / "checkpoints" / last.name / "model")
        assert main(["convert", str(parts / "checkpoints" / last.name), str(whole)]) == 0
        ended.append(whole)
    for folder in ended:
        assert largest_gap(folder, expected) < 1e-4
    shutil.rmtree(last)
    assert resume(two) == 0
    assert largest_gap(two, expected) < 1e-4


def largest_gap(folder, expected):
    found = load_meta_mtp_model(folder, "cpu", "float32").state_dict()
    return max(float((found[name] - weight).abs().max()) for name, weight in expected.items())


def test_one_process_may_offload(tmp_path, rows_file):
    """On a GPU, weights and optimizer state are then in the host's memory; on the CPU they are
    there anyway, and the same code trains as without."""
    changes = {**SMALL, **RUN, "training__steps": 3, "training__save_every": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, rows_file, **changes) == 0
    offloaded = {"runtime__parallel": "fsdp", "runtime__fsdp__cpu_offload": True}
    assert train(two, rows_file, **changes, **offloaded) == 0
    assert max(abs(a - b) for a, b in zip(train_curve(two), train_curve(one), strict=True)) < 1e-5
    assert (last_checkpoint(two) / "shards").is_dir()
