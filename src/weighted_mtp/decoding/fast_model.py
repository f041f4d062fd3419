"""The model as decoding reads it: few tokens, many times over.

The arithmetic is `Transformer`'s, up to rounding. What differs is measured to pay on a CPU:
projections of one input are one product in a better layout (`products`); queries and keys are
turned together, in place; the queries that share a key head are attended as more queries of it
(bfloat16, 9 heads on 3, one new token after 544: 84 µs; with `enable_gqa` 546 µs); the mask is made
once a step; and heads 2 … k keep keys and values of every token, but guess only where a guess is
wanted, at the last token that stays.

Letters: B batch, S new tokens, T cached and new tokens, H attention heads, K key/value heads,
G = H/K, d head width, D model width, V vocabulary, k heads in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.decoding.products import Product, is_small, product, worth_copying
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.kv_cache import KVCache, LayerCache, sees
from weighted_mtp.models.meta_mtp.rotary import rotate_in_place
from weighted_mtp.models.meta_mtp.transformer import (
    RMSNorm,
    Transformer,
    TransformerBlock,
    scaled,
)


@dataclass(frozen=True)
class Window:
    """What one `read` leaves for the guesses that follow it."""

    trunk: Tensor  # [B, S, D]
    start_pos: int | Tensor  # of the first of the S tokens
    freqs_cis: Tensor  # [S, d/2] or [B, S, d/2]
    heads: LayerCache  # of heads 2 … k together

    def of_path(self, nodes: Sequence[int], start: int) -> Window:
        """Of a tree's tokens `nodes` only, moved to the slots from `start` on."""
        index = torch.tensor(nodes).to(self.trunk.device)
        heads = LayerCache(self.heads.keys, self.heads.values, start, start + len(nodes), None)
        return Window(self.trunk[:, index], start, self.freqs_cis[index], heads)


