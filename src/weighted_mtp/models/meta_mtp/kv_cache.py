"""Keys and values of tokens already read, as an object handed to `Transformer.forward`.

A token at position p lives in slot p of its row. Rows may therefore have lengths of their own, and
a slot past a row's end (right padding, a rejected draft) is simply written again before any query
can see it: a query at position p sees slots 0 … p and nothing else.

Letters: B batch, S new tokens, T slots read, K key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from weighted_mtp.models.meta_mtp.args import ModelArgs


class LayerCache:
    """One block's slice of the cache for one forward pass.

    Args:
        keys, values: `[B, K, length, d]`.
        start: slot of the first new token, where it is one number.
        end: slots that the new tokens may see, T.
        index: rows `[B, 1]` and slots `[B, S]` of the new tokens, where rows start apart. (Written
            by `index_put_`: `scatter_` took 576 µs in bfloat16 for 16 rows of one token, this 4.)
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        start: int,
        end: int,
        index: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.keys, self.values = keys, values
        self.start, self.end, self.index = start, end, index

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write `k`, `v` `[B, K, S, d]`; return all that the queries may need, `[B, K, T, d]`."""
        if self.index is None:
            end = self.start + k.shape[2]
            self.keys[:, :, self.start : end] = k
            self.values[:, :, self.start : end] = v
        else:
            for stored, new in ((self.keys, k), (self.values, v)):
                stored.transpose(1, 2).index_put_(self.index, new.transpose(1, 2).to(stored.dtype))
        return self.seen(self.end)

    def seen(self, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of slots 0 … end − 1, as they are stored."""
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """Preallocated keys and values for every block, trunk and heads alike.

    Args:
        args: the model's shape.
        batch_size: rows B.
        length: slots in a row; at most the model's `max_positions`.
        device, dtype: of the stored tensors; give the model's own.
        keep_trunk: also store what the extra heads read, so that they may read it later.

    Attributes:
        keys, values: one `[B, K, length, d]` tensor for each block; the extra heads' are parts of
            one `[B, (n − 1)·K, length, d]`.
    """

    def __init__(
        self,
        args: ModelArgs,
        batch_size: int,
        length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        keep_trunk: bool = False,
    ) -> None:
        if not 1 <= length <= args.max_positions:
            raise ValueError(
                f"a cache of {length} slots does not fit a model of {args.max_positions} "
                f"positions (2 × max_seq_len {args.max_seq_len})"
            )
        shape = (batch_size, args.kv_heads, length, args.head_dim)
        self.batch_size, self.length = batch_size, length
        # Slots 0 … _read[0] − 1 of some row hold a token; a list, because `rows` share it.
        self._read = [0]
        self._blocks = args.n_layers
        self._heads_behind = False  # tokens were read that the extra heads never saw
        extra = args.n_future_tokens - 1
        joint = (batch_size, extra * args.kv_heads, length, args.head_dim)
        self._stored = [
            [torch.zeros(shape, device=device, dtype=dtype) for _ in range(self._blocks - extra)]
            + [torch.zeros(joint, device=device, dtype=dtype)]
            for _ in ("keys", "values")
        ]
        if keep_trunk:
            trunk = (batch_size, 1, length, args.dim)
            self._stored.append([torch.zeros(trunk, device=device, dtype=dtype)])
        # Of each row, how many slots the extra heads have read; they have read none beyond.
        self.heads_read = torch.zeros(batch_size, dtype=torch.long)
        self._kv_heads = args.kv_heads
        self._list()

    def _list(self) -> None:
        self.keys, self.values = (
            [*stored[:-1], *(stored[-1][:, k : k + self._kv_heads] for k in self._first_heads())]
            for stored in self._stored[:2]
        )

    def _first_heads(self) -> range:
        """In the tensor that the extra heads share, the first key head of each."""
        return range(0, self._stored[0][-1].shape[1], self._kv_heads)

    def slots(self, B: int, start_pos: int | Tensor, S: int, blocks: int) -> list[LayerCache]:
        """The slices for the first `blocks` blocks, when `[B, S]` tokens are read from `start_pos`.

        Raises:
            ValueError: another number of rows than the cache has, a start past what was read, no
                room for the tokens, or the extra heads are asked for after tokens that were read
                without them. (Rows of their own length are checked on the CPU only: elsewhere that
                would wait for the device.)
        """
        starts = B if isinstance(start_pos, int) else len(start_pos)
        if (B, starts) != (self.batch_size, self.batch_size):
            raise ValueError(
                f"the cache has {self.batch_size} rows, the call {B} rows and {starts} start_pos"
            )
        self._check_room(start_pos, S)
        if isinstance(start_pos, int) and start_pos == 0:
            self._heads_behind = False
        if blocks < self._blocks:
            self._heads_behind = True
        elif self._heads_behind:
            raise ValueError(
                "the extra heads never saw some cached tokens: read every token of a sequence "
                "with return_all_heads=True, or start again at start_pos=0"
            )
        start, end, index = 0, 0, None
        if isinstance(start_pos, Tensor):
            places = start_pos[:, None] + torch.arange(S, device=start_pos.device)  # [B, S]
            index = (torch.arange(B, device=start_pos.device)[:, None], places)
            end = _end(start_pos, S, self.length)
        else:
            start, end = start_pos, start_pos + S
        return [
            LayerCache(keys, values, start, end, index)
            for keys, values in zip(self.keys[:blocks], self.values[:blocks], strict=True)
        ]

    def _check_room(self, start_pos: int | Tensor, S: int) -> None:
        if isinstance(start_pos, Tensor):
            if start_pos.device.type != "cpu":
                self._read[0] = self.length
                return
            start_pos = int(start_pos.max())
        if start_pos + S > self.length:
            raise ValueError(
                f"the cache holds {self.length} tokens, and {start_pos + S} are asked for"
            )
        if start_pos > self._read[0]:
            raise ValueError(
                f"start_pos={start_pos}, but the cache has read {self._read[0]} tokens; read the "
                "prompt first"
            )
        self._read[0] = max(self._read[0], start_pos + S)

    def mask(self, start_pos: int | Tensor, S: int, window: int | None = None) -> Tensor | None:
        """Which slots each of S new tokens sees, `[S, T]` or `[B, 1, S, T]`; None where the
        attention kernel needs none (a first read is causal, one new token sees every slot).

        Args:
            window: of a model with a sliding one (`Family.sliding_window`).
        """
        device = self.keys[0].device
        if isinstance(start_pos, Tensor):
            queries = start_pos[:, None] + torch.arange(S, device=device)  # [B, S]
            slots = torch.arange(_end(start_pos, S, self.length), device=device)
            return sees(queries[:, None, :, None], slots, window)
        if (start_pos == 0 or S == 1) and (window is None or start_pos + S <= window):
            return None
        return within_window(None, start_pos, S, window, device)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (`[B]`, their places) only, in this order; memory is given back."""
        for stored in self._stored:
            for block, tensor in enumerate(stored):
                stored[block] = tensor[rows]
        self._list()
        self.batch_size = len(rows)
        self.heads_read = self.heads_read[rows.cpu()]

    @property
    def trunk(self) -> Tensor | None:
        """What the extra heads read, `[B, length, D]`, by slot; None unless `keep_trunk`."""
        return self._stored[2][0][:, 0] if len(self._stored) > 2 else None

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return sum(tensor.nbytes for stored in self._stored for tensor in stored)

    def commit(self) -> None:
        """Write zeros: a CPU's memory is handed out when it is first written, not when it is
        allocated."""
        for stored in self._stored:
            for tensor in stored:
                tensor.zero_()

    def rows(self, first: int, last: int) -> KVCache:
        """A cache of the rows `first` … `last` − 1, in the same memory."""
        part = copy(self)
        part._stored = [[tensor[first:last] for tensor in stored] for stored in self._stored]
        part._list()
        part.heads_read = self.heads_read[first:last]  # the same memory
        part.batch_size = last - first
        return part

    def copy_row(self, source: int, target: int, count: int) -> None:
        """Write the first `count` slots of one row over those of another."""
        for stored in self._stored:
            for tensor in stored:
                tensor[target, :, :count] = tensor[source, :, :count]
        self.heads_read[target] = self.heads_read[source]

    def move(self, places: Sequence[int], start: int) -> None:
        """Write slots `start + places[i]` over `start + i`, in every row and block: several
        continuations were read, and one of them stays.

        Args:
            places: rising, of tokens that were read at their right positions.
        """
        if list(places) == list(range(len(places))):
            return
        index = start + torch.tensor(places).to(self.keys[0].device)
        for stored in self._stored:
            for tensor in stored:
                tensor[:, :, start : start + len(places)] = tensor[:, :, index]

    def joint(self, slot: LayerCache) -> LayerCache:
        """The extra heads' slices as one of (n − 1)·K key heads, where `slot` is."""
        keys, values = (stored[-1] for stored in self._stored[:2])
        return LayerCache(keys, values, slot.start, slot.end, slot.index)


def _end(start_pos: Tensor, S: int, length: int) -> int:
    """Slots that some row may see, T. Off the CPU all: to know would be to wait for the device."""
    return int(start_pos.max()) + S if start_pos.device.type == "cpu" else length


def sees(queries: Tensor, slots: Tensor, window: int | None) -> Tensor:
    """Whether queries at these positions see these slots: those up to their own, and of a sliding
    window the last `window`."""
    seen = queries >= slots
    return seen if window is None else seen & (queries - slots < window)


def within_window(
    mask: Tensor | None, start: int, S: int, window: int | None, device: torch.device
) -> Tensor:
    """`[S, start + S]` what the tokens from `start` on see; of a mask `[…, S, S]` (`start` 0), what
    lies within the window."""
    places = torch.arange(start + S, device=device)
    queries = places[start:, None]
    if mask is None:
        return sees(queries, places, window)
    return mask if window is None else mask & (queries - places < window)
