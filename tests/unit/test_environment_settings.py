"""Numerics are put back, training draws no random numbers, and memory is told once."""

import os
import random
import sys
import types

import numpy as np
import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import SMALL, build_trainer, run_steps, state, train

from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.metrics_utils import read_metrics
from weighted_mtp.runtime import peak_memory as memory_module
from weighted_mtp.runtime.environment import (
    CUBLAS,
    device_of_this_process,
    environment,
    numerics,
    seed_everything,
)
from weighted_mtp.runtime.peak_memory import GIB, PeakMemory, peak_memory, resident

rows_file = helpers_training.rows_file


def numeric_state() -> tuple:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        matmul.allow_tf32,
        cudnn.allow_tf32,
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get(CUBLAS),
    )


@pytest.mark.parametrize("tf32", [None, False, True])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_numerics_are_put_back(tf32, deterministic, workspace, monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)
    if workspace is not None:
        monkeypatch.setenv(CUBLAS, workspace)
    before = numeric_state()
    with numerics(tf32, deterministic):
        inside = numeric_state()
        with pytest.raises(KeyError), numerics(True, not deterministic):
            raise KeyError
        assert numeric_state() == inside  # one environment within another
    assert numeric_state() == before
    formats = before[:2] if tf32 is None else (tf32, tf32)
    strict = (False, True, True, False, workspace or ":4096:8") if deterministic else before[2:]
    assert inside == (*formats, *strict)


def test_a_setting_of_someone_else_stays():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with environment("cpu", deterministic=True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with environment("cpu"):
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_training_is_the_same_training(tmp_path, rows_file):
    """On the CPU every kernel it needs is there, and gives the bits it gave before."""
    seen = []
    for name, deterministic in (("plain", False), ("strict", True)):
        with environment("cpu", deterministic=deterministic):
            assert torch.are_deterministic_algorithms_enabled() == deterministic
            changes = {"objective__value__gradient_to_trunk": True, **SMALL}
            trainer = build_trainer(rows_file, tmp_path / name, "verifiable", **changes)
            run_steps(trainer, 3)
            trainer.validate()
            seen.append(state(trainer))
    assert helpers_training.same(*seen)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("baseline", {"data__packing": True}),
        ("critic", {}),
        ("critic", {"objective__value__loss": "pairwise"}),
        ("verifiable", {"objective__td__whiten": "ema"}),
        ("verifiable", {"objective__name": "random_matched"}),
        ("verifiable", {"objective__name": "shuffled"}),
        ("rho1", {"objective__scope": "step"}),
    ],
)
def test_training_draws_no_random_numbers(recipe, changes, tmp_path, rows_file):
    """So every rank may start from the same seed; see `environment`."""
    trainer = build_trainer(rows_file, tmp_path, recipe, **changes, **SMALL)
    seed_everything(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run_steps(trainer, 2)
    trainer.validate()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize(("platform", "bytes_"), [("linux", 5 * 1024), ("darwin", 5)])
def test_the_unit_of_resident_memory(platform, bytes_, monkeypatch):
    usage = types.SimpleNamespace(ru_maxrss=5)
    fake = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: usage)
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(sys, "platform", platform)
    assert resident() == bytes_
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert resident() == 0


def test_peak_memory_of_this_process():
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(before.allocated // 4 + 2**23)  # more than there ever was
    after = peak_memory(torch.device("cpu"))
    assert after.allocated > before.allocated
    assert after.allocated > block.nbytes
    assert after.figures() == {"peak_bytes": after.allocated, "rank": 0}


def test_the_rank_that_took_most(monkeypatch):
    def gathered(table):
        return torch.tensor([[5, 9], [7 * GIB, 8 * GIB], [7, 7]])

    monkeypatch.setattr(memory_module.distributed, "all_reduce_sum", gathered)
    peak = peak_memory(torch.device("cpu"))
    assert peak == PeakMemory(1, 7 * GIB, 8 * GIB, False)
    assert str(peak) == "peak memory of the process 7.0 GiB (rank 1)"
    on_device = PeakMemory(1, 7 * GIB, 8 * GIB, True)
    assert str(on_device) == (
        "peak memory on the device 7.0 GiB, 8.0 GiB with what the allocator held (rank 1)"
    )
    assert on_device.figures()["reserved_bytes"] == 8 * GIB
    assert peak.is_news
    assert not PeakMemory(0, GIB, 0, False).is_news
    assert PeakMemory(0, GIB, GIB, True).is_news


def test_a_run_tells_its_memory_twice(tmp_path, rows_file, capsys):
    assert train(tmp_path / "run", rows_file, training__steps=3, **SMALL) == 0
    kept = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "memory"]
    assert [record["step"] for record in kept] == [1, 3]
    assert all(record["peak_bytes"] > 10**7 and record["rank"] == 0 for record in kept)
    if memory_module.resident() < memory_module.LITTLE:  # of all tests in this process
        assert "peak memory" not in capsys.readouterr().err  # a tiny run is no news


def test_a_run_of_one_step_tells_its_memory_once(tmp_path, rows_file):
    trainer = build_trainer(rows_file, tmp_path, training__steps=1, **SMALL)
    trainer.fit()
    kept = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "memory"]
    assert kept == [1]


# --- devices under torchrun ----------------------------------------------------------------------


@pytest.fixture
def two_cards(monkeypatch):
    """The second of two processes on a node that has two cards."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


def test_each_process_has_its_own_card(two_cards):
    for name in ("cuda", "cuda:1"):
        assert device_of_this_process(torch.device(name)) == torch.device("cuda:1")
    assert device_of_this_process(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "rank", "told"),
    [
        ("cuda", "2", "would need cuda:2, but PyTorch sees 2 cards"),
        ("cuda:0", "1", "is one card for 2 processes"),
        ("mps", "1", "MPS serves one process"),
    ],
)
def test_a_card_that_is_not_there_or_taken(device, rank, told, two_cards, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(UserError, match=told):
        device_of_this_process(torch.device(device))
