"""The shape of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weighted_mtp.models.meta_mtp.rotary import RopeScaling


@dataclass
class ModelArgs:
    """Shape of a model; the first twelve fields are Meta's `params.json` and its defaults.

    Attributes:
        n_layers: blocks on the path from a token to one prediction, plus the n − 1 extra heads: the
            trunk has `n_layers - n_future_tokens` blocks and every head is one block.
        n_kv_heads: key/value heads K; None means K = H. K must divide H.
        ffn_hidden_dim: feed-forward width, when it is not the one Meta's rule gives.
        tie_embeddings: the unembedding is the embedding matrix.
        rope_scaling: Llama 3.1's scaling; None leaves the frequencies alone.
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
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "n_future_tokens", "max_seq_len", "multiple_of"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.n_heads or self.head_dim % 2:
            raise ValueError(
                f"dim ({self.dim}) over n_heads ({self.n_heads}) must be a whole, even head width"
            )
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads ({self.kv_heads}) must divide n_heads ({self.n_heads})")
        if self.n_future_tokens > self.n_layers:
            raise ValueError(
                f"n_future_tokens ({self.n_future_tokens}) cannot exceed n_layers ({self.n_layers})"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

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
