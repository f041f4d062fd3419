"""Forming a process group again, in a store where processes that have ended left their marks."""

import signal
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.interruption import StopRequest
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
        distributed.naming_the_step(),
        distributed.naming_the_step(step),
    ):
        raise lost
    with pytest.raises(RuntimeError, match="something else"), distributed.naming_the_step():
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
