"""Weights in 8 and 4 bits: near what they stand for, the same bits in any batch, and drafts that
change no text."""

import pytest
import torch
from tests.helpers import tiny_args, tiny_model
from torch import nn

from weighted_mtp.core.errors import UserError
from weighted_mtp.decoding import Sampling, Speculation, generate
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.greedy import by_definition
from weighted_mtp.decoding.products import product
from weighted_mtp.models.meta_mtp.args import Family
from weighted_mtp.models.meta_mtp.quantised import BITS, QuantisedLinear, quantise
from weighted_mtp.models.meta_mtp.transformer import Transformer

WIDE = {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 128, "multiple_of": 64}


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=chance()) * 0.05


def stands_for(map_: QuantisedLinear, inputs: int) -> torch.Tensor:
    """The weights `[O, D]`, by multiplying units one by one."""
    return torch.stack([map_(unit[None])[0] for unit in torch.eye(inputs)], 1)


@pytest.mark.parametrize(("bits", "levels"), [("int8", 2 * 127), ("int4", 15)])
def test_a_weight_is_off_by_half_a_step_at_most(bits, levels):
    weight = matrix(64, 96)
    weight[3] = 0.0
    weight[:, 40] *= 30  # one large input of each row
    found = stands_for(QuantisedLinear.of(weight, bits), 96)
    groups = weight.view(64, -1, 96 if bits == "int8" else 32)
    reach = 2 * groups.abs().amax(-1) if bits == "int8" else groups.amax(-1) - groups.amin(-1)
    step = (reach / levels)[..., None].expand_as(groups).reshape(64, 96)
    rounding = 2**-8 * weight.abs() + 2**-8 * step * 8  # of results and offsets to bfloat16
    assert ((found - weight).abs() <= 0.51 * step * (1 + 2**-7) + rounding + 1e-6).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_batch(bits, dtype):
    map_ = QuantisedLinear.of(matrix(128, 64), bits, bias=torch.ones(128))
    x = torch.randn(3, 5, 64, generator=chance(1)).to(dtype)
    out = map_(x)
    assert out.dtype == dtype
    assert out.shape == (3, 5, 128)
    for i in range(3):
        assert torch.equal(map_(x[i, :1]), out[i, :1])
    many = map_(torch.cat([x.flatten(0, 1)] * 4))  # more than the kernel of few rows takes
    torch.testing.assert_close(many[:15].view(3, 5, 128), out, rtol=2**-7, atol=2e-2)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("outputs", [1, 37, 64])
@pytest.mark.parametrize("inputs", [8, 24, 40, 88, 100])
def test_any_number_of_inputs_is_multiplied_right(inputs, outputs, rows):
    """The kernel for 8 bits reads past the end of rows that are no multiple of 16, with AVX-512."""
    weight, x = matrix(outputs, inputs), torch.randn(rows, inputs, generator=chance(3))
    found = QuantisedLinear.of(weight, "int8")(x)
    wanted = x @ weight.T
    assert float((found - wanted).norm()) < 0.03 * float(wanted.norm())


@torch.no_grad()
def test_maps_that_would_share_a_block_of_four_bits_stay_apart():
    """Keys and values of 32 outputs: with AVX-512 the kernel keeps 64 outputs together."""
    shape = WIDE | {"dim": 128, "n_heads": 4, "n_kv_heads": 1}
    model, other = (tiny_model(tiny_args(**shape), dtype=torch.float32) for _ in range(2))
    quantise(other, "int4")
    attention = other.layers[0].attention
    assert [each.bits for each in (attention.wq, attention.wk, attention.wv)] == [
        "int4",
        "int8",
        "int8",
    ]
    for name in ("wq", "wk", "wv"):
        exact = model.get_submodule(f"layers.0.attention.{name}").weight
        found = stands_for(attention.get_submodule(name), 128)
        assert float((found - exact).norm()) < 0.1 * float(exact.norm())


def test_what_does_not_fit_four_bits_gets_eight():
    assert QuantisedLinear.of(matrix(64, 40), "int4").bits == "int8"
    assert QuantisedLinear.of(matrix(40, 64), "int4").bits == "int8"
    assert QuantisedLinear.of(matrix(64, 64), "int4").bits == "int4"


