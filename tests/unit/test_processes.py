"""Work shared out among processes: in order, a little at a time, nobody left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weighted_mtp.core import processes
from weighted_mtp.core.processes import share_out


@pytest.fixture
def forked(monkeypatch):
    """A fresh process takes a second to start."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    monkeypatch.setattr(processes, "_START", "fork")


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3 == 0))  # not all take as long
    return number * number


def shared(function, items, workers, in_order=True):
    return share_out(function, items, workers, "a worker died", "take fewer", in_order)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 40])
def test_every_item_has_its_result(workers, size, forked):
    expected = [(x, x * x) for x in range(size)]
    assert list(shared(square, range(size), workers)) == expected
    assert sorted(shared(square, range(size), workers, in_order=False)) == expected


@pytest.mark.parametrize("in_order", [True, False])
def test_only_some_items_are_taken_ahead(in_order, forked):
    taken = []
    results = shared(square, (taken.append(x) or x for x in range(40)), 2, in_order)
    for given, _ in enumerate(results):
        assert len(taken) - given <= 2 * processes._AHEAD + 1
    assert len(taken) == 40


def habits(_item: int) -> tuple[bool, str]:
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return ignored, os.environ["TOKENIZERS_PARALLELISM"]


def test_workers_leave_ctrl_c_and_the_other_cores_to_others():
    assert [habit for _, habit in shared(habits, [1, 2], 2)] == [(True, "false")] * 2


def fail_or_finish(finished: Path | None) -> None:
    if finished is None:
        raise ValueError("here")
    time.sleep(20)
    finished.touch()


def test_a_failure_ends_the_others_in_the_middle_of_their_work(tmp_path):
    with pytest.raises(ValueError, match="here"):
        list(shared(fail_or_finish, [None, tmp_path / "a", tmp_path / "b"], 2))
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


PARENT = """
import os, signal, sys, time
from weighted_mtp.core.processes import share_out

def work(item):
    print("working", flush=True)
    time.sleep(40 * item)

if __name__ == "__main__":
    for _ in share_out(work, [0, 1, 1], 2, "", ""):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """They have its output, which is not at its end before."""
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.startswith("working")
