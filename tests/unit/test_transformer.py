"""The transformer by itself: gradients, independence, precision, construction, names and sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import SRC, random_tokens, tiny_args, tiny_model
from torch import Tensor
from vendor.meta_llama import ModelArgs as OracleArgs
from vendor.meta_llama import Transformer as Oracle

from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.fused_ops import rms_norm, swiglu
from weighted_mtp.models.meta_mtp.transformer import Transformer, TransformerBlock

ARGS = tiny_args(n_kv_heads=2)
MODEL = tiny_model(ARGS).requires_grad_(False)
S = 8
ids = st.integers(0, ARGS.vocab_size - 1)
rows = st.lists(ids, min_size=S, max_size=S)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def all_heads(tokens: list[list[int]]) -> Tensor:
    return MODEL(torch.tensor(tokens), return_all_heads=True)


def build_on_meta(args: ModelArgs) -> Transformer:
    with torch.device("meta"):
        return Transformer(args)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_gradients_reach_every_parameter(tie_embeddings):
    model = tiny_model(tiny_args(n_kv_heads=2, tie_embeddings=tie_embeddings))
    model(random_tokens(ARGS, 2, S), return_all_heads=True).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_heads_are_independent():
    """Each head's loss reaches the trunk and that head's own block, and no other head's."""
    model = tiny_model(ARGS)
    heads = [model.layers[-1], *model.extra_heads]
    for k in range(len(heads)):
        model.zero_grad(set_to_none=True)
        states = model.head_states(random_tokens(ARGS, 2, S), return_all_heads=True)
        model.output(states[k]).square().mean().backward()
        for j, head in enumerate(heads):
            grads = [parameter.grad for parameter in head.parameters()]
            if j == k:
                assert all(grad is not None and grad.any() for grad in grads)
            else:
                assert all(grad is None for grad in grads)
        assert model.layers[0].attention.wq.weight.grad.any()


def test_gradcheck_of_a_minute_model():
    shape = {"dim": 4, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "n_future_tokens": 2}
    args = tiny_args(**shape, vocab_size=3, ffn_hidden_dim=3)
    model = tiny_model(args, dtype=torch.float64)
    tokens = torch.tensor([[0, 2, 1], [2, 1, 1]])
    names, weights = zip(*model.named_parameters(), strict=True)

    def logits(*values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, state, (tokens, 0, True))

    assert torch.autograd.gradcheck(logits, weights)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5)])
def test_gradcheck_of_the_fused_operations(shape):
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)

    x, up, weight = draw(*shape), draw(*shape), draw(shape[-1])
    assert torch.autograd.gradcheck(swiglu, (x, up))
    torch.testing.assert_close(swiglu(x, up), F.silu(x) * up)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), F.rms_norm(x, shape[-1:], weight, 1e-3))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x.mT, w, 1e-3), (x, draw(shape[-2])))


# --- properties ----------------------------------------------------------------------------------


@quick
@given(row=rows, t=st.integers(0, S - 1), token=ids)
def test_causality(row, t, token):
    before = all_heads([row])
    after = all_heads([[*row[:t], token, *row[t + 1 :]]])
    assert torch.equal(before[:, :t], after[:, :t])
    assert (token == row[t]) == torch.equal(before[:, t], after[:, t])


@quick
@given(batch=st.lists(rows, min_size=3, max_size=3), changed=st.integers(0, 2), other=rows)
def test_batch_rows_are_independent(batch, changed, other):
    before = all_heads(batch)
    after = all_heads([other if i == changed else row for i, row in enumerate(batch)])
    kept = [i for i in range(3) if i != changed]
    assert torch.equal(before[kept], after[kept])
    torch.testing.assert_close(after[changed], all_heads([other])[0], rtol=0, atol=1e-5)


@quick
@given(row=rows, left=st.integers(0, 4), right=st.integers(0, 4), pad=ids, other=ids)
def test_padding_is_inert(row, left, right, pad, other):
    adapter = MetaLlamaMTPAdapter(MODEL)
    mask = torch.tensor([[0] * left + [1] * S + [0] * right])
    padded = [
        adapter.full_forward(torch.tensor([[p] * left + row + [p] * right]), mask)["logits"]
        for p in (pad, other)
    ]
    assert all(logits.isfinite().all() for logits in padded)
    first, second = (logits[:, left : left + S] for logits in padded)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, all_heads([row]), rtol=0, atol=1e-5)


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_number_format_is_close_to_float64(dtype, record_property):
    tokens = random_tokens(ARGS, 2, S)
    exact, logits = (
        tiny_model(ARGS).to(kind).requires_grad_(False)(tokens, return_all_heads=True)
        for kind in (torch.float64, dtype)
    )
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    error = float((logits.double() - exact).abs().max() / exact.abs().max())
    record_property("relative_error", error)
    assert error <= 20 * torch.finfo(dtype).eps


def test_autocast_is_close_to_float32(record_property):
    model, tokens = tiny_model(ARGS), random_tokens(ARGS, 2, S)
    exact = model(tokens, return_all_heads=True).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens, return_all_heads=True)
    logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    error = float((logits.detach().float() - exact).abs().max() / exact.abs().max())
    record_property("relative_error", error)
    assert 0 < error < 0.05


# --- the rotary table ----------------------------------------------------------------------------


