"""The multi-token-prediction LLaMA, written to be checked against the paper, not to be fast.

Inference only. Sources and choices are in VERSION. Letters used in shape comments:

    B batch      S sequence (the new tokens)      T positions so far (cached and new)
    D width      H attention heads                K key/value heads      d head width, D / H
    n future tokens (heads)                       V vocabulary           F feed-forward width
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class ModelArgs:
    dim: int = 4096
    n_layers: int = 32  # trunk blocks and all n heads, counted together
    n_heads: int = 32
    n_kv_heads: int | None = None  # None: as many as n_heads
    vocab_size: int = -1  # must be set, usually from the tokenizer
    multiple_of: int = 256  # the feed-forward width is rounded up to a multiple of this
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    n_future_tokens: int = 1
    rope_theta: float = 10000.0
    max_batch_size: int = 32
    max_seq_len: int = 2048


def at_least_float32(x: Tensor) -> Tensor:
    """Raise half precisions to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def swiglu_width(args: ModelArgs) -> int:
    """F: two thirds of 4·D, scaled if asked, rounded up to a multiple of `multiple_of`."""
    width = int(2 * 4 * args.dim / 3)
    if args.ffn_dim_multiplier is not None:
        width = int(args.ffn_dim_multiplier * width)
    return args.multiple_of * math.ceil(width / args.multiple_of)


