"""The model as decoding reads it: few tokens, many times over.

The arithmetic is `Transformer`'s, up to rounding. What differs is measured to pay on a CPU:
projections of one input are one product in a better layout (`products`); queries and keys are
turned together, in place; the queries that share a key head are attended as more queries of it
(bfloat16, 9 heads on 3, one new token after 544: 84 µs; with `enable_gqa` 546 µs); the mask is made
once a step; and heads 2 … k guess only where a guess is wanted, at the last token that stays, for
the rows that will read it. Until then they need not read the tokens before it either: the trunk's
states wait in the cache (`KVCache.trunk`), so a step without drafts costs what plain decoding does.

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

from weighted_mtp.decoding.draft_heads import DraftHeads, Pairs
from weighted_mtp.decoding.draft_output import DraftOutput
from weighted_mtp.decoding.layers import Norm, attend, norm_weights
from weighted_mtp.decoding.products import (
    Layout,
    choose_layout,
    is_quantised,
    is_quicker_wide,
    product,
    widened,
)
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.kv_cache import KVCache, LayerCache, sees
from weighted_mtp.models.meta_mtp.rotary import rotate_in_place
from weighted_mtp.models.meta_mtp.transformer import (
    Transformer,
    TransformerBlock,
    scaled,
)


@dataclass(frozen=True)
class Window:
    """What one `read` leaves for the guesses that follow it."""

    trunk: Tensor  # [B, S, D]
    start_pos: int | Tensor  # of the first of the S tokens
    starts: list[int]  # the same, of each row
    freqs_cis: Tensor  # [S, d/2] or [B, S, d/2]
    heads: LayerCache  # of heads 2 … k together
    cache: KVCache

    def of_path(self, nodes: Sequence[int], start: int) -> Window:
        """Of a tree's tokens `nodes` only, moved to the slots from `start` on."""
        index = torch.tensor(nodes).to(self.trunk.device)
        heads = LayerCache(self.heads.keys, self.heads.values, start, start + len(nodes), None)
        freqs_cis = self.freqs_cis[index]
        return Window(self.trunk[:, index], start, [start], freqs_cis, heads, self.cache)


