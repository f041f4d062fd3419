"""What a run in parts saves, any number of processes goes on with, in any mode; and whatever ends a
process, the run ends with a word and goes on from its last checkpoint."""

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tests.distributed.test_training_ddp import RUN, assert_same_training, steps_logged
from tests.helpers import torchrun
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    CRITIC,
    SMALL,
    checkpoint_names,
    last_checkpoint,
    records,
    resume,
    same,
    train,
    train_arguments,
    tree,
    weights,
)
from torch.distributed.checkpoint import FileSystemWriter

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import complete_checkpoints, find_model
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model
from weighted_mtp.pipelines.checkpoint_utils import checkpoint_path
from weighted_mtp.pipelines.checkpointing.sharded import ShardedSaver
from weighted_mtp.runtime.modes import can_shard

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not can_shard(torch.device("cpu")), reason="this PyTorch shards on GPUs"),
]
KILLED = Path(__file__).with_name("worker_killed.py")

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer

FSDP = {"runtime__parallel": "fsdp"}
ADAM_GAP = 1e-4
"""Adam divides a gradient by its own size: where a weight has next to none, rounding moves it."""
WEIGHTED = {
    **SMALL,
    **CRITIC,
    **RUN,
    "objective__td__whiten": "ema",
    "objective__value__head_type": "mlp",
    "critic_stage__steps": 4,
    "training__learning_rate": 1e-3,
    "training__batch_size": 6,
}


