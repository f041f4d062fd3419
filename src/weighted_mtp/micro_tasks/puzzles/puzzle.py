"""What a puzzle is, and how one is drawn by its number, apart for training and for tests."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from random import Random
from typing import NamedTuple, Protocol

HELD_OUT = 8
"""One in so many of all possible puzzles is never trained on."""


class Puzzle(NamedTuple):
    """A sequence of symbols, each from 0 to 255.

    Attributes:
        prompt: what is given; no target.
        answer: what is to be found, each symbol a target.
        asked: by name, places in the answer that are measured together.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    asked: Mapping[str, tuple[int, ...]]


class PuzzleTask(Protocol):
    """A kind of puzzle; frozen, so that it can be sent to another process.

    Attributes:
        levels: of difficulty, by name; puzzles to train on are drawn from the first
            `trained_levels` of them alike.
    """

    @property
    def levels(self) -> tuple[str, ...]: ...

    @property
    def trained_levels(self) -> int: ...

    def make(self, rng: Random, level: str, held_out: bool) -> Puzzle:
        """Make one puzzle.

        Args:
            held_out: it is to test with.
        """
        ...


def draw_puzzle(task: PuzzleTask, seed: int, number: int, level: str | None = None) -> Puzzle:
    """The puzzle of a number: always the same one.

    Args:
        level: of a puzzle to test with; None draws one to train on. None of the former is ever one
            of the latter.
    """
    rng = Random(f"{seed}/{number}/{level}")
    held_out = level is not None
    while True:
        chosen = level or rng.choice(task.levels[: task.trained_levels])
        puzzle = task.make(rng, chosen, held_out)
        if is_held_out(puzzle) == held_out:
            return puzzle


def is_held_out(puzzle: Puzzle) -> bool:
    """Whether a puzzle is to test with; its symbols alone decide."""
    return zlib.crc32(bytes((*puzzle.prompt, *puzzle.answer))) % HELD_OUT == 0