class FastModel:
    """A model that reads tokens for a decoder.

    Args:
        model: its weights must stay as they are meanwhile: they may be copied (`worth_copying`).
        steps: forward passes to come, at most.
        draft_ids: tokens that heads 2 … n may draft, `[V']`, ascending; None for all V.
        width: tokens that most passes read, of all rows together.

    Attributes:
        definition: the model itself.
        layout: how its weights are read.
        dtype: of states and cache; logits may be finer than the model's own.
        output: unembeds states `[..., D]`, giving logits `[..., V]`.
        drafts: unembeds states of heads 2 … n, over the draft vocabulary.
    """

    def __init__(
        self, model: Transformer, steps: int, draft_ids: Tensor | None = None, width: int = 1
    ) -> None:
        self.definition, self.args = model, model.args
        self.layout = layout = choose_layout(model, steps, width)
        wide = layout == "halves" or (layout == "blocks" and is_quantised(model))
        if wide:  # a copy, here and below: `definition` stays as it is
            model = widened(model)
        elif layout == "blocks" and is_quicker_wide(model):
            model = deepcopy(model).float()
        self._model = model
        self.dtype = torch.float32 if wide else model.tok_embeddings.weight.dtype
        self._group = model.args.n_heads // model.args.kv_heads
        self._window = model.args.family.sliding_window
        self._blocks = [
            _Block(cast(TransformerBlock, block), model.args, layout) for block in model.layers
        ]
        heads = [cast(TransformerBlock, head) for head in model.extra_heads]
        self._heads = DraftHeads(heads, model.args, layout) if heads else None
        self._norm = Norm(model.norm)
        self.output = product([model.output], layout)
        self.drafts = DraftOutput(model.output, self.output, draft_ids if heads else None, layout)

    def cache(self, rows: int, length: int) -> KVCache:
        """A cache of this many rows and slots, with which the extra heads read only what they are
        going to guess from."""
        device = self._model.tok_embeddings.weight.device
        return KVCache(self.args, rows, length, device, self.dtype, self._heads is not None)

    def read(
        self,
        tokens: Tensor,
        start_pos: int | Tensor | Sequence[int],
        cache: KVCache,
        placed: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Window]:
        """The first head's normalised states `[B, S, D]`, and what `guess` wants.

        Arguments and errors as for `Transformer.forward`; `start_pos` may be a list as well, one
        for each row. `placed` are rotations and mask of tokens that do not follow each other
        (`Tree.context`).
        """
        model, (B, S) = self._model, tokens.shape
        if isinstance(start_pos, int):
            starts = [start_pos] * B
        else:
            starts = start_pos.tolist() if isinstance(start_pos, Tensor) else list(start_pos)
        if not isinstance(start_pos, Tensor):
            start_pos = starts[0]
            if any(start != start_pos for start in starts):
                start_pos = torch.tensor(starts).to(tokens.device, non_blocking=True)
        slots = cache.slots(B, start_pos, S, self.args.n_layers)
        freqs_cis, mask = placed or model.context(tokens, start_pos, cache)
        h: Tensor = model.embed(tokens)  # [B, S, D]
        bias = None if mask is None else self._bias(cast(Tensor, mask), h.dtype)
        trunk = h
        for block, slot in zip(self._blocks, slots, strict=False):
            trunk, h = h, block.read(h, freqs_cis, bias, slot)
        window = Window(trunk, start_pos, starts, freqs_cis, cache.joint(slots[0]), cache)
        if self._heads is not None:
            self._keep(window)
        return self._final(h), window

    def guess(self, window: Window, places: Sequence[int], count: int) -> Tensor:
        """States `[B, count, D]` of heads 2 … count + 1, at one place of the window in each row."""
        states = self.guess_some(window, places, [count] * len(places))
        return states.view(count, len(places), -1).transpose(0, 1)

    def guess_some(self, window: Window, places: Sequence[int], counts: Sequence[int]) -> Tensor:
        """States of heads 2 … counts[b] + 1, at one place of the window in each row.

        Args:
            counts: heads that guess for each row; 0 for none.

        Returns:
            `[P, D]` in the order of `Pairs.of(counts)`. The arithmetic is of these pairs only, but
            for attention, which is of the rows from the first to the last that have a guess.
        """
        assert self._heads is not None, "the model has one head"
        rows = [row for row, count in enumerate(counts) if count]
        self._catch_up(window, places, rows)
        first, last = rows[0], rows[-1] + 1
        places, starts = places[first:last], window.starts[first:last]
        trunk, freqs_cis = window.trunk[first:last], window.freqs_cis
        device = trunk.device
        if isinstance(window.start_pos, int) and min(places) == max(places):
            x, turns = trunk[:, places[0]], freqs_cis[places[0] : places[0] + 1]
            end, bias = starts[0] + places[0] + 1, None
            if self._window is not None and end > self._window:
                slots = torch.arange(end, device=device)
                bias = self._bias(sees(slots[-1:, None], slots, self._window), x.dtype)
        else:
            at, place = torch.arange(last - first, device=device), torch.tensor(places).to(device)
            x = trunk[at, place]
            own = freqs_cis if freqs_cis.dim() == 2 else freqs_cis[first:last]
            turns = (own[place] if own.dim() == 2 else own[at, place])[:, None]
            queries = [start + place for start, place in zip(starts, places, strict=True)]
            end = max(queries) + 1
            slots = torch.arange(end, device=device)
            seen = sees(torch.tensor(queries).to(device)[:, None], slots, self._window)  # [B, T]
            bias = self._bias(seen[:, None, None], x.dtype)
        keys, values = window.heads.seen(end)
        stored, pairs = (keys[first:last], values[first:last]), Pairs.of(counts[first:last], device)
        return self._final(self._heads.guess(x, turns, bias, stored, pairs))

    def _keep(self, window: Window) -> None:
        """Let the heads read a window, or keep it for when they guess."""
        assert self._heads is not None
        cache, trunk = window.cache, window.cache.trunk
        if trunk is None or not any(window.starts):  # a prompt: a hundredth or two of its pass
            self._heads.remember(window.trunk, window.freqs_cis, window.heads)
            cache.heads_read.fill_(window.trunk.shape[1])
            return
        slots = window.heads
        if slots.index is None:
            trunk[:, slots.start : slots.start + window.trunk.shape[1]] = window.trunk
        else:
            trunk.index_put_(slots.index, window.trunk.to(trunk.dtype))
        torch.minimum(cache.heads_read, torch.tensor(window.starts), out=cache.heads_read)

    def _catch_up(self, window: Window, places: Sequence[int], rows: Sequence[int]) -> None:
        """Let the heads read, of these rows, all up to the places that they guess at."""
        assert self._heads is not None
        cache = window.cache
        if cache.trunk is None:
            return
        read = cache.heads_read.tolist()
        ends = [window.starts[row] + places[row] + 1 for row in rows]
        if all(read[row] >= end for row, end in zip(rows, ends, strict=True)):
            return
        if len(rows) == len(places) and read == window.starts:  # they lack this window alone
            self._heads.remember(window.trunk, window.freqs_cis, window.heads)
            cache.heads_read.copy_(torch.tensor(ends))
            return
        begins = [min(read[row], end - 1) for row, end in zip(rows, ends, strict=True)]
        width = max(end - begin for begin, end in zip(begins, ends, strict=True))
        device = window.trunk.device
        at = torch.tensor(list(rows)).to(device)[:, None]  # [R, 1]
        # Behind the end of a row: unknown, and overwritten before any query can see it.
        slots = torch.tensor(begins)[:, None] + torch.arange(width)
        slots = slots.clamp(max=cache.length - 1).to(device)
        joint = window.heads
        index = LayerCache(joint.keys, joint.values, 0, cache.length, (at, slots))
        self._heads.remember(cache.trunk[at, slots], self._model.freqs_cis[slots], index)
        cache.heads_read[torch.tensor(list(rows))] = torch.tensor(ends)

    def _final(self, h: Tensor) -> Tensor:
        scale = 1.0 / self.args.family.logits_scaling
        return scaled(self._norm(h), scale)

    def _bias(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """0 where a query may look, else −∞, for the queries of one key head: `[…, G·S, T]`."""
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        bias.masked_fill_(mask.logical_not(), float("-inf"))
        return bias if self._group == 1 else torch.cat([bias] * self._group, -2)


class _Block:
    """One block's products, and the way through it."""

    def __init__(self, block: TransformerBlock, args: ModelArgs, layout: Layout) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self._H, self._K, self._d = args.n_heads, args.kv_heads, args.head_dim
        self._attention_norm, self._ffn_norm = Norm(block.attention_norm), Norm(block.ffn_norm)
        self._norms = norm_weights([attention.q_norm]), norm_weights([attention.k_norm])
        self._rotates, self._eps = attention.rotates, args.norm_eps
        self._scale, self._residual = attention.scale, block.residual
        self._wqkv = product([attention.wq, attention.wk, attention.wv], layout)
        self._wo = product([attention.wo], layout)
        self._w13 = product([feed_forward.w1, feed_forward.w3], layout)
        self._w2 = product([feed_forward.w2], layout)

    def read(self, x: Tensor, freqs_cis: Tensor, bias: Tensor | None, slot: LayerCache) -> Tensor:
        """Through the block, `[B, S, D]`; without a bias each query sees all keys, or, in a first
        read of several tokens, those before it."""
        B, S, _ = x.shape
        H, K, d = self._H, self._K, self._d
        qkv = self._wqkv(self._attention_norm(x)).view(B, S, H + 2 * K, d)
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
        gate, up = self._w13(self._ffn_norm(h)).chunk(2, -1)
        return h + scaled(self._w2(F.silu(gate).mul_(up)), self._residual)
