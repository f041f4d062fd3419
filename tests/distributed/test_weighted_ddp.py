"""The weighted objectives learn the same on two processes as on one."""

from pathlib import Path

import pytest
from tests.distributed.test_training_ddp import assert_same_training
from tests.helpers import torchrun
from tests.integration import helpers_training
from tests.integration.helpers_training import CRITIC, SMALL, resume, train, train_arguments

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).with_name("worker_weighted.py")

rows_file = helpers_training.rows_file


@pytest.mark.parametrize("group", ["empty", pytest.param("even", marks=pytest.mark.slow)])
def test_two_processes_decide_as_one(group, tmp_path, rows_file):
    output = torchrun(WORKER, group, str(rows_file), str(tmp_path), timeout=60)
    assert f"{group}: 16 cases agree on 2 processes" in output
    print(output)


STAGES = {
    **SMALL,
    **CRITIC,
    "training.micro_batch_size": 2,
    "training.learning_rate": 1e-3,
    "critic_stage.steps": 4,
}


def test_two_stages_on_two_processes(tmp_path, rows_file):
    """The process group is formed twice in one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, rows_file, "verifiable", **STAGES) == 0
    torchrun(WORKER, "late", "train", *train_arguments(two, rows_file, "verifiable", **STAGES))
    assert_same_training(two / "critic", one / "critic")
    assert_same_training(two, one)
    assert resume(two) == 0
