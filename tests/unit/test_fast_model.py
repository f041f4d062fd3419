"""The decoder's view of a model reads what the model itself reads, whatever the layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model
from torch import nn

from weighted_mtp.decoding import Stopping, complete, measure_token_cost, products
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.products import blocks_work, product, worth_copying
from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.models.meta_mtp.transformer import Transformer

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from(list(TOLERANCE)),
    kv_heads=st.sampled_from([1, 2, 4]),
    n=st.sampled_from([1, 2, 4]),
    steps=st.sampled_from([1, 100]),
    prompt=st.integers(1, 6),
    window=st.integers(1, 5),
    ragged=st.booleans(),
    small=st.booleans(),
    seed=st.integers(0, 3),
)
def test_it_reads_as_the_model_does(dtype, kv_heads, n, steps, prompt, window, ragged, small, seed):
    """A prompt, then a window, the rows in step or not: states of the first head at every token,
    of the others at one place of each row."""
    model = tiny_model(tiny_args(n_future_tokens=n, n_kv_heads=kv_heads), seed, dtype=dtype)
    model.requires_grad_(False)
    tokens = torch.randint(37, (3, 20), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        if not small:
            patch.setattr(products, "_SMALL", 0)  # bfloat16 stays bfloat16
        fast = FastModel(model, steps)
        cache = KVCache(model.args, 3, 20, dtype=fast.dtype)
        fast.read(tokens[:, :prompt], 0, cache)
        starts = torch.tensor([max(0, prompt - i) for i in range(3)]) if ragged else prompt
        begins = starts.tolist() if isinstance(starts, torch.Tensor) else [starts] * 3
        rows = torch.stack([tokens[row, s : s + window] for row, s in enumerate(begins)])
        states, left = fast.read(rows, starts, cache)
        places = [(row + seed) % window for row in range(3)] if ragged else [window - 1] * 3
        guesses = fast.guess(left, places, n - 1) if n > 1 else None
        logits = fast.output(states)
    for row, start in enumerate(begins):
        text = tokens[row : row + 1, : start + window]
        whole = model.head_states(text, return_all_heads=True)
        torch.testing.assert_close(states[row].to(dtype), whole[0][0, start:], **near(dtype))
        alone = model.output(whole[0][0, start:])
        torch.testing.assert_close(logits[row].to(dtype), alone, **near(dtype))
        for head in range(n - 1):
            expected = whole[head + 1][0, start + places[row]]
            torch.testing.assert_close(guesses[row, head].to(dtype), expected, **near(dtype))


def near(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}


def test_fewer_heads_can_guess():
    model = tiny_model(tiny_args(n_future_tokens=4), dtype=torch.float64).requires_grad_(False)
    fast, cache = FastModel(model, 1), KVCache(model.args, 1, 8, dtype=torch.float64)
    _, window = fast.read(torch.tensor([[1, 2, 3]]), 0, cache)
    three = fast.guess(window, [2], 3)
    torch.testing.assert_close(fast.guess(window, [2], 1), three[:, :1])


# --- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 16), (1200, 256)])
def test_every_layout_gives_the_same_product(dtype, shape):
    """Small and large weights, one map or two side by side, a view of a larger input."""
    outputs, inputs = shape
    maps = [nn.Linear(inputs, outputs, bias=False, dtype=dtype) for _ in range(2)]
    x = torch.randn(2, 3, 2, inputs).to(dtype)[:, :, 1]
    with torch.no_grad():
        expected = torch.cat([one(x) for one in maps], -1)
        for copy in (False, True):
            found = product(maps, copy)(x)
            assert found.is_contiguous()
            torch.testing.assert_close(found, expected, **near(dtype))
            torch.testing.assert_close(product(maps[:1], copy)(x), maps[0](x), **near(dtype))


def test_without_onednn_the_weights_are_used_as_they_lie(monkeypatch):
    monkeypatch.setattr(products, "blocks_work", lambda dtype: False)
    linear, x = nn.Linear(8, 4, bias=False, dtype=torch.bfloat16), torch.ones(1, 8).bfloat16()
    with torch.no_grad():
        assert torch.equal(product([linear], True)(x), linear(x))


def test_an_operator_that_is_wrong_is_not_used(monkeypatch):
    monkeypatch.setattr(products, "_in_blocks", lambda blocks, x: torch.zeros(2, 3, 48))
    blocks_work.cache_clear()
    assert not blocks_work(torch.float32)
    monkeypatch.undo()
    blocks_work.cache_clear()


class Adapted(nn.Linear):
    """Stands for an adapter: a linear map that does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("module", [Adapted(8, 4, bias=False), nn.Linear(8, 4)])
def test_what_is_no_plain_linear_map_is_called_as_it_is(module):
    x = torch.randn(2, 8)
    with torch.no_grad():
        assert torch.equal(product([module], True)(x), module(x))
        assert torch.equal(product([module, module], True)(x), torch.cat([module(x)] * 2, -1))


def test_the_rule_for_copies(monkeypatch):
    model = tiny_model()
    assert worth_copying(model, 16)
    assert not worth_copying(model, 15)
    assert not worth_copying(tiny_model(dtype=torch.float64), 16)
    assert not worth_copying(tiny_model().half(), 16)
    with torch.device("meta"):
        assert not worth_copying(Transformer(tiny_args()), 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert not worth_copying(model, 16)
    monkeypatch.setattr(products, "MOST_BYTES", 100)
    assert not worth_copying(model, 16)


def test_copies_are_of_one_call():
    """The weights may change between two calls, and the model is left as it was."""
    model = tiny_model(dtype=torch.bfloat16).requires_grad_(False)
    before, _ = complete(model, [[1, 2]], Stopping(20))
    assert model.output.weight.dtype == torch.bfloat16
    model.output.weight.copy_(model.output.weight.roll(1, 0))
    after, _ = complete(model, [[1, 2]], Stopping(20))
    assert before[0].tokens != after[0].tokens


# --- calibration ---------------------------------------------------------------------------------


def test_the_cost_of_a_token_is_measured():
    model = tiny_model(tiny_args(n_future_tokens=3, max_seq_len=32)).requires_grad_(False)
    assert 0 <= measure_token_cost(model, batch_size=2) < 50
    assert measure_token_cost(model, k=1) == 0
    with pytest.raises(ValueError, match="k=4 must be 1 … 3"):
        measure_token_cost(model, k=4)
    with pytest.raises(ValueError, match="positions"):
        measure_token_cost(model, context=1000)
