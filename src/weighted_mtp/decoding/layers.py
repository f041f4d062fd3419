"""Pieces of a block that the trunk and the draft heads share when few tokens are read.

Letters: B batch, S new tokens, T cached and new tokens, H attention heads, K key/value heads,
G = H/K, d head width, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.models.meta_mtp.transformer import RMSNorm


def norm_weights(norms: Sequence[RMSNorm | None]) -> Tensor | None:
    """`[heads, 1, d]` of the norms of queries or keys; None for a family without them."""
    found: list[Tensor] = [norm.weight for norm in norms if norm is not None]
    return torch.stack(found)[:, None] if found else None


def attend(
    q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float | None
) -> Tensor:
    """Attention of `q` `[B, S, H, d]` over `[B, K, T, d]`, `[B, S, H·d]`: the G query heads of a
    key head as G·S queries of it."""
    B, S, H, d = q.shape
    K = keys.shape[1]
    queries = q.view(B, S, K, H // K, d).permute(0, 2, 3, 1, 4).reshape(B, K, -1, d)
    alone = queries.shape[2] == 1 and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    if alone:  # for one query of a bfloat16 head PyTorch takes 193 µs (T = 544), for two 63
        queries = queries.expand(B, K, 2, d)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
    if alone:
        out = out[:, :, :1]
    return out.view(B, K, H // K, S, d).permute(0, 3, 1, 2, 4).reshape(B, S, H * d)


class Norm:
    """`norm(x)` without a gradient: up to rounding in float32 on a CPU, elsewhere the same bits."""

    def __init__(self, norm: RMSNorm) -> None:
        self._norm, weight = norm, norm.weight.detach()
        self._narrow = weight.dtype == torch.float32 and weight.device.type == "cpu"
        if self._narrow:
            self._weight = weight * math.sqrt(len(weight))
            self._least = torch.tensor(math.sqrt(len(weight) * norm.eps))

    def __call__(self, x: Tensor) -> Tensor:
        norm = self._norm
        if norm.weight.dtype != x.dtype:
            out: Tensor = norm(x)
            return out
        if self._narrow:  # 6 µs for one token instead of 10, of which a step has two a block
            length = torch.linalg.vector_norm(x, 2, -1, True)
            return (x / torch.hypot(length, self._least)).mul_(self._weight)
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
