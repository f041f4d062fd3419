"""Rows that join and leave a running batch are written as `complete` writes each alone."""

from __future__ import annotations

import random

import pytest
import torch
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.decoding import Sampling, Speculation, Stopping, complete
from weighted_mtp.decoding.running import RunningBatch
from weighted_mtp.decoding.running_rows import Order, RunningRow
from weighted_mtp.decoding.verify import LossyTypical

LENGTH = 60
SAMPLINGS = [
    Sampling(),
    Sampling(repetition_penalty=1.3),
    Sampling(0.8, seed=5),
    Sampling(1.2, top_p=0.9, seed=6, repetition_penalty=1.2),
    Sampling(0.8, top_k=9, seed=7),
]


def decode(ids) -> str:
    return "".join(chr(97 + token % 26) for token in ids)


def orders(count: int, seed: int) -> list[Order]:
    chance, found = random.Random(seed), []
    for number in range(count):
        prompt = [chance.randrange(37) for _ in range(chance.randint(1, 30))]
        strings = ("ab", "q") if number % 4 == 1 else ()
        stopping = Stopping(chance.randint(1, LENGTH - 30), 36, strings, decode)
        found.append(Order(prompt, stopping, chance.choice(SAMPLINGS), number, number % 3 or None))
    return found


def run_all(batch: RunningBatch, waiting: list[Order], chance: random.Random) -> dict:
    """All rows written, a few joining before each pass: id of the order → its row and pieces."""
    waiting, texts, gains = list(waiting), {}, {}

    def take(rows: list[RunningRow]) -> None:
        for row in rows:
            piece, likeliest = row.take()
            gains.setdefault(id(row.order), []).append((piece, likeliest))
            texts[id(row.order)] = row

    while waiting or batch.rows:
        count = min(batch.free, len(waiting), chance.randint(0, 3))
        new, waiting = waiting[:count], waiting[count:]
        take(batch.admit(new))
        take(batch.step())
        assert all(row.row.finish is None for row in batch.rows)
    return {key: (row, gains[key]) for key, row in texts.items()}


@pytest.mark.parametrize(
    "speculation",
    [None, Speculation(), Speculation(2), Speculation(adaptive=True)],
    ids=["plain", "all heads", "k=2", "adaptive"],
)
def test_texts_do_not_depend_on_who_else_is_in_the_batch(speculation):
    """Greedy rows in float32, where near-ties are settled; drawn ones too, in float64."""
    for dtype, seed in ((torch.float32, 1), (torch.float64, 2)):
        model = tiny_model(tiny_args(max_seq_len=64), dtype=dtype).requires_grad_(False)
        asked = orders(14, seed)
        batch = RunningBatch(model, 5, LENGTH, speculation)
        found = run_all(batch, asked, random.Random(seed))
        for order in asked:
            row, pieces = found[id(order)]
            (wanted,), _ = complete(
                model,
                [order.prompt],
                order.stopping,
                order.sampling,
                speculation,
                [order.row_seed],
                logprobs=order.alternatives is not None,
            )
            got = row.row.completion()
            assert (got.tokens, got.text, got.finish) == (
                wanted.tokens,
                wanted.text,
                wanted.finish,
            )
            assert got.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
            assert "".join(piece.text for piece, _ in pieces) == wanted.text
            likeliest = [best for _, each in pieces for best in each]
            if order.alternatives:
                assert [len(best) for best in likeliest] == [order.alternatives] * len(got.tokens)
                if order.sampling == Sampling():
                    assert [best[0][0] for best in likeliest] == got.tokens
                    firsts = [best[0][1] for best in likeliest]
                    assert firsts == pytest.approx(got.logprobs, abs=1e-4)
        report = batch.report
        assert report.tokens == sum(len(row.row.new) for row, _ in found.values())
        assert sum(report.histogram) == report.steps


def test_rows_leave_before_their_end():
    model = tiny_model(tiny_args(max_seq_len=64))
    batch = RunningBatch(model, 4, LENGTH, Speculation())
    asked = [Order([1 + i, 2, 3], Stopping(20, decode=decode)) for i in range(4)]
    rows = batch.admit(asked)
    batch.step()
    assert batch.free == 0
    batch.drop([rows[0], rows[2]])
    assert batch.free == 2
    assert {id(row) for row in batch.rows} == {id(rows[1]), id(rows[3])}
    late = batch.admit([Order([9] * 7, Stopping(20, decode=decode))])
    while batch.rows:
        batch.step()
    for row in (rows[1], rows[3], *late):
        row.take()
        (wanted,), _ = complete(model, [row.order.prompt], row.order.stopping)
        assert row.row.completion() == wanted


def test_what_no_row_can_hold_is_refused():
    batch = RunningBatch(tiny_model(), 2, 20)
    for prompt, new, message in (
        ([], 3, "empty"),
        ([1] * 15, 6, "15 tokens, which with 6 new ones exceed 20"),
        ([1, 37], 3, "token 37"),
        ([1], 0, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            batch.check(Order(prompt, Stopping(new)))
    batch.check(Order([1] * 15, Stopping(5)))
    assert batch.admit([]) == [] == batch.step()
    with pytest.raises(ValueError, match="exceed the model's 32 positions"):
        RunningBatch(tiny_model(), 2, 31, Speculation())
    with pytest.raises(ValueError, match="without loss"):
        RunningBatch(tiny_model(), 2, 20, Speculation(lossy_typical=LossyTypical()))
