"""DDP and FSDP2 wrap the model on two gloo processes and change nothing about what it learns."""

import re
from pathlib import Path

import pytest
import torch
from tests.distributed.worker_wrapping import FAMILIES
from tests.helpers import torchrun

from weighted_mtp.runtime.modes import can_shard

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).with_name("worker_wrapping.py")


def test_two_processes_equal_one(record_property):
    families = [f"fsdp:{name}" for name in FAMILIES if name != "llama"]
    shards = can_shard(torch.device("cpu"))
    ways = ["ddp", *(["fsdp", "fsdp_from_meta", *families] if shards else [])]
    output = torchrun(WORKER, *ways, nproc=2)
    found = re.findall(
        r"([\w:]+) agrees on 2 ranks: loss=(\S+) gradient=(\S+) weight=(\S+)", output
    )
    assert [how for how, *_ in found] == ways, output
    for how, *errors in found:
        for what, error in zip(("loss", "gradient", "weight"), errors, strict=True):
            record_property(f"{how}_max_{what}_error", float(error))


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    output = torchrun(WORKER.with_name("worker_agreement.py"), str(tmp_path), nproc=2)
    assert output.count("agreed") == 2
    print(output)


@pytest.mark.slow
def test_every_group_comes_to_its_end():
    """Without the pause of `distributed.stop` one of about 75 ends hung."""
    worker = WORKER.with_name("worker_endings.py")
    assert torchrun(worker, "150", timeout=200).count("left") == 2


def test_a_failing_worker_is_an_assertion_with_its_output():
    with pytest.raises(AssertionError, match="KeyError: 'neither'"):
        torchrun(WORKER, "neither", nproc=1)
