"""What a training reads: the same groups whoever reads them, whenever it went on."""

import multiprocessing
import time

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from weighted_mtp.core.config.sampling import SamplingConfig
from weighted_mtp.data.batches import Batch, Example
from weighted_mtp.data.loading import RowGroups, ShuffledGroups, StepReader
from weighted_mtp.data.packing import Cutter
from weighted_mtp.data.rows.metadata import Metadata
from weighted_mtp.data.sampling import RowOrder

ROWS = 23
EXAMPLES = [Example(list(range(2 + i % 7)), 1, False, i, f"t{i}", i % 3 != 0) for i in range(ROWS)]
CUTTER = Cutter(pad_id=0, longest=16, micro_batch_size=2)


def metadata() -> Metadata:
    nothing = np.full(ROWS, np.nan, dtype=np.float32)
    return Metadata(
        np.array([e.is_correct for e in EXAMPLES]),
        np.arange(ROWS, dtype=np.int32) // 4,
        np.full(ROWS, -1, dtype=np.int32),
        (),
        nothing,
        nothing,
        np.array([len(e.ids) for e in EXAMPLES], dtype=np.int32),
    )


def row_groups(cap: int | None = None, **settings) -> RowGroups:
    everything = np.arange(ROWS)
    order = RowOrder(metadata(), everything, SamplingConfig(**settings), 5, 1000, cap)
    return RowGroups(order, EXAMPLES)


def rows_of(groups) -> list[int]:
    return [example.row for group in groups for example in group]


def flat(batches: list[Batch]) -> list[Tensor]:
    return [x for batch in batches for x in (batch.tokens, batch.labels, batch.rows)]


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(flat(one), flat(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("make", [lambda: ShuffledGroups([(e,) for e in EXAMPLES], 5), row_groups])
def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(make):
    groups = make()
    first, second = rows_of(groups.take(0, ROWS)), rows_of(groups.take(ROWS, ROWS))
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    assert rows_of(groups.take(ROWS - 3, 6)) == first[-3:] + second[:3]
    assert rows_of(make().take(ROWS - 3, 6)) == first[-3:] + second[:3]


def test_both_kinds_of_groups_agree_on_the_order():
    shuffled = ShuffledGroups([(e,) for e in EXAMPLES], 5)
    assert rows_of(shuffled.take(4, 100)) == rows_of(row_groups().take(4, 100))


def test_prompts_without_a_response_are_passed_over_with_their_pair():
    groups = row_groups(cap=2)
    spoiled = list(EXAMPLES)
    spoiled[1] = spoiled[1]._replace(prompt_length=len(spoiled[1].ids))
    all_pairs = groups.take(0, groups.order.epoch_size)
    kept = RowGroups(groups.order, spoiled).take(0, groups.order.epoch_size)
    assert [rows_of([g]) for g in kept] == [
        rows_of([g]) for g in all_pairs if 1 not in rows_of([g])
    ]
    assert len(kept) < len(all_pairs)


def test_workers_read_what_one_process_reads():
    alone, ahead = (
        StepReader(row_groups(), CUTTER, 5),
        StepReader(row_groups(), CUTTER, 5, workers=2),
    )
    for _ in range(12):
        assert same(next(alone), next(ahead))
        assert alone.position == ahead.position


@pytest.mark.parametrize("settings", [{}, {"strategy": "balanced"}, {"n_samples": 7}])
@pytest.mark.parametrize("workers", [0, 1])
def test_going_on_in_the_middle_of_an_epoch(settings, workers):
    whole = StepReader(row_groups(**settings), CUTTER, 5)
    steps = [next(whole) for _ in range(9)]
    first = StepReader(row_groups(**settings), CUTTER, 5, workers=workers)
    for _ in range(4):
        next(first)
    state = first.state_dict()
    second = StepReader(row_groups(**settings), CUTTER, 5, workers=workers)
    second.load_state_dict(state)
    assert all(same(next(second), step) for step in steps[4:])


def test_another_batch_size_goes_on_at_the_same_row():
    groups = row_groups()
    small, large = StepReader(groups, CUTTER, 4), StepReader(groups, CUTTER, 8)
    next(small), next(small), next(small)
    large.load_state_dict(small.state_dict())
    next(large)
    assert [e.row for e in large.last_examples()] == rows_of(groups.take(12, 8))


def test_ranks_share_a_step_and_get_equally_many_batches():
    for packing in (False, True):
        cutter = Cutter(0, 16, 2, packing)
        readers = [StepReader(row_groups(), cutter, 7, rank, 3) for rank in range(3)]
        for _ in range(8):
            per_rank = [next(reader) for reader in readers]
            assert len({len(batches) for batches in per_rank}) == 1
            rows = [r for batches in per_rank for b in batches for r in b.rows.tolist() if r >= 0]
            assert sorted(rows) == sorted(e.row for e in readers[0].last_examples())


def test_reading_leaves_the_random_numbers_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    reader = StepReader(row_groups(), CUTTER, 5, workers=1)
    next(reader)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_window_that_begins_on_a_documents_last_token_is_read():
    """That piece alone has nothing to predict; what follows it in the window has."""
    nothing = Example([7], 1, False, 0, inputs=1)
    something = Example([1, 2, 3], 1, False, 0, inputs=3)
    groups = ShuffledGroups([(nothing, something), (nothing, nothing)], 0)
    assert groups.take(0, 2) == [(nothing, something)]


@pytest.mark.parametrize("method", [pytest.param("fork", marks=pytest.mark.slow), "forkserver"])
def test_no_worker_outlives_the_process_that_reads(method, tmp_path):
    """Killed, under a fork server too, whose children PyTorch's own watch does not see."""
    numbers = tmp_path / method
    process = multiprocessing.get_context(method).Process(target=_read_for_ever, args=(numbers,))
    process.start()
    while not (numbers.exists() and numbers.read_text().endswith(".")):
        time.sleep(0.05)
    started = [psutil.Process(int(pid)) for pid in numbers.read_text().rstrip(".").split()]
    assert started
    process.kill()
    process.join()
    assert not psutil.wait_procs(started, timeout=20)[1]


def _read_for_ever(numbers):
    reader = StepReader(row_groups(), CUTTER, 5, workers=1)
    next(reader)
    started = psutil.Process().children(recursive=True)  # a worker, perhaps its fork server
    numbers.write_text(" ".join(str(process.pid) for process in started) + ".")
    time.sleep(600)
