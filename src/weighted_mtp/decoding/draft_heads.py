"""Heads 2 … k side by side, as decoding uses them.

What can be is done for all in one go, as a block of (k − 1)·H query and (k − 1)·K key heads. They
keep keys and values of the tokens that they were shown, and guess at one token of a row, each row
by as many heads as it asks for.

Letters: B batch, S new tokens, P pairs of a row and a head that guesses for it, H attention heads,
K key/value heads, d head width, D model width, k heads in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.decoding.layers import attend, norm_weights
from weighted_mtp.decoding.products import Layout, Product, product
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.kv_cache import LayerCache
from weighted_mtp.models.meta_mtp.rotary import rotate_in_place
from weighted_mtp.models.meta_mtp.transformer import TransformerBlock, scaled


@dataclass(frozen=True)
class Pairs:
    """Which heads guess for which rows: all rows of head 2 first, in their order, then of head 3.

    Attributes:
        rows, heads: `[P]`, the row and the head (0 is head 2) of each pair.
        sizes: pairs of each head.
    """

    rows: Tensor
    heads: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> Pairs:
        """The pairs of rows that ask for the first `counts[b]` heads each."""
        members = [
            [row for row, count in enumerate(counts) if count > head] for head in range(max(counts))
        ]
        heads = [head for head, rows in enumerate(members) for _ in rows]
        both = torch.tensor([[row for rows in members for row in rows], heads], dtype=torch.long)
        rows, numbers = both.to(device, non_blocking=True)
        return cls(rows, numbers, [len(each) for each in members])

    def placed(self, x: Tensor, batch: int) -> Tensor:
        """`[P, …]` → `[batch, most heads of a row, …]`, zeros where there is no pair."""
        whole = x.new_zeros(batch, len(self.sizes), *x.shape[1:])
        return whole.index_put_((self.rows, self.heads), x)


def pairs_among(counts: Sequence[int], some: Sequence[int]) -> list[int]:
    """Of the pairs of `counts`, the places of those whose rows are among `some`."""
    found, place, chosen = [], 0, set(some)
    for head in range(max(counts)):
        for row, count in enumerate(counts):
            if count > head:
                found += [place] if row in chosen else []
                place += 1
    return found


class DraftHeads:
    """Heads 2 … k of a model.

    Args:
        heads: their blocks.
        layout: as `product` takes it.
    """

    def __init__(self, heads: Sequence[TransformerBlock], args: ModelArgs, layout: Layout) -> None:
        self._K, self._H, self._d, self._eps = (
            args.kv_heads,
            args.n_heads,
            args.head_dim,
            args.norm_eps,
        )
        self._wq = [product([head.attention.wq], layout) for head in heads]
        self._wkv = [product([head.attention.wk, head.attention.wv], layout) for head in heads]
        self._wo = [product([head.attention.wo], layout) for head in heads]
        self._w13 = [product([h.feed_forward.w1, h.feed_forward.w3], layout) for h in heads]
        self._w2 = [product([head.feed_forward.w2], layout) for head in heads]
        self._q_norms = norm_weights([head.attention.q_norm for head in heads])  # [k − 1, 1, d]
        self._k_norms = norm_weights([head.attention.k_norm for head in heads])
        self._rotates = heads[0].attention.rotates
        self._scale, self._residual = heads[0].attention.scale, heads[0].residual
        self._attention_norms = torch.stack([head.attention_norm.weight for head in heads])
        self._ffn_norms = torch.stack([head.ffn_norm.weight for head in heads])  # [k − 1, D]

    def remember(self, x: Tensor, freqs_cis: Tensor, slot: LayerCache) -> None:
        """Keep keys and values of `x` `[B, S, D]`."""
        B, S, _ = x.shape
        normed = self._scaled(x[:, :, None], self._attention_norms)  # [B, S, k − 1, D]
        kv = torch.stack([times(normed[:, :, i]) for i, times in enumerate(self._wkv)], 2)
        k, v = kv.view(B, S, -1, 2, self._K, self._d).unbind(3)  # [B, S, k − 1, K, d] both
        k = self._turned(k, self._k_norms, freqs_cis)
        slot.append(k.transpose(1, 2), v.flatten(2, 3).transpose(1, 2))

    def guess(
        self,
        x: Tensor,
        freqs_cis: Tensor,
        bias: Tensor | None,
        seen: tuple[Tensor, Tensor],
        pairs: Pairs,
    ) -> Tensor:
        """Through the heads at tokens that they remember, one of each row.

        Args:
            x: `[B, D]`.
            freqs_cis: of these tokens, `[1, r/2]` or `[B, 1, r/2]`.
            seen: keys and values of all heads, `[B, (k − 1)·K, T, d]`.

        Returns:
            `[P, D]`.
        """
        B, count = len(x), len(pairs.sizes)
        keys, values = (stored[:, : count * self._K] for stored in seen)
        h = x[pairs.rows]  # [P, D]
        normed = self._scaled(h, self._attention_norms[pairs.heads])
        q = self._each(self._wq, normed, pairs).view(-1, self._H, self._d)
        q = pairs.placed(q, B)[:, None]  # [B, 1, count, H, d]
        norms = None if self._q_norms is None else self._q_norms[:count]
        q = self._turned(q, norms, freqs_cis)
        mixed = attend(q, keys, values, bias, self._scale).view(B, count, -1)
        mixed = mixed[pairs.rows, pairs.heads]
        h = h + scaled(self._each(self._wo, mixed, pairs), self._residual)
        normed = self._scaled(h, self._ffn_norms[pairs.heads])
        gate, up = self._each(self._w13, normed, pairs).chunk(2, -1)
        mixed = F.silu(gate).mul_(up)
        return h + scaled(self._each(self._w2, mixed, pairs), self._residual)

    def _each(self, products: Sequence[Product], x: Tensor, pairs: Pairs) -> Tensor:
        """Each head's product of its own rows of `x` `[P, D]`: `[P, O]`."""
        parts = torch.split_with_sizes(x, pairs.sizes)
        return torch.cat([times(part) for times, part in zip(products, parts, strict=False)])

    def _turned(self, x: Tensor, norms: Tensor | None, freqs_cis: Tensor) -> Tensor:
        """`[B, S, heads, K, d]` → `[B, S, heads·K, d]`, normalised where the family does, and
        rotated."""
        if norms is not None:
            x = F.rms_norm(x, (self._d,), None, self._eps) * norms
        x = x.flatten(2, 3)
        if self._rotates:
            rotate_in_place(x, freqs_cis)
        return x

    def _scaled(self, x: Tensor, weights: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self._eps) * weights
