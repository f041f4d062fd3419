"""Chance that depends on nothing but its own address.

A uniform number is a hash of (seed, row seed, position, use): no generator has a state. So a row
draws the same numbers whatever its neighbours are and however the batch is cut, and a number that
was drawn for nothing (a draft that nobody looked at) may be drawn again.

Letters: B batch, J positions in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Use(IntEnum):
    """What a number is drawn for; each position has one of each."""

    SAMPLE = 0
    DRAFT = 1
    ACCEPT = 2


class Dice:
    """Numbers for the rows of a batch.

    Args:
        seed: of the whole call.
        row_seeds: one for each row; any integers.
        device: where the numbers are wanted.
    """

    def __init__(self, seed: int, row_seeds: Sequence[int], device: torch.device) -> None:
        rows = np.array([number & 0xFFFF_FFFF_FFFF_FFFF for number in row_seeds], dtype=np.uint64)
        start = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)
        self._keys = _hash(_hash(np.zeros(1, np.uint64), start), rows)  # [B]
        self._device = device

    @classmethod
    def joined(cls, parts: Sequence[Dice]) -> Dice:
        """Chance for the rows of all of `parts` (one at least), in their order."""
        whole = copy(parts[0])
        whole._keys = np.concatenate([part._keys for part in parts])
        return whole

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch only."""
        self._keys = self._keys[np.array(rows, dtype=np.int64)]

    def uniforms(self, first: Sequence[int], count: int, use: Use) -> Tensor:
        """`[B, count]` float64 in [0, 1) for positions `first[b] + 0 … count − 1` of each row."""
        steps = np.arange(count, dtype=np.uint64)
        positions = np.array(first, dtype=np.uint64)[:, None] + steps  # [B, J]
        words = _hash(_hash(self._keys[:, None], positions), np.array([use], dtype=np.uint64))
        numbers = (words >> np.uint64(12)).astype(np.float64) * 2.0**-52
        return torch.from_numpy(numbers).to(self._device, non_blocking=True)

    def pick(self, probs: Tensor, uniforms: Tensor) -> Tensor:
        """One token `[...]` from each distribution `[..., V]` (its sum need not be 1)."""
        cumulative = probs.cumsum(-1, dtype=torch.float64)
        aim = (uniforms * cumulative[..., -1])[..., None]
        return torch.searchsorted(cumulative, aim, right=True)[..., 0]

    def accepts(self, chances: Tensor, uniforms: Tensor) -> Tensor:
        """True with these probabilities."""
        return uniforms < chances


def _hash(state: Words, word: Words) -> Words:
    """A new state for every word; splitmix64's finaliser (Steele et al. 2014)."""
    x: Words = (state ^ word) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