class FastModel:
    """A model that reads tokens for a decoder.

    Args:
        model: its weights must stay as they are meanwhile: they may be copied (`worth_copying`).
        steps: forward passes to come, at most.

    Attributes:
        definition: the model itself.
        dtype: of states and cache; logits may be finer than the model's own.
        output: unembeds states `[..., D]`, giving logits `[..., V]`.
    """

    def __init__(self, model: Transformer, steps: int) -> None:
        self.definition, self.args = model, model.args
        copy = worth_copying(model, steps)
        if copy and is_small(model):  # a copy: `definition` stays as it is
            model = deepcopy(model).float()
        self._model, self.dtype = model, model.tok_embeddings.weight.dtype
        self._group = model.args.n_heads // model.args.kv_heads
        self._window = model.args.family.sliding_window
        self._blocks = [
            _Block(cast(TransformerBlock, block), model.args, copy) for block in model.layers
        ]
        heads = [cast(TransformerBlock, head) for head in model.extra_heads]
        self._heads = DraftHeads(heads, model.args, copy) if heads else None
        self.output = product([model.output], copy)

    def read(
        self,
        tokens: Tensor,
        start_pos: int | Tensor,
        cache: KVCache,
        placed: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Window]:
        """The first head's normalised states `[B, S, D]`, and what `guess` wants.

        Arguments and errors as for `Transformer.forward`. `placed` are rotations and mask of tokens
        that do not follow each other (`Tree.context`).
        """
        model, (B, S) = self._model, tokens.shape
        slots = cache.slots(B, start_pos, S, self.args.n_layers)
        freqs_cis, mask = placed or model.context(tokens, start_pos, cache)
        h: Tensor = model.embed(tokens)  # [B, S, D]
        bias = None if mask is None else self._bias(cast(Tensor, mask), h.dtype)
        trunk = h
        for block, slot in zip(self._blocks, slots, strict=False):
            trunk, h = h, block.read(h, freqs_cis, bias, slot)
        window = Window(trunk, start_pos, freqs_cis, cache.joint(slots[0]))
        if self._heads is not None:
            self._heads.remember(trunk, freqs_cis, window.heads)
        return self._final(h), window

    def guess(self, window: Window, places: Sequence[int], count: int) -> Tensor:
        """States `[B, count, D]` of heads 2 … count + 1, at one place of the window in each row."""
        assert self._heads is not None, "the model has one head"
        start, freqs_cis = window.start_pos, window.freqs_cis
        if isinstance(start, int) and min(places) == max(places):  # one row, or rows in step
            at = slice(places[0], places[0] + 1)
            h, turns = window.trunk[:, at], freqs_cis[at]
            end, bias = start + places[0] + 1, None
            if self._window is not None and end > self._window:
                slots = torch.arange(end, device=h.device)
                bias = self._bias(sees(slots[-1:, None], slots, self._window), h.dtype)
        else:
            device = window.trunk.device
            rows, place = torch.arange(len(places), device=device), torch.tensor(places).to(device)
            h = window.trunk[rows, place][:, None]  # [B, 1, D]
            turns = (freqs_cis[place] if freqs_cis.dim() == 2 else freqs_cis[rows, place])[:, None]
            end = window.heads.end
            slots = torch.arange(end, device=device)
            seen = sees((start + place)[:, None], slots, self._window)  # [B, T]
            bias = self._bias(seen[:, None, None], h.dtype)
        states = self._heads.guess(h, turns, bias, window.heads.seen(end), count)
        return self._final(states)

    def draft_logits(self, states: Tensor) -> Tensor:
        """Logits `[..., V]` of what `guess` returned."""
        logits: Tensor = self.output(states)
        return logits

    def _final(self, h: Tensor) -> Tensor:
        scale = 1.0 / self.args.family.logits_scaling
        return scaled(normalised(self._model.norm, h), scale)

    def _bias(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """0 where a query may look, else −∞, for the queries of one key head: `[…, G·S, T]`."""
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        bias.masked_fill_(mask.logical_not(), float("-inf"))
        return bias if self._group == 1 else torch.cat([bias] * self._group, -2)


class _Block:
    """One block's products, and the way through it."""

    def __init__(self, block: TransformerBlock, args: ModelArgs, copy: bool) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self._H, self._K, self._d = args.n_heads, args.kv_heads, args.head_dim
        self._attention_norm, self._ffn_norm = block.attention_norm, block.ffn_norm
        self._norms = _weights([attention.q_norm]), _weights([attention.k_norm])
        self._rotates, self._eps = attention.rotates, args.norm_eps
        self._scale, self._residual = attention.scale, block.residual
        self._wqkv = product([attention.wq, attention.wk, attention.wv], copy)
        self._wo = product([attention.wo], copy)
        self._w13 = product([feed_forward.w1, feed_forward.w3], copy)
        self._w2 = product([feed_forward.w2], copy)

    def read(self, x: Tensor, freqs_cis: Tensor, bias: Tensor | None, slot: LayerCache) -> Tensor:
        """Through the block, `[B, S, D]`; without a bias each query sees all keys, or, in a first
        read of several tokens, those before it."""
        B, S, _ = x.shape
        H, K, d = self._H, self._K, self._d
        qkv = self._wqkv(normalised(self._attention_norm, x)).view(B, S, H + 2 * K, d)
        q, k, v = torch.split_with_sizes(qkv, [H, K, K], 2)
        for part, weight in zip((q, k), self._norms, strict=True):
            if weight is not None:
                part.copy_(F.rms_norm(part, (d,), None, self._eps) * weight)
        if self._rotates:
            rotate_in_place(qkv[:, :, : H + K], freqs_cis)
        keys, values = slot.append(k.transpose(1, 2), v.transpose(1, 2))  # [B, K, T, d]
        if bias is None and S > 1:
            mixed = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                keys,
                values,
                is_causal=True,
                scale=self._scale,
                enable_gqa=H != K,
            )
            mixed = mixed.transpose(1, 2).flatten(2)  # [B, S, H·d]
        else:
            mixed = attend(q, keys, values, bias, self._scale)
        h = x + scaled(self._wo(mixed), self._residual)
        gate, up = self._w13(normalised(self._ffn_norm, h)).chunk(2, -1)
        return h + scaled(self._w2(F.silu(gate).mul_(up)), self._residual)