def fsdp(*arguments: str, processes: int = 2, timeout: float = 120) -> str:
    return torchrun("-m", "weighted_mtp", "train", *arguments, nproc=processes, timeout=timeout)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, rows_file) -> Path:
    """Both stages of a weighted training, on one process."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert train(run_dir, rows_file, "verifiable", **WEIGHTED) == 0
    return run_dir


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, rows_file, alone) -> Path:
    """The same, in parts on two. Each starts from a model that no process has whole."""
    run_dir = tmp_path_factory.mktemp("sharded") / "run"
    fsdp(*train_arguments(run_dir, rows_file, "verifiable", **WEIGHTED, **FSDP))
    return run_dir


def before_its_end(run: Path, copy: Path) -> Path:
    """A copy of a run that has lost its last checkpoint."""
    shutil.copytree(run, copy)
    shutil.rmtree(last_checkpoint(copy))
    return copy


def test_a_run_in_parts_is_the_run_in_one_piece(sharded, alone):
    assert_same_training(sharded / "critic", alone / "critic", ADAM_GAP)
    assert_same_training(sharded, alone, ADAM_GAP)
    assert steps_logged(sharded, "train") == list(range(1, 11))
    assert checkpoint_names(sharded) == ["step-00000005", "step-00000010"]
    last = last_checkpoint(sharded)
    assert {p.name for p in last.iterdir()} == {
        "COMPLETE", "model", "rng-0.pt", "rng-1.pt", "shards", "skeleton", "sums.json",
        "trainer.json",
    }  # fmt: skip
    assert {p.name for p in (last / "shards").iterdir()} == {
        ".metadata", "__0_0.distcp", "__1_0.distcp"
    }  # fmt: skip


def test_one_process_goes_on_in_the_place_of_two(sharded, alone, tmp_path):
    run_dir = before_its_end(sharded, tmp_path / "run")
    assert resume(run_dir) == 0
    assert_same_training(run_dir, alone, ADAM_GAP)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fsdp", "ddp"])
def test_two_processes_go_on_in_the_place_of_one(mode, sharded, alone, tmp_path):
    run_dir = before_its_end(alone, tmp_path / "run")
    fsdp("--resume", "--output-dir", str(run_dir), "--set", f"runtime.parallel={mode}")
    assert_same_training(run_dir, alone, ADAM_GAP)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "processes"), [("fsdp", 2), ("ddp", 2), ("fsdp", 4), ("hsdp", 4), ("fsdp", 3)]
)
def test_any_number_goes_on_in_any_mode(mode, processes, sharded, alone, tmp_path):
    run_dir = before_its_end(sharded, tmp_path / "run")
    changes = ["--set", f"runtime.parallel={mode}", "--set", "runtime.fsdp.shard_size=2"]
    fsdp("--resume", "--output-dir", str(run_dir), *changes, processes=processes)
    assert_same_training(run_dir, alone, ADAM_GAP)
    if (mode, processes) == ("fsdp", 2):  # training went on while the checkpoint was written
        assert same(weights(run_dir), weights(sharded))
        assert records(run_dir) == records(sharded)


def test_a_last_checkpoint_that_was_not_put_together(sharded, tmp_path):
    """Its run was killed between the last save and the model in one piece."""
    run_dir = shutil.copytree(sharded, tmp_path / "run")
    shutil.rmtree(last_checkpoint(run_dir) / "model")
    assert resume(run_dir) == 0
    assert same(weights(run_dir), weights(sharded))


@pytest.mark.parametrize("to", ["native", "hf"])
def test_convert_puts_a_model_together(to, sharded, tmp_path, capsys):
    """Without a process group; the last checkpoint has the same model in one piece."""
    source = shutil.copytree(last_checkpoint(sharded), tmp_path / "step")
    shutil.rmtree(source / "model")
    with pytest.raises(UserError, match=f"in parts.*weighted-mtp convert {source} DIRECTORY"):
        find_model(source)
    before = tree(source)
    assert main(["convert", str(source), str(tmp_path / "model"), "--to", to]) == 0
    assert "the weights, the tokenizer, the value head" in capsys.readouterr().out
    assert tree(source) == before
    whole = load_meta_mtp_model(last_checkpoint(sharded) / "model").state_dict()
    assert same(load_meta_mtp_model(tmp_path / "model").state_dict(), whole)
    assert (
        main(["generate", str(tmp_path / "model"), "--prompt", "a", "--max-new-tokens", "2"]) == 0
    )


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "__1_0.distcp"])
@pytest.mark.parametrize("damage", ["cut", "text", "absent"])
def test_a_damaged_part_is_named(name, damage, sharded, tmp_path, capsys):
    run_dir = before_its_end(sharded, tmp_path / "run")
    path = last_checkpoint(run_dir) / "shards" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "absent":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"not what it was\n")
    assert resume(run_dir) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert str(path.parent) in error


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_a_checkpoint_that_does_not_fit(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(**SMALL)
    parts = (trainer.module.adapter, trainer.weights, trainer.optimizer, trainer.tokenizer)
    saver = ShardedSaver(tmp_path, *parts, trainer.copies)
    saver.save(1, (), {})
    saver.settle()
    monkeypatch.setattr(FileSystemWriter, "write_data", no_space)
    saver.save(2, (), {})
    told = r"cannot be written \(rank 0: \[Errno 28\] No space left on device\); earlier"
    with pytest.raises(UserError, match=told):
        saver.settle()
    assert complete_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 1)]


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- when a process ends -------------------------------------------------------------------------

SAVING = {**RUN, **FSDP, "training__save_every": 2, "training__keep_last": 2}


def killed(number: int, rank: int | str, step: int, delay: float, *arguments: str) -> str:
    """Train on two processes of which one, or torchrun, meets a signal; what they printed."""
    meeting = (str(int(number)), str(rank), str(step), str(delay), "train")
    with pytest.raises(AssertionError) as failure:
        torchrun(KILLED, *meeting, *arguments, timeout=100)
    assert "no end within" not in str(failure.value)
    return str(failure.value)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, rows_file) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(run_dir, rows_file, **RUN) == 0
    return run_dir


def test_kill_nine_of_one_process(tmp_path, rows_file, undisturbed):
    run_dir = tmp_path / "run"
    output = killed(signal.SIGKILL, 1, 6, 0.1, *train_arguments(run_dir, rows_file, **SAVING))
    assert "error: rank 0 of 2, step" in output
    assert "continue with --resume" in output
    assert resume(run_dir) == 0
    assert_same_training(run_dir, undisturbed)
    assert [name for name in checkpoint_names(run_dir) if name.endswith(".partial")] == []


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(10))
def test_kill_nine_at_a_random_moment(trial, tmp_path, rows_file, undisturbed):
    """A checkpoint is begun in every step, so that most of them fall into a save. The process that
    is left says so, whichever it is."""
    run_dir, rank = tmp_path / "run", trial % 2
    arguments = train_arguments(run_dir, rows_file, **{**SAVING, "training__save_every": 1})
    chance = random.Random()  # the other one starts from the same seed in every test
    step, delay = chance.randint(1, 8), chance.uniform(0, 0.5)
    output = killed(signal.SIGKILL, rank, step, delay, *arguments)
    said = [line for line in output.splitlines() if line.startswith("error: rank")]
    print(f"rank {rank}, step {step}, after {delay:.3f} s:", *said)
    assert f"error: rank {1 - rank} of 2, step" in output
    assert "continue with --resume" in output
    assert resume(run_dir) == 0
    assert_same_training(run_dir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "told"), [(0, "before or after the training steps"), (6, "step 6")]
)
def test_a_process_that_hangs(step, told, tmp_path, rows_file):
    """torchrun gives it 30 s to end by itself, which a stopped process cannot."""
    changes = {**SAVING, "runtime__timeout_minutes": 0.1}
    arguments = train_arguments(tmp_path / "run", rows_file, **changes)
    output = killed(signal.SIGSTOP, 1, step, 0, *arguments)
    assert f"error: rank 0 of 2, {told}: another process ended, or did not answer" in output


@pytest.mark.slow
@pytest.mark.parametrize("whom", [1, "torchrun"])
def test_sigterm_saves_and_ends(whom, tmp_path, rows_file, undisturbed):
    """As a cluster does before it takes the machine away."""
    run_dir = tmp_path / "run"
    output = killed(signal.SIGTERM, whom, 5, 0, *train_arguments(run_dir, rows_file, **SAVING))
    assert "stopped after step 5, saved in" in output or "stopped after step 6" in output
    assert 'Traceback (most recent call last):\n  File "<frozen' in output  # torchrun's own
    assert resume(run_dir) == 0
    assert_same_training(run_dir, undisturbed)


@pytest.mark.slow
def test_torchrun_starts_again_where_it_was(tmp_path, rows_file, undisturbed):
    run_dir = tmp_path / "run"
    worker = [KILLED, str(int(signal.SIGKILL)), "1", "6", "0.05", "train"]
    arguments = train_arguments(run_dir, rows_file, **SAVING)
    output = torchrun("--max-restarts=1", *map(str, worker), *arguments)
    assert "resuming from" in output
    assert_same_training(run_dir, undisturbed)
    with pytest.raises(AssertionError, match="holds a run already; add --resume"):
        torchrun("--max-restarts=1", *map(str, worker), *arguments)  # nothing of its own making
