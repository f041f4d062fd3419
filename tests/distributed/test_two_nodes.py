"""A run directory has to be shared by all nodes; what is kept of it elsewhere takes its place."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tests.distributed.test_training_ddp import RUN, assert_same_training
from tests.helpers import torchrun
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    checkpoint_names,
    last_checkpoint,
    records,
    resume,
    train,
    train_arguments,
)

from weighted_mtp.pipelines.metrics_utils import read_metrics
from weighted_mtp.runtime import shared_directory
from weighted_mtp.runtime.modes import can_shard

WORKER = Path(__file__).with_name("worker_two_nodes.py")

rows_file = helpers_training.rows_file


class Nodes(NamedTuple):
    output: str
    run_dir: Path
    remote: Path


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, rows_file) -> Nodes:
    """What two processes printed and left: a run in parts, with copies in a remote directory."""
    if not can_shard(torch.device("cpu")):
        pytest.skip("this PyTorch shards on GPUs")
    folder = tmp_path_factory.mktemp("nodes")
    changes = {**RUN, "runtime__parallel": "fsdp"}
    changes["training__remote"] = f"file://{folder}/remote"
    arguments = train_arguments(folder / "run", rows_file, **changes)
    return Nodes(torchrun(WORKER, str(folder), *arguments), folder / "run", folder / "remote")


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}, False),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, True),
        ({"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}, True),
    ],
)
def test_several_nodes(variables, several, monkeypatch, tmp_path):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert shared_directory.several_nodes() == several
    shared_directory.check_directory(tmp_path / "absent" / "run")  # one process sees itself
    assert list(tmp_path.iterdir()) == []


@pytest.mark.distributed
@pytest.mark.slow
def test_nodes_that_do_not_share_a_directory(nodes):
    told = [line for line in nodes.output.splitlines() if "does not see" in line]
    assert sorted(line[:13] for line in told) == ["rank 0 error:", "rank 1 error:"]
    host = shared_directory.socket.gethostname()
    for line in told:
        assert f"/runs/mine: {host} does not see what the first node writes there" in line
        assert "give an --output-dir on a file system that they share" in line


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_in_parts_goes_on_elsewhere(nodes, tmp_path, rows_file):
    """Two processes hold it in parts, then one has it all; its model is made whole at the end."""
    assert train(tmp_path / "alone", rows_file, **RUN) == 0
    assert checkpoint_names(nodes.remote) == checkpoint_names(nodes.run_dir)
    for last in (last_checkpoint(nodes.run_dir), last_checkpoint(nodes.remote)):
        assert {path.name for path in last.iterdir()} == {
            *(
                "shards",
                "skeleton",
                "model",
                "sums.json",
                "trainer.json",
                "rng-0.pt",
                "rng-1.pt",
                "COMPLETE",
            )
        }
    memory = [r for r in read_metrics(nodes.run_dir / "metrics.jsonl") if r["kind"] == "memory"]
    assert [record["step"] for record in memory] == [1, 10]
    assert all(record["rank"] in (0, 1) for record in memory)
    remote = shutil.copytree(nodes.remote, tmp_path / "remote")
    shutil.rmtree(last_checkpoint(remote))
    run_dir = tmp_path / "elsewhere"
    assert resume(run_dir, "--set", f"training.remote=file://{remote}") == 0
    assert_same_training(run_dir, tmp_path / "alone", 1e-5)
    assert [r["step"] for r in records(run_dir) if r["kind"] == "train"] == list(range(1, 11))
