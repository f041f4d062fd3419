"""The decoder's view of a model reads what the model itself reads, whatever the layout."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model
from torch import nn

from weighted_mtp.decoding import Speculation, Stopping, complete, measure_token_cost, products
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.products import (
    blocks_work,
    fits_half,
    halves_work,
    product,
    widened,
    worth_copying,
)
from weighted_mtp.decoding.running import RunningBatch
from weighted_mtp.models.meta_mtp.args import Family
from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.models.meta_mtp.transformer import Transformer

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from(list(TOLERANCE)),
    kv_heads=st.sampled_from([1, 2, 4]),
    n=st.sampled_from([1, 2, 4]),
    steps=st.sampled_from([1, 100, 1000]),
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
        if steps == 1000 and dtype == torch.float32:
            from_bfloat16(model)
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
        for layout in ("kept", "blocks"):
            found = product(maps, layout)(x)
            assert found.is_contiguous()
            torch.testing.assert_close(found, expected, **near(dtype))
            torch.testing.assert_close(product(maps[:1], layout)(x), maps[0](x), **near(dtype))


def test_without_onednn_the_weights_are_used_as_they_lie(monkeypatch):
    monkeypatch.setattr(products, "blocks_work", lambda dtype: False)
    linear, x = nn.Linear(8, 4, bias=False, dtype=torch.bfloat16), torch.ones(1, 8).bfloat16()
    with torch.no_grad():
        assert torch.equal(product([linear], "blocks")(x), linear(x))


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
        for layout in ("blocks", "halves") if type(module) is Adapted else ("blocks",):
            found = product([module, module], layout)(x)
            assert torch.equal(product([module], layout)(x), module(x))
            assert torch.equal(found, torch.cat([module(x)] * 2, -1))


# --- float16 ---

HALVES = pytest.mark.skipif(not halves_work(), reason="FBGEMM has no float16 products here")


def from_bfloat16(model: nn.Module) -> nn.Module:
    """Float32 weights that were bfloat16 once."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@HALVES
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("size", [2.0**-20, 1.0, 2.0**17])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_give_the_product_of_float32(dtype, bias, size, rows):
    """Whatever the size of the weights: they would leave float16's range as they are."""
    chance = torch.Generator().manual_seed(0)
    maps = [nn.Linear(48, outputs, bias=bias) for outputs in (24, 40)]
    for each in maps:
        each.weight.data = (torch.randn(each.weight.shape, generator=chance) * size).to(dtype)
    x = torch.randn(rows, 48, generator=chance)
    with torch.no_grad():
        if dtype == torch.float32:
            from_bfloat16(nn.ModuleList(maps))
        expected = torch.cat([one.float()(x) for one in deepcopy(maps)], -1)
        found = product(maps, "halves")(x)
    assert found.dtype == torch.float32
    # Many rows of a bfloat16 model are read in bfloat16 where that is quick.
    tolerance = 2.0**-6 if dtype == torch.bfloat16 and rows > 16 else 2.0**-20
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_what_float16_cannot_keep_is_seen():
    weight = torch.randn(64, 32).bfloat16().float()
    weight[3, 4] = 2.0**-30  # far below the others: lost, and nothing beside their rounding
    assert fits_half(weight)
    assert fits_half(weight * 2.0**30)
    assert fits_half(weight.bfloat16())
    assert fits_half(weight.half().float())
    late = weight.clone()
    late[-1, -1] = 1 + 2.0**-20
    for bad in (torch.randn(64, 32), late, weight * torch.nan, weight / 0):
        assert not fits_half(bad)
    assert fits_half(weight * 0)


@HALVES
def test_maps_side_by_side_keep_their_own_scale():
    """Those of one lose nothing beside another's that are 2^60 times larger."""
    maps = [nn.Linear(32, 8, bias=False) for _ in range(2)]
    x = torch.randn(3, 32)
    with torch.no_grad():
        maps[0].weight *= 2.0**60
        from_bfloat16(nn.ModuleList(maps))
        found, expected = product(maps, "halves")(x), torch.cat([one(x) for one in maps], -1)
    for part in (slice(8), slice(8, 16)):
        largest = float(expected[:, part].abs().max())
        assert float((found - expected)[:, part].abs().max()) <= 2.0**-20 * largest


def test_an_operator_for_halves_that_is_wrong_is_not_used(monkeypatch):
    def missing():
        raise AttributeError("no such operator")

    for operator in (lambda: lambda x, packed: torch.zeros(2, 3, 48), missing):
        monkeypatch.setattr(products, "_in_halves", operator)
        halves_work.cache_clear()
        assert not halves_work()
    monkeypatch.undo()
    halves_work.cache_clear()


