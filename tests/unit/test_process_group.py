"""Forming a process group again, in a store where processes that have ended left their marks."""

import signal
import sys
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.training.policies import StopRequest
from weighted_mtp.runtime import distributed

WAIT = timedelta(seconds=20)


def form(store: dist.Store, ranks: tuple[int, ...] = (0, 1, 2)) -> dict[int, bytes]:
    """What three processes find under one key of theirs, after the first one wrote there."""
    found = {}

    def join(rank: int) -> None:
        fresh = distributed.fresh_store(store, rank, 3, WAIT)
        assert not fresh.check(["left behind"])
        if rank == 0:
            fresh.set("left behind", "here")
        found[rank] = fresh.get("left behind")

    threads = [threading.Thread(target=join, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_each_attempt_has_a_store_of_its_own():
    store = dist.HashStore()
    store.set_timeout(WAIT)
    for rank in (1, 2):
        store.set(f"call {rank}", "left by a process that was killed before it was answered")
    for _ in range(3):
        assert form(store) == dict.fromkeys(range(3), b"here")


def test_a_process_that_does_not_come():
    store = dist.HashStore()
    store.set("call 1", "left by a process that was killed")
    with pytest.raises(RuntimeError, match=r"rank 1 did not come within 0:00:00.1"):
        distributed.fresh_store(store, 0, 2, timedelta(seconds=0.1))


def test_a_directory_that_is_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "FILE_LAG", 0)
    distributed.check_shared(tmp_path)
    with pytest.raises(UserError, match=r"absent: rank 0 of 1 does not find it.*all nodes share"):
        distributed.check_shared(tmp_path / "absent")


@pytest.mark.parametrize(
    ("step", "told"), [(None, "before or after the training steps"), (lambda: 7, "step 7")]
)
def test_a_lost_process_is_told_once(step, told):
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    with (
        pytest.raises(UserError, match=f"rank 0 of 1, {told}: another process ended"),
        distributed.report_lost_rank(),
        distributed.report_lost_rank(step),
    ):
        raise lost
    with pytest.raises(RuntimeError, match="something else"), distributed.report_lost_rank():
        raise RuntimeError("something else")


@pytest.mark.parametrize(("message", "stays"), [("[gloo/] Connection closed", True), ("no", False)])
def test_sigterm_waits_for_the_last_word(message, stays):
    """torchrun ends the processes that are left as soon as one has died."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError), StopRequest():
            raise RuntimeError(message)
        assert (signal.getsignal(signal.SIGTERM) != before) == stays
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


# --- where NCCL would wait for everybody ---------------------------------------------------------


@pytest.fixture
def nccl(monkeypatch):
    """A group that seems to be NCCL's; os._exit only tells its code."""
    ended = []
    monkeypatch.setattr(distributed, "_backend", "cpu:gloo,cuda:nccl")
    monkeypatch.setattr(distributed, "_abandoned", False)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: ended.append("group"))
    monkeypatch.setattr(distributed.os, "_exit", ended.append)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "GLOO_PAUSE", 0)
    return ended


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(UserError("no room"), 2, "error: no room\n"), (ValueError("odd"), 1, "ValueError: odd\n")],
)
def test_a_process_that_failed_alone_speaks_and_ends_at_once(error, code, told, nccl, capsys):
    distributed.stop(failed=True)
    assert nccl == []
    distributed.end_if_abandoned(error)
    assert nccl == [code]
    assert capsys.readouterr().err.endswith(told)


def test_otherwise_the_group_is_left(nccl, capsys):
    distributed.stop()
    distributed.end_if_abandoned(UserError("of another kind"))
    assert nccl == ["group"]
    assert capsys.readouterr().err == ""


def test_a_step_that_takes_long_is_told(nccl, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "_timeout", timedelta(seconds=0.02))
    told = threading.Event()
    with distributed.speaking_up(lambda: told.set() or 7):
        assert told.wait(10)
        while "watchdog" not in (text := capsys.readouterr().err):
            pass
    assert text.startswith("rank 1 of 2, step 7: has taken 0 s")


def test_one_start_of_torchrun_is_not_another(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert distributed.launch() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    mine = distributed.launch()
    assert mine == distributed.launch()
    monkeypatch.setattr(distributed.os, "getppid", lambda: 1)  # as in a container
    assert distributed.launch() != mine
    assert len(distributed.launch().split()) == (4 if sys.platform == "linux" else 2)