def rotary_table(head_dim: int, n_positions: int, theta: float, like: Tensor) -> Tensor:
    """e^(i·m·θ_j) for position m and pair j, θ_j = theta^(-2j/d), as complex [n_positions, d/2].

    The angles take the precision of `like`: float32 gives complex64, float64 gives complex128.
    """
    pairs = torch.arange(0, head_dim, 2, dtype=like.dtype, device=like.device)  # [d/2]: 2j
    positions = torch.arange(n_positions, dtype=like.dtype, device=like.device)
    angles = torch.outer(positions, 1.0 / theta ** (pairs / head_dim))
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Rotary embedding: read features (2j, 2j+1) as one complex number and turn it."""
    pairs = at_least_float32(x).reshape(*x.shape[:-1], -1, 2)  # [B, S, heads, d/2, 2]
    turned = torch.view_as_complex(pairs) * freqs_cis[None, :, None, :]  # [B, S, heads, d/2]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)  # [B, S, heads, d]


def causal_mask(start_pos: int, seq_len: int, like: Tensor) -> Tensor:
    """Additive mask [S, T]: the query at position start_pos + i sees keys 0 … start_pos + i."""
    mask = torch.full(
        (seq_len, start_pos + seq_len), float("-inf"), dtype=like.dtype, device=like.device
    )
    return torch.triu(mask, diagonal=start_pos + 1)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        mean_square = wide.pow(2).mean(dim=-1, keepdim=True)
        return (wide * torch.rsqrt(mean_square + self.eps)).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal grouped-query attention that remembers the keys and values of earlier calls."""

    cache_k: Tensor
    cache_v: Tensor

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.n_heads = args.n_heads
        self.n_kv_heads = args.n_heads if args.n_kv_heads is None else args.n_kv_heads
        self.head_dim = args.dim // args.n_heads
        self.wq = nn.Linear(args.dim, self.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(args.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(args.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(self.n_heads * self.head_dim, args.dim, bias=False)
        # Buffers follow .to() and .double(); persistent=False keeps them out of the state dict.
        cache_shape = (args.max_batch_size, args.max_seq_len, self.n_kv_heads, self.head_dim)
        self.register_buffer("cache_k", torch.zeros(cache_shape), persistent=False)
        self.register_buffer("cache_v", torch.zeros(cache_shape), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, start_pos: int, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        batch, seq_len, _ = x.shape
        end_pos = start_pos + seq_len  # T

        q = self.wq(x).view(batch, seq_len, self.n_heads, self.head_dim)  # [B, S, H, d]
        k = self.wk(x).view(batch, seq_len, self.n_kv_heads, self.head_dim)  # [B, S, K, d]
        v = self.wv(x).view(batch, seq_len, self.n_kv_heads, self.head_dim)  # [B, S, K, d]
        q = rotate(q, freqs_cis)
        k = rotate(k, freqs_cis)

        self.cache_k[:batch, start_pos:end_pos] = k
        self.cache_v[:batch, start_pos:end_pos] = v
        keys = self.cache_k[:batch, :end_pos]  # [B, T, K, d]
        values = self.cache_v[:batch, :end_pos]

        # Query head h reads key/value head h // (H / K).
        group = self.n_heads // self.n_kv_heads
        keys = keys.repeat_interleave(group, dim=2)  # [B, T, H, d]
        values = values.repeat_interleave(group, dim=2)

        q, keys, values = q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        scores = q @ keys.transpose(2, 3) / math.sqrt(self.head_dim)  # [B, H, S, T]
        probs = torch.softmax(at_least_float32(scores + mask), dim=-1).to(q.dtype)
        heads = (probs @ values).transpose(1, 2)  # [B, S, H, d]
        out: Tensor = self.wo(heads.reshape(batch, seq_len, -1))  # [B, S, D]
        return out


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x)."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        width = swiglu_width(args)
        self.w1 = nn.Linear(args.dim, width, bias=False)
        self.w2 = nn.Linear(width, args.dim, bias=False)
        self.w3 = nn.Linear(args.dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.w1(x)  # [B, S, F]
        out: Tensor = self.w2(gate * torch.sigmoid(gate) * self.w3(x))  # [B, S, D]
        return out


class TransformerBlock(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention = Attention(args)
        self.feed_forward = FeedForward(args)
        self.attention_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)

    def forward(self, x: Tensor, start_pos: int, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        h: Tensor = x + self.attention(self.attention_norm(x), start_pos, freqs_cis, mask)
        out: Tensor = h + self.feed_forward(self.ffn_norm(h))
        return out


class Transformer(nn.Module):
    """A trunk, n one-block heads that all read the trunk's output, one norm, one unembedding."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        n_kv_heads = args.n_heads if args.n_kv_heads is None else args.n_kv_heads
        if args.vocab_size < 1:
            raise ValueError(f"vocab_size must be set, got {args.vocab_size}")
        if args.dim % args.n_heads or (args.dim // args.n_heads) % 2:
            raise ValueError(f"dim {args.dim} / n_heads {args.n_heads} must be an even number")
        if args.n_heads % n_kv_heads:
            raise ValueError(f"n_heads {args.n_heads} is no multiple of n_kv_heads {n_kv_heads}")
        if not 1 <= args.n_future_tokens <= args.n_layers:
            raise ValueError(
                f"n_future_tokens {args.n_future_tokens} must be 1 … n_layers {args.n_layers}"
            )
        self.args = args
        n_extra = args.n_future_tokens - 1
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        # layers[:-1] is the trunk; layers[-1] is head 1, which predicts the next token.
        self.layers = nn.ModuleList(TransformerBlock(args) for _ in range(args.n_layers - n_extra))
        # extra_heads[k - 2] is head k, which predicts the k-th next token.
        self.extra_heads = nn.ModuleList(TransformerBlock(args) for _ in range(n_extra))
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)

    @torch.no_grad()
    def forward(self, tokens: Tensor, start_pos: int = 0, return_all_heads: bool = False) -> Tensor:
        """Logits [B, S, n, V], or [B, S, 1, V] for the next token alone.

        `tokens` [B, S] stand at positions start_pos … start_pos + S - 1. Earlier positions are
        read from the cache, so earlier calls must have filled it; start_pos = 0 begins anew.
        """
        batch, seq_len = tokens.shape
        args = self.args
        if batch > args.max_batch_size:
            raise ValueError(f"batch of {batch} exceeds max_batch_size {args.max_batch_size}")
        if start_pos + seq_len > args.max_seq_len:
            raise ValueError(
                f"position {start_pos + seq_len} exceeds max_seq_len {args.max_seq_len}"
            )

        h: Tensor = self.tok_embeddings(tokens)  # [B, S, D]
        table = rotary_table(
            args.dim // args.n_heads, 2 * args.max_seq_len, args.rope_theta, at_least_float32(h)
        )
        freqs_cis = table[start_pos : start_pos + seq_len]  # [S, d/2]
        mask = causal_mask(start_pos, seq_len, h)  # [S, T]

        *trunk, next_token_head = self.layers
        for layer in trunk:
            h = layer(h, start_pos, freqs_cis, mask)
        h_trunk = h

        # Every head runs even when one is asked for, so that every head's cache stays complete.
        heads = [next_token_head, *self.extra_heads]
        latents = [head(h_trunk, start_pos, freqs_cis, mask) for head in heads]
        if not return_all_heads:
            latents = latents[:1]
        logits: Tensor = self.output(self.norm(torch.stack(latents, dim=2)))  # [B, S, n or 1, V]
        return logits
