"""The adapter: loading, its two forward passes, and the value head it may carry."""

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers import random_tokens, tiny_args, tiny_model
from torch import Tensor, nn

from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import save_native, value_head_path
from weighted_mtp.models.meta_mtp.value_head import ValueHead

ARGS = tiny_args(n_kv_heads=2)
B, S, D, N, V = 2, 9, ARGS.dim, ARGS.n_future_tokens, ARGS.vocab_size


def random_head(head_type: str = "linear") -> ValueHead:
    head = ValueHead(D, head_type)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    return head


@pytest.fixture
def adapter() -> MetaLlamaMTPAdapter:
    return MetaLlamaMTPAdapter(tiny_model(ARGS), random_head())


@pytest.fixture
def plain() -> MetaLlamaMTPAdapter:
    """Without a value head."""
    return MetaLlamaMTPAdapter(tiny_model(ARGS))


@pytest.fixture
def tokens() -> Tensor:
    return random_tokens(ARGS, B, S)


@pytest.fixture
def checkpoint(tmp_path):
    save_native(tiny_model(ARGS), tmp_path / "model")
    return tmp_path / "model"


class Untouchable(nn.Module):
    """Has no weights and must not be called."""

    def forward(self, *args) -> Tensor:
        raise AssertionError("this module has no part in the call")


# --- from_pretrained -----------------------------------------------------------------------------


def test_from_pretrained_with_a_fresh_value_head(checkpoint, tokens):
    adapter = MetaLlamaMTPAdapter.from_pretrained(checkpoint, device="cpu")
    assert adapter.args == ARGS
    assert isinstance(adapter.value_head, ValueHead)
    out = adapter.full_forward(tokens)
    assert torch.equal(out["logits"], tiny_model(ARGS)(tokens, return_all_heads=True))
    assert not out["value_logits"].any()  # a fresh critic says 0 everywhere


def test_from_pretrained_without_a_value_head(checkpoint, tokens):
    adapter = MetaLlamaMTPAdapter.from_pretrained(
        checkpoint, device="cpu", initialize_value_head=False
    )
    assert adapter.value_head is None
    assert not any("value" in name for name, _ in adapter.named_parameters())
    assert set(adapter.full_forward(tokens)) == {"hidden_states", "logits"}


@pytest.mark.parametrize("head_type", ["linear", "mlp"])
def test_from_pretrained_takes_the_stored_value_head(tmp_path, tokens, head_type):
    head = random_head(head_type)
    head.save_checkpoint(tmp_path / "head.safetensors")
    model_dir = tmp_path / "model"
    save_native(tiny_model(ARGS), model_dir, value_head_file=tmp_path / "head.safetensors")
    assert value_head_path(model_dir).is_file()
    loaded = MetaLlamaMTPAdapter.from_pretrained(model_dir, device="cpu")
    expected = MetaLlamaMTPAdapter(tiny_model(ARGS), head)
    for name, value in expected.trunk_forward(tokens).items():
        assert torch.equal(loaded.trunk_forward(tokens)[name], value), name


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, torch.float64, None])
def test_from_pretrained_dtype(checkpoint, tokens, dtype):
    adapter = MetaLlamaMTPAdapter.from_pretrained(checkpoint, device="cpu", dtype=dtype)
    wanted = {"bfloat16": torch.bfloat16, None: torch.float32}.get(dtype, dtype)
    assert {parameter.dtype for parameter in adapter.transformer.parameters()} == {wanted}
    wide = torch.promote_types(wanted, torch.float32)
    assert {parameter.dtype for parameter in adapter.value_head.parameters()} == {wide}
    out = adapter.full_forward(tokens)
    assert out["logits"].dtype == out["hidden_states"].dtype == wanted
    assert out["value_logits"].dtype == wide


def test_from_pretrained_device_auto(checkpoint):
    best = "cpu"
    if torch.cuda.is_available():
        best = "cuda"
    elif torch.backends.mps.is_available():
        best = "mps"
    adapter = MetaLlamaMTPAdapter.from_pretrained(checkpoint)
    assert {parameter.device.type for parameter in adapter.parameters()} == {best}


def test_from_pretrained_of_nothing_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="absent"):
        MetaLlamaMTPAdapter.from_pretrained(tmp_path / "absent")


# --- forward passes ------------------------------------------------------------------------------


def test_trunk_forward_computes_no_unembedding_and_no_extra_head(adapter, tokens):
    expected = adapter.full_forward(tokens)
    adapter.transformer.output = Untouchable()
    for i in range(N - 1):
        adapter.transformer.extra_heads[i] = Untouchable()
    out = adapter.trunk_forward(tokens)
    assert set(out) == {"hidden_states", "value_logits"}
    assert out["hidden_states"].shape == (B, S, D)
    assert out["value_logits"].shape == (B, S, 1)
    for name, value in out.items():
        torch.testing.assert_close(value, expected[name])


def test_full_forward_with_value_logits(adapter, tokens):
    out = adapter.full_forward(tokens)
    assert set(out) == {"hidden_states", "logits", "value_logits"}
    assert out["hidden_states"].shape == (B, S, D)
    assert out["logits"].shape == (B, S, N, V)
    assert out["value_logits"].shape == (B, S, 1)
    assert torch.equal(adapter(tokens)["logits"], out["logits"])


