"""The shape of a model, and how its family differs from Meta's LLaMA.

Nothing here needs PyTorch: a checkpoint is described without it.

Letters: D model width, V vocabulary, H attention heads, K key/value heads, d head width,
r rotated features of a head, F feed-forward width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency-dependent stretch of the rotary wavelengths (`rope_type: llama3`)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192


@dataclass(frozen=True)
class RopeFrequencies:
    """Frequencies of a scaling that is computed elsewhere (linear, dynamic, yarn): once, by
    transformers, when a checkpoint in its layout is read.

    Attributes:
        inverse: r/2 angles by which one position turns each pair.
        amplitude: factor of the rotated queries and keys alike (YaRN's attention factor).
        valid_length: positions up to which `inverse` holds; beyond them a dynamic scaling would
            depend on the length of the whole sequence, which a cache cannot follow.
        described: the fields of config.json that they come from.
    """

    inverse: tuple[float, ...]
    amplitude: float = 1.0
    valid_length: int | None = None
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """What a family of decoders changes in Meta's LLaMA; the defaults change nothing.

    Attributes:
        name: `model_type` of the config.json that an export to Hugging Face's layout gets.
        head_dim: width d of a head where it is not D / H (Qwen3, Mistral Nemo).
        qkv_bias, output_bias, mlp_bias: of the projections (Qwen2: q, k and v).
        qk_norm: RMS norm of each query and key head before the rotation (Qwen3).
        sliding_window: a query sees itself and the keys of this many − 1 positions before it.
        rotary_dim: how many of a head's features are rotated, the first ones; None rotates all d.
        no_rope_layers: blocks of `layers` that rotate nothing (SmolLM3). The extra heads do as the
            last block does.
        embedding_multiplier, residual_multiplier: factors of embeddings and of what a block's
            halves add (Granite).
        attention_multiplier: factor of q·k; None is 1/√d.
        logits_scaling: what logits are divided by. The final states are divided, so that every
            product with the unembedding is the scaled one.
    """

    name: str = "llama"
    head_dim: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    rotary_dim: int | None = None
    no_rope_layers: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    logits_scaling: float = 1.0


@dataclass
class ModelArgs:
    """Shape of a model; the first twelve fields are Meta's `params.json` and its defaults.

    Attributes:
        n_layers: blocks on the path from a token to one prediction, plus the n − 1 extra heads: the
            trunk has `n_layers - n_future_tokens` blocks and every head is one block.
        n_kv_heads: key/value heads K; None means K = H. K must divide H.
        ffn_hidden_dim: feed-forward width, when it is not the one Meta's rule gives.
        tie_embeddings: the unembedding is the embedding matrix.
        rope_scaling: Llama 3.1's scaling, or frequencies that were computed elsewhere; None leaves
            the frequencies alone.
        family: how the arithmetic differs from Meta's.
    """

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    vocab_size: int = -1
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    n_future_tokens: int = 1
    rope_theta: float = 10000.0
    max_batch_size: int = 32
    max_seq_len: int = 2048
    ffn_hidden_dim: int | None = None
    tie_embeddings: bool = False
    rope_scaling: RopeScaling | RopeFrequencies | None = None
    family: Family = Family()

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "n_future_tokens", "max_seq_len", "multiple_of"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        own_width = self.family.head_dim is not None
        if (self.dim % self.n_heads and not own_width) or self.head_dim < 1 or self.head_dim % 2:
            raise ValueError(
                f"dim ({self.dim}) over n_heads ({self.n_heads}) must be a whole, even head width"
                if not own_width
                else f"head_dim ({self.head_dim}) must be even and above 0"
            )
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"rotary_dim ({self.rotary_dim}) must be even, above 0 and at most the head width "
                f"({self.head_dim})"
            )
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads ({self.kv_heads}) must divide n_heads ({self.n_heads})")
        if self.n_future_tokens > self.n_layers:
            raise ValueError(
                f"n_future_tokens ({self.n_future_tokens}) cannot exceed n_layers ({self.n_layers})"
            )
        rope = self.rope_scaling
        if isinstance(rope, RopeFrequencies) and len(rope.inverse) != self.rotary_dim // 2:
            raise ValueError(
                f"rope_scaling has {len(rope.inverse)} frequencies, the heads {self.rotary_dim} "
                "rotated features"
            )

    @property
    def head_dim(self) -> int:
        return self.family.head_dim or self.dim // self.n_heads

    @property
    def rotary_dim(self) -> int:
        """Features of a head that are rotated."""
        return self.family.rotary_dim or self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def ffn_dim(self) -> int:
        """Width of SwiGLU: 2/3 of 4·dim, scaled, rounded up to `multiple_of`, unless given."""
        if self.ffn_hidden_dim is not None:
            return self.ffn_hidden_dim
        width = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return self.multiple_of * math.ceil(width / self.multiple_of)

    @property
    def max_positions(self) -> int:
        """Positions the rotary table covers; nothing longer can be read."""
        rope = self.rope_scaling
        if isinstance(rope, RopeFrequencies) and rope.valid_length is not None:
            return min(2 * self.max_seq_len, rope.valid_length)
        return 2 * self.max_seq_len

    def check_vocabulary(self) -> None:
        """Raise `ValueError` where the vocabulary was left open (-1, as in Llama 2's files)."""
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size must be set before the model is built: {self.vocab_size}")


def parameter_shapes(args: ModelArgs) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of `Transformer(args)`, by name, in its order; a tied
    unembedding is the embedding and has no name of its own.

    Raises:
        ValueError: the vocabulary was left open.
    """
    args.check_vocabulary()
    n_extra = args.n_future_tokens - 1
    block = _block_shapes(args)
    blocks = [f"layers.{i}" for i in range(args.n_layers - n_extra)]
    blocks += [f"extra_heads.{i}" for i in range(n_extra)]
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (args.vocab_size, args.dim)}
    for stem in blocks:
        shapes |= {f"{stem}.{name}": shape for name, shape in block.items()}
    shapes["norm.weight"] = (args.dim,)
    if not args.tie_embeddings:
        shapes["output.weight"] = (args.vocab_size, args.dim)
    return shapes


def _block_shapes(args: ModelArgs) -> dict[str, tuple[int, ...]]:
    """Of one block, as `nn.Linear` has them: `[outputs, inputs]`."""
    family, D, F = args.family, args.dim, args.ffn_dim
    q, kv = args.n_heads * args.head_dim, args.kv_heads * args.head_dim  # H·d, K·d
    linears = {
        "attention.wq": (q, D, family.qkv_bias),
        "attention.wk": (kv, D, family.qkv_bias),
        "attention.wv": (kv, D, family.qkv_bias),
        "attention.wo": (D, q, family.output_bias),
        "feed_forward.w1": (F, D, family.mlp_bias),
        "feed_forward.w2": (D, F, family.mlp_bias),
        "feed_forward.w3": (F, D, family.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs, bias) in linears.items():
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)
        if name == "attention.wo" and family.qk_norm:
            shapes |= {
                f"attention.{norm}.weight": (args.head_dim,) for norm in ("q_norm", "k_norm")
            }
    return shapes | {"attention_norm.weight": (D,), "ffn_norm.weight": (D,)}
