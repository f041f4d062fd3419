"""DDP and FSDP2 wrap the model on two gloo processes and change nothing about what it learns."""

import re
from pathlib import Path

import pytest
from tests.helpers import torchrun

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).with_name("worker_wrapping.py")


@pytest.mark.parametrize("how", ["ddp", "fsdp", "fsdp_from_meta"])
def test_two_processes_equal_one(how, record_property):
    output = torchrun(WORKER, how, nproc=2)
    assert f"{how} agrees on 2 ranks" in output, output
    for what, error in re.findall(r"(loss|gradient|weight)=(\S+)", output):
        record_property(f"max_{what}_error", float(error))


def test_a_failing_worker_is_an_assertion_with_its_output():
    with pytest.raises(AssertionError, match="KeyError: 'neither'"):
        torchrun(WORKER, "neither", nproc=1)
