"""Rows of any length read together through one preallocated cache.

Prompts are padded on the right and read in one pass. From then on every row goes on at its own
position; what padding and wrong drafts left in the cache is overwritten before any query can see it
(`kv_cache`). When a quarter of the rows have ended, the others move together.

Letters: B batch, S longest prompt, W tokens read at once, K heads in use, D model width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from weighted_mtp.decoding.rows import Row
from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.models.meta_mtp.transformer import Transformer

_CROWDED = 0.75  # share of live rows below which the ended ones are dropped


def first_heads(model: Transformer, k: int) -> Transformer:
    """The same model with its first `k` heads only; weights are shared, not copied."""
    args = model.args
    dropped = args.n_future_tokens - k
    if dropped == 0:
        return model
    with torch.device("meta"):
        narrow = Transformer(replace(args, n_layers=args.n_layers - dropped, n_future_tokens=k))
    narrow.tok_embeddings, narrow.layers = model.tok_embeddings, model.layers
    narrow.extra_heads = nn.ModuleList(list(model.extra_heads)[: k - 1])
    narrow.norm, narrow.output, narrow.freqs_cis = model.norm, model.output, model.freqs_cis
    return narrow


class Batch:
    """The rows that are being continued, and the cache that holds all they read.

    Args:
        model: with the K heads in use.
        rows: with their prompts.
        max_new_tokens: room for each after its prompt.
        penalised: keep track of the tokens each row has seen.

    Attributes:
        rows: one for each place in the cache; some may have ended.
        seen: `[B, V]` bool, tokens of the row so far; None unless `penalised`.
    """

    def __init__(
        self, model: Transformer, rows: Sequence[Row], max_new_tokens: int, penalised: bool
    ) -> None:
        weight = model.tok_embeddings.weight
        self.model, self.rows, self.device = model, list(rows), weight.device
        self.read_prompts = False
        wanted = max(len(row.tokens) for row in rows) + max_new_tokens
        spare = model.args.n_future_tokens - 1  # drafts past the last token
        self._length = min(wanted + spare, model.max_positions)
        self._cache = KVCache(model.args, len(rows), self._length, self.device, weight.dtype)
        self.seen: Tensor | None = None
        if penalised:
            shape = len(rows), model.args.vocab_size
            self.seen = torch.zeros(shape, dtype=torch.bool, device=self.device)
            self.note([row.tokens for row in rows])

    @property
    def live(self) -> list[Row]:
        """Rows that go on."""
        return [row for row in self.rows if row.finish is None]

    def read(self, drafts: Tensor | None = None) -> list[Tensor]:
        """Read what no pass has read yet: the prompts, then the newest token of every row.

        Args:
            drafts: `[B, W - 1]` guesses at the tokens after it, read along.

        Returns:
            The K heads' states `[B, W, D]`, `[:, 0]` at the newest token.
        """
        if not self.read_prompts:
            self.read_prompts = True
            return self._read_prompts()
        newest = self.tensor([[row.tokens[-1]] for row in self.rows])  # [B, 1]
        window = newest if drafts is None else torch.cat([newest, drafts], 1)  # [B, W]
        B, W = window.shape
        starts = [0 if row.finish else len(row.tokens) - 1 for row in self.rows]
        begins = [min(start, self._length - W) for start in starts]
        if begins != starts:
            window = self._earlier(window, begins)
        start_pos: int | Tensor = begins[0]
        if any(begin != start_pos for begin in begins):
            start_pos = self.tensor(begins)
        states = self.model.head_states(window, start_pos, True, cache=self._cache)
        if begins == starts:
            return states
        late = [[s - b + i for i in range(W)] for s, b in zip(starts, begins, strict=True)]
        places = self.tensor(late).clamp(max=W - 1)
        rows = torch.arange(B, device=self.device)[:, None]
        return [state[rows, places] for state in states]

    def _read_prompts(self) -> list[Tensor]:
        lengths = [len(row.tokens) for row in self.rows]
        longest = max(lengths)
        tokens = self.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in self.rows])
        states = self.model.head_states(tokens, 0, True, cache=self._cache)  # [B, S, D] each
        rows, last = torch.arange(len(lengths), device=self.device), self.tensor(lengths) - 1
        return [state[rows, last][:, None] for state in states]

    def _earlier(self, window: Tensor, begins: Sequence[int]) -> Tensor:
        """Windows that would reach past the cache, beginning with tokens read before instead.

        Only with rows close to the model's last position whose neighbours draft further than they:
        what falls off a window's end are guesses that its row has no room for.
        """
        W = window.shape[1]
        guesses = [row[1:] for row in window.tolist()]
        texts = [row.tokens + guess for row, guess in zip(self.rows, guesses, strict=True)]
        cut = [text[begin : begin + W] for text, begin in zip(texts, begins, strict=True)]
        return self.tensor(cut)

    def note(self, news: Sequence[Sequence[int]]) -> None:
        """Mark the new tokens of each row as seen."""
        if self.seen is None:
            return
        width = max(1, *map(len, news))
        filled = [
            [*new, *[row.tokens[-1]] * (width - len(new))]
            for new, row in zip(news, self.rows, strict=True)
        ]
        self.seen.scatter_(1, self.tensor(filled), True)

    def shrink(self) -> list[int] | None:
        """Drop the ended rows if they are many: the places that stay, None if all do."""
        places = [place for place, row in enumerate(self.rows) if row.finish is None]
        if len(places) > _CROWDED * len(self.rows):
            return None
        index = self.tensor(places)
        self.rows = [self.rows[place] for place in places]
        self._cache.keep(index)
        if self.seen is not None:
            self.seen = self.seen[index]
        return places

    def tensor(self, numbers: Sequence[object]) -> Tensor:
        """Whole numbers, where the model is."""
        return torch.tensor(numbers, dtype=torch.long).to(self.device, non_blocking=True)
