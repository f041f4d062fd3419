"""The micro model (`pytest -k micro`): big enough to be a model, small enough for any machine."""

import pytest
import torch
from tests.helpers import random_tokens
from torch import Tensor

from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native
from weighted_mtp.models.meta_mtp.transformer import Transformer

ARGS = ModelArgs(
    dim=512, n_layers=4, n_heads=8, vocab_size=32000, n_future_tokens=4, max_seq_len=128
)


@pytest.fixture(scope="session")
def micro_model() -> Transformer:
    """A head for each of four tokens, the first of them the only entry of `layers`."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Transformer(ARGS)
    model.to_empty(device="cpu").init_weights()
    return model


@pytest.fixture(scope="session")
def micro_checkpoint(micro_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("micro") / "model"
    save_native(micro_model, directory)
    return directory


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    return random_tokens(ARGS, 2, 11)


def test_micro_shape(micro_model, tokens):
    assert (len(micro_model.layers), len(micro_model.extra_heads)) == (1, 3)
    with torch.no_grad():
        logits = micro_model(tokens, return_all_heads=True)
        assert logits.shape == (2, 11, 4, 32000)
        assert torch.equal(micro_model(tokens), logits[:, :, :1])
    assert logits.isfinite().all()


def test_micro_round_trip_is_bit_exact(micro_model, micro_checkpoint):
    assert (micro_checkpoint / "safetensors" / "model.safetensors").is_file()
    back = load_meta_mtp_model(micro_checkpoint, device="cpu", verify=True)
    assert back.args == ARGS
    ours, theirs = micro_model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    assert not any("freqs" in name for name in theirs)
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.parametrize("initialize_value_head", [True, False])
def test_micro_from_pretrained(micro_model, micro_checkpoint, tokens, initialize_value_head):
    adapter = MetaLlamaMTPAdapter.from_pretrained(
        micro_checkpoint, device="cpu", initialize_value_head=initialize_value_head
    )
    with torch.no_grad():
        out = adapter.full_forward(tokens)
        assert torch.equal(out["logits"], micro_model(tokens, return_all_heads=True))
    assert out["hidden_states"].shape == (2, 11, 512)
    assert ("value_logits" in out) == initialize_value_head


def test_micro_backward(micro_model, tokens):
    try:
        logits = micro_model(tokens, return_all_heads=True)
        targets = torch.stack([tokens.roll(-k, 1) for k in (1, 2, 3, 4)], dim=2)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten())
        assert float(loss.detach()) == pytest.approx(10.37, abs=0.5)  # log 32000: knows nothing yet
        loss.backward()
        for name, parameter in micro_model.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    finally:
        micro_model.zero_grad(set_to_none=True)