def test_full_forward_without_a_value_head(plain, tokens):
    out = plain.full_forward(tokens)
    assert set(out) == {"hidden_states", "logits"}
    assert torch.equal(out["logits"], plain.transformer(tokens, return_all_heads=True))


def test_hidden_states_are_the_normalised_next_token_path(adapter, tokens):
    out = adapter.full_forward(tokens)
    first_head = adapter.transformer.output(out["hidden_states"])
    torch.testing.assert_close(first_head, out["logits"][:, :, 0])
    torch.testing.assert_close(adapter.value_head(out["hidden_states"]), out["value_logits"])


def test_trunk_forward_without_a_value_head_is_refused(plain, tokens):
    with pytest.raises(ValueError, match="Value head not initialized"):
        plain.trunk_forward(tokens)


@pytest.mark.parametrize("forward", ["trunk_forward", "full_forward"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_attention_mask(adapter, tokens, forward, side):
    """Padding on either side changes nothing for the real tokens of either row."""
    real = 6
    mask, padded = torch.ones(B, S, dtype=torch.long), tokens.clone()
    where = slice(0, S - real) if side == "left" else slice(real, S)
    kept = slice(S - real, S) if side == "left" else slice(0, real)
    mask[1, where] = 0
    padded[1, where] = 0
    call = getattr(adapter, forward)
    out, whole, alone = call(padded, mask), call(tokens), call(tokens[1:, kept])
    for name in out:
        torch.testing.assert_close(out[name][0], whole[name][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(out[name][1, kept], alone[name][0], rtol=0, atol=1e-5)


def test_a_row_of_padding_alone_is_finite(adapter, tokens):
    mask = torch.ones(B, S, dtype=torch.long)
    mask[1] = 0
    assert all(value.isfinite().all() for value in adapter.full_forward(tokens, mask).values())


def test_gradients_flow(adapter, tokens):
    adapter.trunk_forward(tokens)["value_logits"].square().mean().backward()
    reached = {name for name, p in adapter.named_parameters() if p.grad is not None}
    idle = {name for name, _ in adapter.named_parameters()} - reached
    assert {"transformer.tok_embeddings.weight", "value_head.value.weight"} <= reached
    assert {name.split(".")[1] for name in idle} == {"extra_heads", "output"}
    out = adapter.full_forward(tokens)
    (out["logits"].square().mean() + out["value_logits"].square().mean()).backward()
    assert all(parameter.grad.any() for parameter in adapter.parameters())


# --- the value head ------------------------------------------------------------------------------


def test_attach_value_head(plain, tokens):
    fresh = plain.attach_value_head()
    assert plain.value_head is fresh
    assert not plain.trunk_forward(tokens)["value_logits"].any()
    head = random_head()
    assert plain.attach_value_head(head) is plain.value_head is head
    assert plain.trunk_forward(tokens)["value_logits"].all()
    assert plain.attach_value_head(head_type="mlp").head_type == "mlp"


def test_a_value_head_of_another_width_is_refused(plain):
    with pytest.raises(ValueError, match=f"width {D + 1} on a model of width {D}"):
        plain.attach_value_head(ValueHead(D + 1))
    with pytest.raises(ValueError, match="width"):
        MetaLlamaMTPAdapter(plain.transformer, ValueHead(1))


def test_the_value_head_is_linear_and_unbounded():
    head = random_head().requires_grad_(False).double()
    x = torch.randn(B, S, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    once = head(x)
    assert once.shape == (B, S, 1)
    for parameter in head.parameters():
        parameter.mul_(2)
    torch.testing.assert_close(head(x), 2 * once)
    head.value.bias.zero_()
    torch.testing.assert_close(head(1e6 * x), 1e6 * head(x))
    assert head(1e6 * x).abs().max() > 1e6


@pytest.mark.parametrize("head_type", ["linear", "mlp"])
def test_value_head_round_trip(tmp_path, head_type):
    head, path = random_head(head_type), tmp_path / "head.safetensors"
    head.save_checkpoint(path)
    head.save_checkpoint(path)  # over an older one
    back = ValueHead.load_checkpoint(path)
    assert (back.hidden_size, back.head_type) == (D, head_type)
    assert back.state_dict().keys() == head.state_dict().keys()
    for name, weight in head.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_damaged_value_heads_are_user_errors(tmp_path):
    path = tmp_path / "head.safetensors"
    with pytest.raises(UserError, match="no such value head"):
        ValueHead.load_checkpoint(path)
    random_head().save_checkpoint(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path.name}: damaged value head"):
            ValueHead.load_checkpoint(path)


@pytest.mark.parametrize(
    ("header", "weights", "message"),
    [
        (None, {"value.weight": (1, 4), "value.bias": (1,)}, "not a value head"),
        ({"hidden_size": "wide", "head_type": "linear"}, {}, "not a value head"),
        ({"hidden_size": "4", "head_type": "cubic"}, {}, "not a value head"),
        ({"hidden_size": "4", "head_type": "linear"}, {"value.bias": (1,)}, "value.weight"),
        (
            {"hidden_size": "4", "head_type": "linear"},
            {"value.weight": (1, 5), "value.bias": (1,)},
            "value.weight",
        ),
    ],
)
def test_files_that_are_no_value_head_are_user_errors(tmp_path, header, weights, message):
    path = tmp_path / "head.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in weights.items()}, path, metadata=header)
    with pytest.raises(UserError, match=message) as caught:
        ValueHead.load_checkpoint(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
