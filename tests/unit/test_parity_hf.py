"""Every head of the model is a Llama: trunk + head k gives what transformers gives."""

from dataclasses import asdict

import pytest
import torch
from tests.helpers import random_tokens, tiny_args, tiny_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.rotary import RopeScaling, precompute_freqs_cis
from weighted_mtp.models.meta_mtp.transformer import Transformer

TOLERANCE = 1e-5
SCALING = RopeScaling(
    factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=64
)


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of wq or wk: Meta rotates features (2j, 2j+1), transformers (j, j + d/2)."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def llama_of(model: Transformer, head: int) -> LlamaForCausalLM:
    """transformers' Llama with the trunk's blocks, then head number `head` (1 … n)."""
    args = model.args
    heads = [model.layers[-1], *model.extra_heads]
    blocks = [*model.layers[:-1], heads[head - 1]]
    state = {
        "model.embed_tokens.weight": model.tok_embeddings.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.output.weight,
    }
    for i, block in enumerate(blocks):
        attention, feed_forward = block.attention, block.feed_forward
        names = {
            "self_attn.q_proj": halves_from_pairs(attention.wq.weight, args.head_dim),
            "self_attn.k_proj": halves_from_pairs(attention.wk.weight, args.head_dim),
            "self_attn.v_proj": attention.wv.weight,
            "self_attn.o_proj": attention.wo.weight,
            "mlp.gate_proj": feed_forward.w1.weight,
            "mlp.up_proj": feed_forward.w3.weight,
            "mlp.down_proj": feed_forward.w2.weight,
            "input_layernorm": block.attention_norm.weight,
            "post_attention_layernorm": block.ffn_norm.weight,
        }
        state.update({f"model.layers.{i}.{name}.weight": w for name, w in names.items()})
    rope = {"rope_type": "default"}
    if args.rope_scaling is not None:
        rope = {"rope_type": "llama3", **asdict(args.rope_scaling)}
        rope["original_max_position_embeddings"] = rope.pop("original_max_seq_len")
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.dim,
        intermediate_size=blocks[0].feed_forward.w1.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=args.n_heads,
        num_key_value_heads=args.kv_heads,
        rms_norm_eps=args.norm_eps,
        rope_theta=args.rope_theta,
        rope_scaling=rope,
        max_position_embeddings=model.max_positions,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict({name: weight.detach() for name, weight in state.items()}, strict=True)
    return llama


@torch.no_grad()
def worst_error(args: ModelArgs, length: int) -> float:
    """Largest difference in any logit of any head."""
    model, tokens = tiny_model(args), random_tokens(args, 2, length)
    logits = model(tokens, return_all_heads=True)
    assert logits.shape == (2, length, args.n_future_tokens, args.vocab_size)
    torch.testing.assert_close(model(tokens), logits[:, :, :1], rtol=0, atol=0)
    expected = [llama_of(model, k + 1)(tokens).logits for k in range(args.n_future_tokens)]
    assert logits.std() > 0.5  # far above the tolerance
    return float((logits - torch.stack(expected, dim=2)).abs().max())


@pytest.mark.parametrize("ffn_dim_multiplier", [None, 1.3])
@pytest.mark.parametrize("rope_theta", [1e4, 1e5])
@pytest.mark.parametrize("n_kv_heads", [None, 2, 1])
def test_every_head_is_a_llama(n_kv_heads, rope_theta, ffn_dim_multiplier, record_property):
    args = tiny_args(
        n_kv_heads=n_kv_heads, rope_theta=rope_theta, ffn_dim_multiplier=ffn_dim_multiplier
    )
    error = max(worst_error(args, length) for length in (1, 7, 31))
    record_property("max_error", error)
    assert error < TOLERANCE


@pytest.mark.parametrize(
    "shape",
    [
        {"n_layers": 1, "n_future_tokens": 1},
        {"n_layers": 3, "n_future_tokens": 3},  # an empty trunk
        {"n_layers": 6, "n_future_tokens": 4, "ffn_hidden_dim": 50},
        {"dim": 24, "n_heads": 6, "n_kv_heads": 3, "norm_eps": 1e-2},
    ],
)
def test_unusual_shapes_are_llamas_too(shape, record_property):
    error = worst_error(tiny_args(**shape), 13)
    record_property("max_error", error)
    assert error < TOLERANCE


@pytest.mark.parametrize("rope_theta", [1e4, 5e5])
def test_llama3_rope_scaling(rope_theta, record_property):
    args = tiny_args(
        n_heads=2, rope_theta=rope_theta, rope_scaling=SCALING, max_seq_len=64, n_future_tokens=2
    )
    error = worst_error(args, 101)
    record_property("max_error", error)
    assert error < TOLERANCE


@pytest.mark.parametrize("scaling", [None, SCALING, RopeScaling()])
def test_rotary_frequencies(scaling):
    """The angles themselves, for wavelengths kept, blended and stretched alike."""
    args = tiny_args(
        dim=256, n_heads=2, n_layers=1, n_future_tokens=1, max_seq_len=8192, rope_scaling=scaling
    )
    expected = llama_of(Transformer(args), 1).model.rotary_emb.inv_freq
    table = precompute_freqs_cis(args.head_dim, 2, args.rope_theta, scaling)
    torch.testing.assert_close(table[1].angle(), expected, rtol=1e-5, atol=0)
    if scaling is not None:
        plain = precompute_freqs_cis(args.head_dim, 2, args.rope_theta)[1].angle()
        ratio = plain / expected
        assert ratio.min() == pytest.approx(1)
        assert ratio.max() == pytest.approx(scaling.factor)
        assert ((ratio > 1.01) & (ratio < scaling.factor - 0.01)).any()