def test_looking_whether_halves_work_draws_no_chance():
    halves_work.cache_clear()
    before = torch.get_rng_state()
    halves_work()
    assert torch.equal(torch.get_rng_state(), before)


@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rule_for_halves(dtype, monkeypatch):
    """Enough steps, a model too large for the cache, plain maps, and few tokens in bfloat16."""

    def layout(model, steps=128, width=4):
        return products.choose_layout(model, steps, width)

    monkeypatch.setattr(products, "fast_bfloat16", lambda device: True)
    model = from_bfloat16(tiny_model()).to(dtype)
    assert layout(model) == "blocks"
    monkeypatch.setattr(products, "_SMALL", 0)
    assert layout(model) == "halves"
    assert layout(model, steps=127) == "blocks"
    assert layout(model, width=5) == ("halves" if dtype == torch.float32 else "blocks")
    if dtype == torch.float32:
        assert layout(tiny_model()) == "blocks"
    monkeypatch.setattr(products, "fast_bfloat16", lambda device: False)
    assert layout(model, width=64) == "halves"
    model.layers[1].attention.wq = Adapted(32, 32, bias=False, dtype=dtype)
    assert layout(model) == "blocks"
    monkeypatch.setattr(products, "halves_work", lambda: False)
    assert layout(from_bfloat16(tiny_model()).to(dtype)) == "blocks"


FAMILIES = {
    "plain": (tiny_args(n_future_tokens=3), Family()),
    "tied": (tiny_args(n_future_tokens=3, tie_embeddings=True), Family()),
    "biased queries": (tiny_args(n_future_tokens=3, n_kv_heads=2), Family(qkv_bias=True)),
    "normed queries": (tiny_args(n_future_tokens=3), Family(qk_norm=True)),
    "window": (tiny_args(n_future_tokens=3), Family(sliding_window=4)),
}


@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_model_in_halves_reads_as_the_model_does(name, dtype, monkeypatch):
    """Head 1 at every token, one by one; head 2 at the last, over a draft vocabulary."""
    monkeypatch.setattr(products, "_SMALL", 0)
    args, family = FAMILIES[name]
    model = from_bfloat16(tiny_model(replace(args, family=family))).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms that show
            parameter.data += torch.rand(len(parameter)).bfloat16()
    model.to(dtype)
    exact, tokens = deepcopy(model).double(), torch.randint(37, (1, 12))
    ids = torch.arange(0, 37, 2)
    with torch.inference_mode():
        fast = FastModel(model, 128, ids)
        assert (fast.layout, fast.dtype) == ("halves", torch.float32)
        cache = fast.cache(1, 12)
        logits = []
        for start, stop in ((0, 5), (5, 6), (6, 9), (9, 12)):
            states, window = fast.read(tokens[:, start:stop], start, cache)
            logits.append(fast.output(states))
        drafts = fast.drafts.logits(fast.guess(window, [2], 2))
        whole = exact.head_states(tokens, return_all_heads=True)
        expected, guesses = exact.output(whole[0]), exact.output(torch.stack(whole[1:])[:, 0, -1])
    for found, wanted in ((torch.cat(logits, 1), expected), (drafts[0], guesses[:, ids])):
        assert float((found - wanted).abs().max()) < 2.0**-18 * float(wanted.abs().max())


def test_the_width_of_a_step_decides(monkeypatch):
    """What most steps read together: of trees their nodes, of chains k a row."""
    seen, original = [], products.choose_layout
    note = lambda model, steps, width: seen.append(width) or original(model, steps, width)  # noqa: E731
    monkeypatch.setattr("weighted_mtp.decoding.fast_model.choose_layout", note)
    model = tiny_model(tiny_args(n_future_tokens=3)).requires_grad_(False)
    rows = [[1, 2], [3]]
    for prompts, speculation in (
        (rows, None),
        (rows, Speculation()),
        (rows, Speculation(2)),
        (rows, Speculation(adaptive=True)),
        (rows[:1], Speculation(tree=9)),
        (rows[:1], Speculation(tree="auto")),
    ):
        complete(model, prompts, Stopping(2), speculation=speculation)
    assert seen == [2, 6, 4, 4, 9, 2]
    seen.clear()
    RunningBatch(model, 5, 8)
    RunningBatch(model, 5, 8, Speculation())
    measure_token_cost(model, k=3, batch_size=4, context=2)
    assert seen == [5, 15, 8]


def test_a_wider_model_shares_its_matrices():
    model = tiny_model(tiny_args(n_future_tokens=2), dtype=torch.bfloat16)
    wide = widened(model)
    assert wide.layers[0].attention.wq.weight is model.layers[0].attention.wq.weight
    assert wide.norm.weight.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert wide.embed(torch.tensor([[1]])).dtype == torch.float32


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
