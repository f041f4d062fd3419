"""Rows of any length read together through one preallocated cache.

Prompts are padded on the right and read in one pass. From then on every row continues at its own
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

from weighted_mtp.decoding.fast_model import FastModel, Window
from weighted_mtp.decoding.rows import Row
from weighted_mtp.decoding.tree import Tree
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
    narrow.draft_ids = model.draft_ids
    return narrow


class Batch:
    """The rows that are being continued, and the cache that holds all they read.

    Args:
        model: with the K heads in use.
        rows: with their prompts.
        max_new_tokens: room for each after its prompt.
        penalised: keep track of the tokens each row has seen.
        draft_ids: tokens that may be drafted, `[V']`, ascending; None for all V.
        drafts: most that one read holds for a row; None for one of each further head.

    Attributes:
        rows: one for each place in the cache; some may have ended.
        seen: `[B, V]` bool, tokens of the row so far; None unless `penalised`.
    """

    def __init__(
        self,
        model: Transformer,
        rows: Sequence[Row],
        max_new_tokens: int,
        penalised: bool,
        draft_ids: Tensor | None = None,
        drafts: int | None = None,
    ) -> None:
        weight = model.tok_embeddings.weight
        self.rows, self.device = list(rows), weight.device
        self.model = FastModel(model, max_new_tokens, draft_ids)
        self.read_prompts = False
        wanted = max(len(row.tokens) for row in rows) + max_new_tokens
        spare = model.args.n_future_tokens - 1 if drafts is None else drafts  # past the last token
        self._length = min(wanted + spare, model.max_positions)
        self._cache = self.model.cache(len(rows), self._length)
        self._window: Window | None = None  # of the last read
        self._places: list[list[int]] = []  # in it, of the tokens that `read` returned, [B][W]
        self.seen: Tensor | None = None
        if penalised:
            shape = len(rows), model.args.vocab_size
            self.seen = torch.zeros(shape, dtype=torch.bool, device=self.device)
            self.note([row.tokens for row in rows])

    @property
    def live(self) -> list[Row]:
        """Rows that are still decoded."""
        return [row for row in self.rows if row.finish is None]

    def read(self, drafts: Tensor | None = None) -> Tensor:
        """Read what no pass has read yet: the prompts, then the newest token of every row.

        Args:
            drafts: `[B, W - 1]` guesses at the tokens after it, read along.

        Returns:
            The first head's states `[B, W, D]`, `[:, 0]` at the newest token.
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
        states, self._window = self.model.read(window, begins, self._cache)
        if begins == starts:
            self._places = [list(range(W))] * B
            return states
        late = [s - b for s, b in zip(starts, begins, strict=True)]
        self._places = [[min(first + i, W - 1) for i in range(W)] for first in late]
        rows = torch.arange(B, device=self.device)[:, None]
        return states[rows, self.tensor(self._places)]

    def guess(self, at: Sequence[int], counts: Sequence[int]) -> Tensor:
        """States `[P, D]` of heads 2 … counts[b] + 1 at place `at` of what each row read, in the
        order of `Pairs.of(counts)`."""
        assert self._window is not None, "nothing was read"
        places = [row[index] for row, index in zip(self._places, at, strict=True)]
        return self.model.guess_some(self._window, places, counts)

    @property
    def room(self) -> int:
        """Slots for the next read of the only row."""
        return self._length - len(self.rows[0].tokens) + 1

    def read_tree(self, tree: Tree) -> Tensor:
        """`read` for the only row, whose newest token is the tree's root: states `[1, S, D]` at
        every node. `keep_path` must follow."""
        if not self.read_prompts or len(tree) == 1:
            return self.read()
        start = len(self.rows[0].tokens) - 1
        placed = tree.context(self.model.definition, start, self.device)
        nodes = self.tensor([tree.tokens])
        states, self._window = self.model.read(nodes, start, self._cache, placed)
        self._places = [list(range(len(tree)))]
        return states

    def keep_path(self, nodes: Sequence[int]) -> None:
        """Of the last tree keep these nodes, a path from its root; `guess` counts along it."""
        assert self._window is not None, "nothing was read"
        start = self._window.start_pos
        if len(self._places[0]) > 1 and isinstance(start, int):
            self._cache.move(nodes, start)
            self._window = self._window.of_path(nodes, start)
            self._places = [list(range(len(nodes)))]

    def _read_prompts(self) -> Tensor:
        lengths = [len(row.tokens) for row in self.rows]
        longest = max(lengths)
        tokens = self.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in self.rows])
        states, self._window = self.model.read(tokens, 0, self._cache)  # [B, S, D]
        self._places = [[length - 1] for length in lengths]
        rows = torch.arange(len(lengths), device=self.device)[:, None]
        return states[rows, self.tensor(self._places)]

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
