"""What drafting costs: by counted operations, and by the clock that decides whether it pays."""

import math
import random
from itertools import pairwise

import pytest
import torch
from tests.helpers import tiny_args, tiny_model
from tests.unit.test_speculative import make_model, texts, trained_model
from torch.utils.flop_counter import FlopCounterMode

from weighted_mtp.decoding import Sampling, Speculation, Stopping, Stream, step_clock
from weighted_mtp.decoding.draft_heads import Pairs, pairs_among
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.running import RunningBatch
from weighted_mtp.decoding.running_rows import Order
from weighted_mtp.decoding.speculative import Speculative
from weighted_mtp.decoding.step_clock import CostMeter, StepClock, between


def flops(call) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def products(call) -> int:
    """Multiplications with weights: those of attention are counted apart."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_flop_counts()["Global"].get(torch.ops.aten.mm, 0)


# --- rows and heads ------------------------------------------------------------------------------


def test_pairs_are_rows_by_head():
    counts = [2, 0, 1, 3]
    pairs = Pairs.of(counts, torch.device("cpu"))
    assert pairs.rows.tolist() == [0, 2, 3, 0, 3, 3]
    assert pairs.heads.tolist() == [0, 0, 0, 1, 1, 2]
    assert pairs.sizes == [3, 2, 1]
    placed = pairs.placed(torch.arange(1, 7), 4)
    assert placed.tolist() == [[1, 4, 0], [0, 0, 0], [2, 0, 0], [3, 5, 6]]
    assert pairs_among(counts, [0, 3]) == [0, 2, 3, 4, 5]


def test_heads_work_for_rows_that_ask_alone():
    """The products are those of the pairs, in whatever rows they are."""
    model = tiny_model(tiny_args(n_future_tokens=4), dtype=torch.float64).requires_grad_(False)
    fast, prompts = FastModel(model, 1), torch.randint(37, (4, 5))
    with torch.inference_mode():
        _, window = fast.read(prompts, 0, fast.cache(4, 16))

    def cost(counts):
        return products(lambda: fast.guess_some(window, [4] * 4, counts))

    one = cost([1, 0, 0, 0])
    assert one > 0
    for counts in ([0, 0, 0, 1], [2, 0, 1, 3], [3, 3, 3, 3], [0, 1, 0, 1]):
        assert cost(counts) == one * sum(counts)


def drafted(model, prompts, stopping, speculation):
    """(rows × heads that guessed, what the next step may read) at each step."""
    asked, limits = [], []
    real_guess, real_limit = FastModel.guess_some, Speculative._judge

    def guess_some(self, window, places, counts):
        asked.append(sum(counts))
        return real_guess(self, window, places, counts)

    def judge(self, logits, given):
        limits.append(sum(limit - 1 for limit in given))
        return real_limit(self, logits, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastModel, "guess_some", guess_some)
        patch.setattr(Speculative, "_judge", judge)
        texts(model, prompts, stopping, Sampling(), speculation)
    return asked, limits


@pytest.mark.parametrize("adaptive", [False, True])
def test_no_draft_is_made_that_no_step_reads(adaptive):
    """Rows that have ended, or have one token left, have none."""
    model, prompts = trained_model(), [[3], [5, 6], [16, 0, 2], [9]]
    speculation = Speculation(adaptive=adaptive, token_cost=0.05)
    asked, limits = drafted(model, prompts, Stopping(15, eos_id=12), speculation)
    assert asked == [limit for limit in limits if limit]
    assert len(set(asked)) > 1  # rows ended apart


# --- a step without drafts is a plain step -------------------------------------------------------


def step_flops(model, prompts, new, speculation) -> list[int]:
    stream = Stream(model, prompts, Stopping(new), Sampling(ties="fast"), speculation)
    next(stream)
    return [flops(lambda: next(stream)) for _ in range(new - 1)]


def test_without_drafts_a_step_costs_what_a_plain_one_does():
    model = make_model(n=4)
    plain = step_flops(model, [[1, 2, 3], [4]], 8, None)
    dear = step_flops(model, [[1, 2, 3], [4]], 8, Speculation(adaptive=True, token_cost=2.0))
    assert dear == plain
    always = step_flops(model, [[1, 2, 3], [4]], 4, Speculation(4))
    assert always[0] > plain[0]


@pytest.mark.parametrize("seed", range(6))
def test_heads_guess_right_after_steps_without_drafts(seed):
    """Rows at places of their own, some of which draft at some steps; rejected drafts are written
    over; rows leave and change places."""
    chance, n = random.Random(seed), 4
    args = tiny_args(n_future_tokens=n, n_kv_heads=2, max_seq_len=32)
    model = tiny_model(args, seed, dtype=torch.float64).requires_grad_(False)
    fast = FastModel(model, 1)
    rows = [[chance.randrange(37) for _ in range(chance.randint(1, 6))] for _ in range(4)]
    cache, longest = fast.cache(4, 60), max(map(len, rows))
    window, starts = [row + [0] * (longest - len(row)) for row in rows], [0] * 4
    places = [len(row) - 1 for row in rows]
    with torch.inference_mode():
        for step in range(14):
            _, left = fast.read(torch.tensor(window), starts if step else 0, cache)
            counts = [chance.choice([0, 0, 0, 1, n - 1]) for _ in rows]
            if any(counts):
                states = fast.guess_some(left, places, counts)
                pairs = Pairs.of(counts, states.device)
                for state, row, head in zip(states, pairs.rows, pairs.heads, strict=True):
                    text = torch.tensor([rows[row][: starts[row] + places[row] + 1]])
                    whole = model.head_states(text, return_all_heads=True)[head + 1][0, -1]
                    torch.testing.assert_close(state, whole, atol=1e-11, rtol=1e-11)
            if step == 5:  # a row leaves
                cache.keep(torch.tensor([3, 0, 2]))
                rows, places, starts = ([x[i] for i in (3, 0, 2)] for x in (rows, places, starts))
            if step == 9:  # the last one takes the place of the first
                cache.copy_row(2, 0, len(rows[2]))
                cache = cache.rows(0, 2)
                rows, places, starts = ([x[2], x[1]] for x in (rows, places, starts))
            starts = [start + place + 1 for start, place in zip(starts, places, strict=True)]
            width = chance.randint(1, 3)
            window = [[chance.randrange(37) for _ in range(width)] for _ in rows]
            places = [chance.randrange(width) for _ in rows]  # the last token that stays
            pairs_of = zip(rows, window, places, strict=True)
            rows = [row + new[: place + 1] for row, new, place in pairs_of]


# --- the clock -----------------------------------------------------------------------------------


def test_costs_are_those_of_the_steps():
    clock = StepClock()
    clock.add(1, 2.0)
    assert not clock.known
    clock.add(1, 1.0)
    assert clock.known
    clock.add(4, 9.0)  # kernels were prepared
    assert clock.costs == []
    clock.add(4, 2.5)
    assert clock.costs == [(1, 1.0), (4, 2.5)]
    for _ in range(2):
        clock.add(2, 1.1)
    assert clock.costs == [(1, 1.0), (2, 1.1), (4, 2.5)]
    for _ in range(64):
        clock.add(1, 1.0)
    assert clock.costs == []  # long ago
    assert clock.known


def test_costs_of_widths_between_and_beyond():
    costs = [(1, 1.0), (3, 1.5), (4, 3.0)]
    found = [between(costs, width) for width in range(1, 7)]
    assert found == pytest.approx([1.0, 1.25, 1.5, 3.0, 1 + 4 * 2 / 3, 1 + 5 * 2 / 3])
    assert between([(1, 1.0)], 5) == 1.0


def test_a_meter_asks_the_steps_of_about_as_many_rows(monkeypatch):
    time, model = Time(), tiny_model(tiny_args())
    monkeypatch.setattr(step_clock, "time", time)
    meter = CostMeter(model, "chain", 4)

    def steps(rows, seconds, width, context=20, count=2):
        meter.pause()
        meter.tick(1, rows, context)
        for _ in range(count):
            time.now += seconds
            meter.tick(width, rows, context)

    assert meter.probing
    steps(16, 1.0, 1)
    assert not meter.probing
    assert meter.cost(2) == pytest.approx(1 + 0.1 * 4)  # nothing wider was met
    assert meter.cost(3) == math.inf  # which begins with one draft
    steps(16, 2.2, 4)
    assert meter.cost(4) == pytest.approx(2.2)
    # Fewer rows take less time: their wide steps are not held against 16 plain ones.
    steps(9, 1.1, 4)
    assert not meter.probing
    assert meter.cost(4) == pytest.approx(2.2)
    steps(9, 0.8, 1)
    assert meter.cost(4) == pytest.approx(1.1 / 0.8)
    steps(8, 0.8, 4)
    assert meter.cost(4) == pytest.approx(1.1 / 0.8)  # those of 9 rows, not of 16
    steps(4, 0.5, 4)
    assert meter.probing  # twice as few are no more like it
    steps(16, 1.0, 2, context=600)
    assert meter.probing


class Time:
    """A step takes as long as it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def decode_by(monkeypatch, seconds, prompts, new, model=None):
    """Decode with steps that take `seconds(width)`; their widths."""
    model, clock, widths = model or trained_model(), Time(), []
    real = FastModel.read

    def read(self, tokens, start_pos, cache):
        clock.now += seconds(tokens.shape[1])
        widths.append(tokens.shape[1])
        return real(self, tokens, start_pos, cache)

    monkeypatch.setattr(step_clock, "time", clock)
    monkeypatch.setattr(step_clock, "_CLOCKS", type(step_clock._CLOCKS)())
    monkeypatch.setattr(FastModel, "read", read)
    plain, _ = texts(model, prompts, Stopping(new))
    widths.clear()
    found, _ = texts(model, prompts, Stopping(new), None, Speculation(adaptive=True))
    assert found == plain
    return widths[1:], model