class DraftHeads:
    """Heads 2 … k side by side: what can be is done for all in one go, as a block of (k − 1)·H
    query and (k − 1)·K key heads. They keep keys and values of all tokens, and guess at few."""

    def __init__(self, heads: Sequence[TransformerBlock], args: ModelArgs, copy: bool) -> None:
        self._K, self._H, self._d, self._eps = (
            args.kv_heads,
            args.n_heads,
            args.head_dim,
            args.norm_eps,
        )
        self._wq = [product([head.attention.wq], copy) for head in heads]
        self._wkv = [product([head.attention.wk, head.attention.wv], copy) for head in heads]
        self._wo = [product([head.attention.wo], copy) for head in heads]
        self._w13 = [product([h.feed_forward.w1, h.feed_forward.w3], copy) for h in heads]
        self._w2 = [product([head.feed_forward.w2], copy) for head in heads]
        self._q_norms = _weights([head.attention.q_norm for head in heads])  # [k − 1, 1, d]
        self._k_norms = _weights([head.attention.k_norm for head in heads])
        self._rotates = heads[0].attention.rotates
        self._scale, self._residual = heads[0].attention.scale, heads[0].residual
        self._attention_norms = torch.stack([head.attention_norm.weight for head in heads])
        self._ffn_norms = torch.stack([head.ffn_norm.weight for head in heads])  # [k − 1, D]

    def remember(self, x: Tensor, freqs_cis: Tensor, slot: LayerCache) -> None:
        """Keep keys and values of `x` `[B, S, D]`."""
        B, S, _ = x.shape
        kv = _each(self._wkv, self._scaled(x[:, :, None], self._attention_norms))
        k, v = kv.view(B, S, -1, 2, self._K, self._d).unbind(3)  # [B, S, k − 1, K, d] both
        k = self._turned(k, self._k_norms, freqs_cis)
        slot.append(k.transpose(1, 2), v.flatten(2, 3).transpose(1, 2))

    def guess(
        self,
        x: Tensor,
        freqs_cis: Tensor,
        bias: Tensor | None,
        seen: tuple[Tensor, Tensor],
        count: int,
    ) -> Tensor:
        """Through the first `count` heads at tokens `x` `[B, 1, D]` they remember:
        `[B, count, D]`."""
        B = len(x)
        keys, values = (stored[:, : count * self._K] for stored in seen)
        normed = self._scaled(x[:, :, None], self._attention_norms[:count])  # [B, 1, count, D]
        q = _each(self._wq[:count], normed).view(B, 1, count, self._H, self._d)
        norms = None if self._q_norms is None else self._q_norms[:count]
        q = self._turned(q, norms, freqs_cis)
        mixed = attend(q, keys, values, bias, self._scale).view(B, count, -1)
        h = x + scaled(_each(self._wo[:count], mixed), self._residual)  # [B, count, D]
        normed = self._scaled(h, self._ffn_norms[:count])
        gate, up = _each(self._w13[:count], normed).chunk(2, -1)
        return h + scaled(_each(self._w2[:count], F.silu(gate).mul_(up)), self._residual)

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


def _weights(norms: Sequence[RMSNorm | None]) -> Tensor | None:
    """`[heads, 1, d]` of the norms of queries or keys; None for a family without them."""
    found: list[Tensor] = [norm.weight for norm in norms if norm is not None]
    return torch.stack(found)[:, None] if found else None


def _each(products: Sequence[Product], x: Tensor) -> Tensor:
    """Each head's product of its own part of `x` `[..., heads, D]`: `[..., heads, O]`."""
    return torch.stack([product(x[..., i, :]) for i, product in enumerate(products)], -2)


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


def normalised(norm: RMSNorm, x: Tensor) -> Tensor:
    """`norm(x)`: the same bits, in half the time and without a gradient."""
    if norm.weight.dtype != x.dtype:
        out: Tensor = norm(x)
        return out
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
