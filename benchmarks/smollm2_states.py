"""What the heads of `smollm2_heads.py` train on: states of a frozen trunk, and what comes after."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus, held_out
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.losses import shift_labels
from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.models.meta_mtp.transformer import Transformer

HELD_OUT = 0.05  # of the documents
WINDOW, WINDOWS = 512, 4  # a window's tokens, and how many are read at a time
PROMPTS = (16, 64, 32, 128, 64, 256)  # their lengths, by turns
ROWS, NEW = 96, 128  # prompts continued at a time, and the tokens that each gains
BATCH = 2048  # positions


class Stored(NamedTuple):
    """What the heads train on: `states` `[B, S, D]` of the trunk, `targets` `[B, S, n - 1]` of the
    extra heads, -100 where there is none. `own`: the text is the model's."""

    states: Tensor
    targets: Tensor
    own: bool


class Frozen:
    """The model as it came, in bfloat16; its trunk's states are kept as they pass by."""

    def __init__(self, model: Transformer, n: int, eos_id: int) -> None:
        self.model, self.n, self.eos_id = model, n, eos_id
        self._passed: list[Tensor] = []
        model.layers[-1].register_forward_pre_hook(lambda _, args: self._passed.append(args[0]))

    def read(self, windows: Sequence[Sequence[int]]) -> Stored:
        """Text as it is, `[B, S]`; the labels are what the first head would write next."""
        tokens = torch.tensor(windows)
        states = self.model.head_states(tokens)[0]  # [B, S, D]
        choice = torch.cat([self.model.output(row).argmax(-1)[None] for row in states])  # [B, S]
        return self._stored(F.pad(choice, (1, 0), value=IGNORE_INDEX)[:, :-1], own=False)

    def write(self, prompts: Sequence[Sequence[int]]) -> Stored:
        """Continue prompts of one length greedily by NEW tokens; those up to EOS are the labels."""
        tokens = torch.tensor(prompts)
        B, P = tokens.shape
        cache = KVCache(self.model.args, B, P + NEW, dtype=self.model.output.weight.dtype)
        labels, position = [torch.full_like(tokens, IGNORE_INDEX)], 0
        for _ in range(NEW):
            state = self.model.head_states(tokens, position, cache=cache)[0][:, -1]  # [B, D]
            position += tokens.shape[1]
            tokens = self.model.output(state).argmax(-1, keepdim=True)  # [B, 1]
            labels.append(tokens)
        written = torch.cat(labels, 1)[:, :-1]  # the last one was never read
        ends = (written == self.eos_id).long()
        after = ends.cumsum(1) - ends > 0
        return self._stored(written.masked_fill(after, IGNORE_INDEX), own=True)

    def _stored(self, labels: Tensor, own: bool) -> Stored:
        states = torch.cat(self._passed, 1)
        self._passed.clear()
        return Stored(states, shift_labels(labels, self.n)[:, :, 1:], own)


class Source:
    """Windows and openings, drawn by seed from one side of the corpus."""

    def __init__(self, tokenizer: Tokenizer, validation: bool, seed: int) -> None:
        self._tokenizer, self._random = tokenizer, random.Random(seed)
        self._documents = [
            text for text in Corpus(STDLIB).documents() if held_out(text, HELD_OUT) == validation
        ]

    def window(self) -> list[int]:
        """WINDOW tokens of a document, from the beginning of a line."""
        return self._piece(WINDOW, ("",))

    def opening(self, length: int) -> list[int]:
        """`length` tokens of a document, from the first line of a function or a class."""
        return self._piece(length, ("def ", "class ", "    def ", "import ", "from "))

    def _piece(self, length: int, starts: tuple[str, ...]) -> list[int]:
        while True:
            text = self._random.choice(self._documents)
            place = text.rfind("\n", 0, self._random.randrange(len(text))) + 1
            while place and not text.startswith(starts, place):
                place = text.find("\n", place) + 1  # 0, the first line, after the last
            ids = self._tokenizer.encode(text[place : place + 12 * length])[:length]
            if len(ids) == length:
                return ids


def gather(frozen: Frozen, source: Source, seconds: float, own_share: float) -> list[Stored]:
    """Read and write by turns until the time is over."""
    stored: list[Stored] = []
    spent, start, turn = {True: 1e-9, False: 1e-9}, time.monotonic(), 0
    while (begin := time.monotonic()) - start < seconds:
        own = spent[True] / sum(spent.values()) < own_share
        with torch.inference_mode():
            if own:
                length = PROMPTS[turn % len(PROMPTS)]
                turn += 1
                stored.append(frozen.write([source.opening(length) for _ in range(ROWS)]))
            else:
                stored.append(frozen.read([source.window() for _ in range(WINDOWS)]))
        spent[own] += time.monotonic() - begin
        if own:
            say("states", **{kind: places(stored, kind == "own") for kind in ("own", "text")})
    return stored


def places(stored: Sequence[Stored], own: bool) -> int:
    """Places with a target."""
    return sum(int((s.targets[..., 0] >= 0).sum()) for s in stored if s.own == own)


def batches(stored: Sequence[Stored], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """About BATCH positions at a time, each row once, then again in another order."""
    chance = random.Random(seed)
    while True:
        parts = []
        for states, targets, _ in stored:
            size = max(1, BATCH // states.shape[1])
            order = torch.tensor(chance.sample(range(len(states)), len(states)))
            parts += [(states, targets, rows) for rows in torch.split(order, size)]
        chance.shuffle(parts)
        for states, targets, rows in parts:
            yield states[rows], targets[rows]


def say(what: str, **figures: object) -> None:
    """One line of the log."""
    rounded = {
        k: [round(x, 3) for x in v] if isinstance(v, list) else v for k, v in figures.items()
    }
    print(
        f"{time.strftime('%H:%M:%S')} {what}", *(f"{k}={v}" for k, v in rounded.items()), flush=True
    )