PROMPTS = [[3], [5], [16], [9]]


def test_where_a_token_costs_a_pass_it_decodes_plainly(monkeypatch):
    widths, _ = decode_by(monkeypatch, lambda width: width, PROMPTS, 28)
    assert widths[:2] == [1, 1]
    wide = [width for width in widths if width > 1]
    assert 0 < len(wide) <= 2  # to find out
    assert len(widths) >= 20


def test_where_tokens_are_cheap_it_drafts(monkeypatch):
    widths, model = decode_by(monkeypatch, lambda width: 1 + 0.05 * width, PROMPTS, 28)
    assert sum(width == 1 for width in widths) <= 3  # two to find out, and perhaps the last
    assert max(widths) == 4
    assert any(a == b == 4 for a, b in pairwise(widths))
    meter = CostMeter(model.output, "chain", 4)  # what was found out stays with the model
    meter.tick(1, 4, 20)
    assert not meter.probing
    assert 1 < meter.cost(4) < 1.3


def test_drawn_texts_do_not_depend_on_time(monkeypatch):
    def never(*given):
        raise AssertionError("a step was timed")

    monkeypatch.setattr(CostMeter, "__init__", never)
    how = Speculation(adaptive=True)
    texts(make_model(), [[3], [5, 0]], Stopping(15), Sampling(1.0, seed=3), how)


def test_a_running_batch_measures_too(monkeypatch):
    clock, widths, model = Time(), [], trained_model()
    real = FastModel.read

    def read(self, tokens, start_pos, cache):
        clock.now += tokens.shape[1]
        if start_pos != 0:
            widths.append(tokens.shape[1])
        return real(self, tokens, start_pos, cache)

    monkeypatch.setattr(step_clock, "time", clock)
    monkeypatch.setattr(step_clock, "_CLOCKS", type(step_clock._CLOCKS)())
    monkeypatch.setattr(FastModel, "read", read)
    batch = RunningBatch(model, 4, 32, Speculation(adaptive=True))
    batch.admit([Order(prompt, Stopping(24)) for prompt in PROMPTS])
    while batch.rows:
        batch.step()
    assert 0 < sum(width > 1 for width in widths) <= 2
    assert len(widths) >= 16
