"""Attention, and the norm that some families put on its queries and keys.

Letters: B batch, S sequence (new tokens), T cached and new tokens, D model width, H attention
heads, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.fused_ops import (
    is_short,
    normed_linears,
    rms_norm,
    short_attention,
)
from weighted_mtp.models.meta_mtp.kv_cache import LayerCache, within_window
from weighted_mtp.models.meta_mtp.rotary import apply_rotary


class Documents(Protocol):
    """Rows that are packed of documents, none of which sees another."""

    @property
    def runs(self) -> Sequence[int]:
        """Positions of each document, and of the padding behind each row, in their order. Empty: a
        row for each document."""
        ...

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


def read(x: Tensor, norm: RMSNorm | None, *linears: nn.Module) -> tuple[Tensor, ...]:
    """What each linear makes of `norm(x)`, or of `x` if there is no norm."""
    if norm is None:
        return tuple(linear(x) for linear in linears)
    return normed_linears(x, norm.weight, norm.eps, linears)


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
        wanted: Tensor | None = None,
        norm: RMSNorm | None = None,
    ) -> Tensor:
        """`[B, S, D]` → `[B, S, D]`, or `[1, R, D]` at the `wanted` `[R]` of the B · S places.
        `norm`: of the input, where it has not been applied yet."""
        B, S, _ = x.shape
        q, k, v = (
            part.view(B, S, -1, self.head_dim) for part in read(x, norm, self.wq, self.wk, self.wv)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotates:
            q, k = apply_rotary(q, freqs_cis), apply_rotary(k, freqs_cis)
        if mask is None or isinstance(mask, Tensor):
            out = self._attend(q, k, v, mask, cache)  # [B, S, H·d]
        elif not torch.compiler.is_compiling() and mask.runs:  # compiled code would differ for each
            # Slices need no gather and no padding.
            parts = (torch.split(part.flatten(0, 1), list(mask.runs)) for part in (q, k, v))
            runs = [self._alone(*(part[None] for part in run)) for run in zip(*parts, strict=True)]
            out = torch.cat(runs, dim=1).view(B, S, -1)
        else:
            out = mask.pack(self._alone(*(mask.unpack(part) for part in (q, k, v))))
        if wanted is not None:
            out = out.flatten(0, 1).index_select(0, wanted)[None]  # [1, R, H·d]
        mixed: Tensor = self.wo(out)
        return mixed

    def _alone(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention in rows that hold one document each, from its beginning."""
        S, mask = q.shape[1], None
        if self.window is not None and self.window < S:
            mask = within_window(None, 0, S, self.window, q.device)
        return self._attend(q, k, v, mask)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """Queries `[B, S, H, d]`, keys and values `[B, S, K, d]` → `[B, S, H·d]`."""
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [B, H, S, d], [B, K, S, d] twice
        if cache is not None:
            k, v = cache.append(k, v)  # [B, K, T, d]
        causal = mask is None
        if causal and q.shape[2] == 1:  # an `if`: torch.compile makes no bool of a dynamic length
            causal = False
        if causal and cache is None and is_short(q):
            out = short_attention(q, k, v, self.scale)
        else:
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=causal,
                scale=self.scale,
                enable_gqa=self.n_heads != self.n_kv_heads,
            )
        return out.transpose(1, 2).flatten(2)