def test_the_rotary_table_is_a_plain_attribute_and_is_moved_once():
    model, tokens = tiny_model(ARGS), random_tokens(ARGS, 2, S)
    assert "freqs_cis" in vars(model)
    assert not list(model.buffers())
    assert not any("freqs" in name for name in model.state_dict())
    assert model.freqs_cis.shape == (2 * ARGS.max_seq_len, ARGS.head_dim // 2)
    before = model.freqs_cis
    model(tokens)
    assert model.freqs_cis is before
    model.double()(tokens)
    wide = model.freqs_cis
    model(tokens)
    assert model.freqs_cis is wide


def test_training_after_a_first_forward_in_inference_mode():
    model, tokens = tiny_model(ARGS).double(), random_tokens(ARGS, 2, S)
    with torch.inference_mode():
        model(tokens)
    model(tokens).square().mean().backward()


# --- construction --------------------------------------------------------------------------------


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_init_weights_covers_everything_that_to_empty_left(tie_embeddings):
    model = build_on_meta(tiny_args(tie_embeddings=tie_embeddings)).to_empty(device="cpu")
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(math.nan)
    torch.manual_seed(0)
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(random_tokens(ARGS, 2, S), return_all_heads=True).isfinite().all()
    norms = [w for name, w in model.named_parameters() if name.endswith("norm.weight")]
    assert all((weight == 1).all() for weight in norms)
    block, narrow = model.extra_heads[0], 0.02 / math.sqrt(2 * ARGS.n_layers)
    assert float(block.attention.wq.weight.std()) == pytest.approx(0.02, rel=0.15)
    assert float(block.attention.wo.weight.std()) == pytest.approx(narrow, rel=0.15)
    assert float(block.feed_forward.w2.weight.std()) == pytest.approx(narrow, rel=0.15)


def test_tied_embeddings_are_one_parameter():
    model, free = tiny_model(tiny_args(tie_embeddings=True)), tiny_model()
    assert model.output.weight is model.tok_embeddings.weight
    counts = [sum(p.numel() for p in m.parameters()) for m in (free, model)]
    assert counts[0] - counts[1] == ARGS.vocab_size * ARGS.dim


def test_tied_embeddings_stay_tied_through_the_meta_device():
    model = build_on_meta(tiny_args(tie_embeddings=True)).to_empty(device="cpu")
    model.init_weights()
    assert model.output.weight is model.tok_embeddings.weight


def test_shapes_can_be_traced_on_the_meta_device():
    model, tokens = build_on_meta(ARGS), random_tokens(ARGS, 2, S)
    assert model(tokens.to("meta"), return_all_heads=True).shape == (2, S, 3, ARGS.vocab_size)
    model.to_empty(device="cpu").init_weights()
    assert model(tokens).isfinite().all()


# --- names and sizes -----------------------------------------------------------------------------


def test_state_dict_keys_are_the_oracles():
    fields = {k: v for k, v in vars(ARGS).items() if k in OracleArgs.__dataclass_fields__}
    ours, theirs = MODEL.state_dict(), Oracle(OracleArgs(**fields)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_grouping_plan_covers_every_block_once():
    units = [id(MODEL.get_submodule(name)) for name in MODEL.grouping_plan()]
    blocks = [id(module) for module in MODEL.modules() if isinstance(module, TransformerBlock)]
    assert len(units) == ARGS.n_layers
    assert sorted(units) == sorted(blocks)


def test_the_model_file_fits_in_the_head():
    lines = (SRC / "models/meta_mtp/transformer.py").read_text(encoding="utf-8").count("\n")
    assert lines <= 358


def test_the_7b_release(record_property):
    model = build_on_meta(ModelArgs(vocab_size=32000, ffn_dim_multiplier=1.0, n_future_tokens=4))
    count = sum(parameter.numel() for parameter in model.parameters())
    record_property("parameters", count)
    assert (len(model.layers), len(model.extra_heads)) == (29, 3)
    assert model.layers[0].feed_forward.w1.weight.shape == (11008, 4096)
    assert count == 6_738_415_616  # Llama-7B's: every head is one of its 32 layers


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({"ffn_dim_multiplier": 1.0}, 11008),
        ({}, 11008),
        ({"multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # Llama 3 8B
        ({"dim": 5120}, 13824),  # Llama 2 13B
        ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),  # Llama 2 70B
        ({"ffn_hidden_dim": 99}, 99),
    ],
)
def test_feed_forward_width(changes, width):
    assert ModelArgs(**{"n_heads": 32, **changes}).ffn_dim == width


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 0}, f"{name} must be at least 1") for name in ("dim", "n_layers", "n_heads")),
        ({"n_future_tokens": 0}, "n_future_tokens must be at least 1"),
        ({"max_seq_len": 0}, "max_seq_len must be at least 1"),
        ({"multiple_of": 0}, "multiple_of must be at least 1"),
        ({"dim": 30}, "whole, even head width"),
        ({"dim": 12}, "whole, even head width"),
        ({"n_kv_heads": 3}, "must divide n_heads"),
        ({"n_kv_heads": 0}, "must divide n_heads"),
        ({"n_kv_heads": 8}, "must divide n_heads"),
        ({"n_future_tokens": 6}, "cannot exceed n_layers"),
        ({"vocab_size": -1}, "vocab_size must be set"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Transformer(tiny_args(**changes))
