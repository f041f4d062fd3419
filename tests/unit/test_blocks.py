"""Activation checkpointing: the same gradients, bit for bit; what runs twice and what does not."""

from collections import Counter

import pytest
import torch
from tests.helpers import random_tokens, tiny_args, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from weighted_mtp.data.batches import Example, Packing, pack_batch
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.runtime.blocks import checkpoint_activations, compile_blocks

HOW = ("selective", "full")
CASES = {
    "plain": ({}, None),
    "grouped heads": ({"n_kv_heads": 2}, None),
    "document by document": ({"max_seq_len": 32}, [20, 12]),
    "a row for each document": ({"max_seq_len": 32}, [16, 16]),
    "documents under a mask": ({"max_seq_len": 32}, [24, 5, 3]),
}


def recomputed(model: Transformer, how: str) -> Transformer:
    if how != "none":
        checkpoint_activations(model, model.grouping_plan(), how)
    return model


def states_and_gradients(
    model: Transformer, documents: list[int] | None = None, half: bool = False
) -> list[torch.Tensor]:
    tokens, places = random_tokens(model.args, 3, 13), {}
    if documents is not None:
        rows = [[Example([*range(m + 1)], 0, False, row) for m in documents] for row in range(3)]
        batch = pack_batch(rows, 0)
        packing = batch.packing
        assert isinstance(packing, Packing)
        mask = packing._replace(runs=()) if packing.unpacks_cheaply else packing.mask
        if documents == [20, 12]:
            mask = packing
        tokens, places = batch.tokens, {"positions": packing.positions, "mask": mask}
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        states = model.head_states(tokens, return_all_heads=True, **places)
    sum(state.float().square().sum() for state in states).backward()
    return [*states, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_the_same_bit_for_bit(case, half):
    changes, documents = CASES[case]
    args = tiny_args(**changes)
    expected = states_and_gradients(tiny_model(args), documents, half)
    for how in HOW:
        found = states_and_gradients(recomputed(tiny_model(args), how), documents, half)
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), how


class CountedOps(TorchDispatchMode):
    """How often each operation really ran."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("how", "attention", "products"), [("selective", 0, 2), ("full", 1, 6)])
def test_what_runs_twice(how, attention, products):
    """Of a block's seven products and its attention; nothing reads the last product, w2's, again.
    One head, so that every block's gradient is needed."""
    args = tiny_args(n_future_tokens=1)
    counts = []
    for way in ("none", how):
        model = recomputed(tiny_model(args), way)
        with CountedOps() as ops:
            states_and_gradients(model)
        counts.append(ops.counts)
    more = counts[1] - counts[0]
    kernel = "_scaled_dot_product_flash_attention_for_cpu.default"
    assert counts[0][kernel] == args.n_layers
    assert more[kernel] == attention * args.n_layers
    assert more["mm.default"] == products * args.n_layers


@pytest.mark.parametrize("how", HOW)
def test_nothing_is_renamed_and_scoring_is_as_before(how):
    plain, model = tiny_model(), recomputed(tiny_model(), how)
    assert list(model.state_dict()) == list(plain.state_dict())
    calls = []
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    tokens = random_tokens(plain.args, 2, 9)
    with torch.no_grad():
        assert torch.equal(model(tokens), plain(tokens))
    assert calls == [1]


@pytest.mark.parametrize("how", [pytest.param("selective", marks=pytest.mark.slow), "full"])
def test_compiled_blocks_are_recomputed_too(how, monkeypatch):
    """Without generated code, whose compiler not every machine has."""
    real = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: real(self, backend="aot_eager", **how)
    )
    args = tiny_args(n_layers=2, n_future_tokens=1)
    expected = states_and_gradients(tiny_model(args))
    model = recomputed(tiny_model(args), how)
    compile_blocks(model, model.grouping_plan())
    for a, b in zip(states_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