@pytest.mark.parametrize("bits", BITS)
def test_parts_share_memory_and_join_again(bits):
    whole = QuantisedLinear.of(matrix(256, 64), bits, bias=torch.arange(256.0))
    parts = [whole.part(0, 128), whole.part(128, 192), whole.part(192, 256)]
    x = torch.randn(2, 64, generator=chance(2))
    assert torch.equal(torch.cat([part(x) for part in parts], -1), whole(x))
    joined = QuantisedLinear.joined(parts[1:])
    assert joined is not None
    assert torch.equal(joined(x), whole(x)[:, 128:])
    assert joined.weight.data_ptr() == parts[1].weight.data_ptr()
    assert QuantisedLinear.joined([parts[0], parts[2]]) is None  # not neighbours
    assert QuantisedLinear.joined([parts[0], QuantisedLinear.of(matrix(64, 64), bits)]) is None
    for modules in (parts[1:], [parts[0], parts[2]]):
        wanted = torch.cat([part(x) for part in modules], -1)
        assert torch.equal(product(modules, True)(x), wanted)


def quantised(bits: str, seed: int = 0, **changes: object) -> tuple[Transformer, Transformer]:
    """A model and the same in fewer bits."""
    model, other = (
        tiny_model(tiny_args(**WIDE, **changes), seed, dtype=torch.float32) for _ in range(2)
    )
    quantise(other, bits)
    return model, other


FAMILIES = {
    "llama": {},
    "qwen2": {"family": Family(qkv_bias=True)},
    "tied": {"tie_embeddings": True},
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_model_computes_with_what_its_weights_stand_for(bits, family):
    model, other = quantised(bits, **FAMILIES[family])
    tokens = torch.randint(128, (2, 9), generator=chance())
    before = model(tokens, return_all_heads=True)
    for name, module in other.named_modules():
        if isinstance(module, QuantisedLinear):
            inputs = model.get_submodule(name).in_features
            bias, module.bias = module.bias, None
            model.get_submodule(name).weight = nn.Parameter(stands_for(module, inputs))
            module.bias = bias
    wanted, found = model(tokens, return_all_heads=True), other(tokens, return_all_heads=True)
    assert (wanted - found).norm() < 0.02 * wanted.norm()
    assert (wanted - before).norm() < {"int8": 0.05, "int4": 0.5}[bits] * before.norm()
    names = {name for name, module in other.named_modules() if type(module) is nn.Linear}
    assert not names
    assert not any(parameter.requires_grad for parameter in other.parameters())
    embedded = other.tok_embeddings.weight
    assert torch.equal(embedded.float(), model.tok_embeddings.weight)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("k", [2, 3])
def test_drafts_change_no_text(bits, k):
    """Plain, speculative and by definition: near-ties are settled, though products are coarse."""
    _, model = quantised(bits, seed=3)
    prompts = [[1, 5, 9], [7] * 6, [100, 2]]
    sampling = Sampling(ties="exact")
    plain = generate(model, prompts, 24, sampling=sampling)
    drafted = generate(model, prompts, 24, sampling=sampling, speculation=Speculation(k=k))
    assert plain == drafted
    for prompt, text in zip(prompts, plain, strict=True):
        for place in (0, 11, 23):
            assert by_definition(model, [*prompt, *text[:place]], sampling) == text[place]


def test_decoding_multiplies_joined_weights_without_a_copy():
    _, model = quantised("int8")
    fast = FastModel(model, steps=100)
    assert fast.dtype == torch.float32  # their products round states themselves
    attention = fast._model.layers[0].attention
    joined = QuantisedLinear.joined([attention.wq, attention.wk, attention.wv])
    own = model.layers[0].attention.wq
    assert joined.weight.data_ptr() == attention.wq.weight.data_ptr() == own.weight.data_ptr()
    assert len(joined.weight) == 64 + 2 * 32


def test_another_device_is_refused():
    model = tiny_model(tiny_args(), 0).to("meta")
    with pytest.raises(UserError, match="int8 weights are for decoding on a CPU, not on meta"):
        quantise(model, "int8")
