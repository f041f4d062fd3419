"""Attention, and the norm that some families put on its queries and keys.

Letters: B batch, S sequence (new tokens), T cached and new tokens, D model width, H attention
heads, K key/value heads, d head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.fused_ops import rms_norm
from weighted_mtp.models.meta_mtp.kv_cache import LayerCache, within_window
from weighted_mtp.models.meta_mtp.rotary import apply_rotary


class Documents(Protocol):
    """Rows that are packed of documents, none of which sees another."""

    def unpack(self, x: Tensor) -> Tensor:
        """`[B, S, …]` → a row for each document; what is past a document's end may be anything."""
        ...

    def pack(self, x: Tensor) -> Tensor:
        """The inverse."""
        ...


class RMSNorm(nn.Module):
    """x / rms(x) · weight, in float32 or better (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; K key/value heads serve H query heads.

    Args:
        rotates: False for a block that knows no positions (`Family.no_rope_layers`).
    """

    def __init__(self, args: ModelArgs, rotates: bool = True) -> None:
        super().__init__()
        family, d = args.family, args.head_dim
        self.n_heads, self.n_kv_heads, self.head_dim = args.n_heads, args.kv_heads, d
        self.rotates, self.window, self.scale = (
            rotates,
            family.sliding_window,
            family.attention_multiplier,
        )
        self.wq = nn.Linear(args.dim, args.n_heads * d, bias=family.qkv_bias)
        self.wk = nn.Linear(args.dim, args.kv_heads * d, bias=family.qkv_bias)
        self.wv = nn.Linear(args.dim, args.kv_heads * d, bias=family.qkv_bias)
        self.wo = nn.Linear(args.n_heads * d, args.dim, bias=family.output_bias)
        self.q_norm = RMSNorm(d, args.norm_eps) if family.qk_norm else None
        self.k_norm = RMSNorm(d, args.norm_eps) if family.qk_norm else None

    def forward(
        self,
        x: Tensor,
        freqs_cis: Tensor,
        mask: Tensor | Documents | None,
        cache: LayerCache | None,
    ) -> Tensor:
        B, S, _ = x.shape
        q: Tensor = self.wq(x).view(B, S, self.n_heads, self.head_dim)
        k: Tensor = self.wk(x).view(B, S, self.n_kv_heads, self.head_dim)
        v: Tensor = self.wv(x).view(B, S, self.n_kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotates:
            q, k = apply_rotary(q, freqs_cis), apply_rotary(k, freqs_cis)
        documents = None
        if mask is not None and not isinstance(mask, Tensor):  # a row for each needs no mask
            documents, mask = mask, None
            q, k, v = (documents.unpack(part) for part in (q, k, v))
            if self.window is not None and q.shape[1] > self.window:
                mask = within_window(None, 0, q.shape[1], self.window, q.device)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [B, H, S, d], [B, K, S, d] twice
        if cache is not None:
            k, v = cache.append(k, v)  # [B, K, T, d]
        causal = mask is None
        if causal and q.shape[2] == 1:  # an `if`: torch.compile makes no bool of a dynamic length
            causal = False
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        out = out.transpose(1, 2).flatten(2)  # [B, S, H·d]
        mixed: Tensor = self.wo(out if documents is None else documents.pack(out))
        return mixed
