"""A decoder writes what the functions write, and never from weights that are no longer there."""

import weakref

import pytest
import torch
from tests.helpers import tiny_args, tiny_model
from torch import nn

from weighted_mtp.decoding import (
    Decoder,
    Sampling,
    Speculation,
    Stopping,
    complete,
    generate,
    products,
)
from weighted_mtp.decoding import copies as copies_module
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.models.meta_mtp.lora import LoRA, add_adapters, merge_adapters
from weighted_mtp.models.meta_mtp.transformer import Transformer

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8]]
STEPS = 20  # enough for a copy


@pytest.fixture
def built(monkeypatch):
    """Every `FastModel` that a decoder builds, without keeping any alive."""
    found = []

    def build(*args):
        fast = FastModel(*args)
        found.append(weakref.ref(fast))
        return fast

    monkeypatch.setattr(copies_module, "FastModel", build)
    return found


def model_of(n: int = 3, dtype: torch.dtype = torch.float32) -> Transformer:
    model = tiny_model(tiny_args(n_future_tokens=n), dtype=dtype)
    return model.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("speculation", [None, Speculation(2), Speculation()])
def test_it_writes_what_the_functions_write(dtype, speculation):
    model = model_of(dtype=dtype)
    decoder, sampling = Decoder(model), Sampling(0.8, seed=3)
    for steps in (STEPS, 4, STEPS):  # short texts are read with the weights as they lie
        wanted, report = complete(
            model, PROMPTS, Stopping(steps), sampling, speculation, [5, 9], logprobs=True
        )
        asked = (PROMPTS, Stopping(steps), sampling, speculation, [5, 9], True)
        found, again = decoder.complete(*asked)
        stream = decoder.stream(*asked)
        list(stream)
        assert found == stream.completions() == wanted
        assert again.forwards == report.forwards
        greedy = generate(model, PROMPTS, steps, speculation=speculation)
        assert decoder.generate(PROMPTS, steps, speculation=speculation) == greedy


def test_the_copy_is_made_once(built):
    decoder = Decoder(model_of())
    for _ in range(3):
        decoder.generate(PROMPTS, STEPS, speculation=Speculation())
    assert len(built) == 1
    decoder.generate(PROMPTS, STEPS)  # with another number of heads
    assert len(built) == 2
    assert built[0]() is None  # there are never two


def test_the_copy_goes_with_the_decoder_and_when_it_is_told_to(built):
    model = model_of()
    decoder = Decoder(model)
    decoder.generate(PROMPTS, STEPS)
    decoder.forget()
    assert built[0]() is None
    decoder.generate(PROMPTS, STEPS)
    assert built[1]() is not None
    del decoder
    assert built[1]() is None
    assert model.output.weight is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_call_writes_does_not_depend_on_those_before_it(dtype, monkeypatch, built):
    """Long texts are read in float16 copies, short ones are not."""
    monkeypatch.setattr(products, "_SMALL", 0)
    model = tiny_model(tiny_args(n_future_tokens=1, max_seq_len=128)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().to(dtype)
    decoder, sampling = Decoder(model), Sampling(0.8, seed=3)
    for steps in (130, 40, 130, 40):
        wanted, _ = complete(model, PROMPTS, Stopping(steps), sampling, logprobs=True)
        found, _ = decoder.complete(PROMPTS, Stopping(steps), sampling, logprobs=True)
        for one, other in zip(found, wanted, strict=True):
            assert one.tokens == other.tokens
            exact = 0.0 if dtype == torch.bfloat16 else 1e-4
            assert one.logprobs == pytest.approx(other.logprobs, abs=exact, rel=exact)
    own = len(built) - 4  # each call of the function makes one too
    assert own == (4 if dtype == torch.bfloat16 else 1)


def test_a_weight_that_is_replaced_is_not_kept_alive():
    model = model_of()
    decoder = Decoder(model)
    decoder.generate(PROMPTS, STEPS)
    block = model.layers[0].attention
    old = weakref.ref(block.wq.weight)
    block.wq.weight = nn.Parameter(torch.zeros_like(block.wq.weight), requires_grad=False)
    assert old() is None
    assert decoder.generate(PROMPTS, STEPS) == generate(model, PROMPTS, STEPS)


def optimise(kind):
    def change(model: Transformer) -> None:
        model.requires_grad_(True)
        optimizer = kind(model.parameters())
        model(torch.tensor([PROMPTS[0]])).square().sum().backward()
        optimizer.step()
        model.requires_grad_(False)

    return change


def adapt(model: Transformer) -> None:
    pytest.importorskip("peft")
    add_adapters(model, LoRA(2, 4), ["wq"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.fill_(0.3)


def adapt_and_merge(model: Transformer) -> None:
    adapt(model)
    merge_adapters(model)


def of_another(model: Transformer) -> dict[str, torch.Tensor]:
    return tiny_model(model.args, 7).state_dict()


def under_inference(model: Transformer) -> None:
    with torch.inference_mode():
        model.output.weight.mul_(-1)


CHANGES = {
    "adamw": optimise(lambda weights: torch.optim.AdamW(weights, 0.1, foreach=True)),
    "fused adamw": optimise(lambda weights: torch.optim.AdamW(weights, 0.1, fused=True)),
    "sgd": optimise(lambda weights: torch.optim.SGD(weights, 0.1)),
    "a state dict": lambda model: model.load_state_dict(of_another(model)),
    "an assigned state dict": lambda model: model.load_state_dict(of_another(model), assign=True),
    "one number": lambda model: model.layers[0].attention.wq.weight[3, 5].fill_(9.0),
    "inference mode": under_inference,
    "the data": lambda model: [weight.data.mul_(1.5) for weight in model.parameters()],
    "NumPy": lambda model: model.output.weight.numpy().__imul__(-1),
    "other data": lambda model: setattr(model.output.weight, "data", -model.output.weight.data),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "another module": lambda model: setattr(model, "output", nn.Linear(32, 37, bias=False)),
    "adapters": adapt,
    "merged adapters": adapt_and_merge,
    "positions": lambda model: setattr(model, "freqs_cis", model.freqs_cis.flip(0)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_between_calls_is_seen(change, built):
    model = model_of()
    decoder, asked = Decoder(model), (PROMPTS, Stopping(STEPS), None, Speculation(), None, True)
    before, _ = decoder.complete(*asked)
    change(model)
    found, _ = decoder.complete(*asked)
    assert found == complete(model, *asked)[0]
    assert [each.logprobs for each in found] != [each.logprobs for each in before]


def test_weights_whose_changes_are_not_counted_are_copied_each_time(built):
    with torch.inference_mode():
        model = model_of()
    decoder, wanted = Decoder(model), generate(model, PROMPTS, STEPS)
    built.clear()  # of the decoder alone
    for _ in range(2):
        assert decoder.generate(PROMPTS, STEPS) == wanted
    assert len(built) == 2
