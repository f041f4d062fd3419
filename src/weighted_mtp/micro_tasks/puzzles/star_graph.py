"""Paths on star graphs (Bachmann & Nagarajan 2024, arXiv 2403.06963).

G(d, l): d paths of l nodes that share their first. The prompt lists all edges, outwards and in
random order, then start and goal; the answer is the path between them. Only its second node is a
choice among d, and to make it one has to walk back from the goal. Each later node follows from the
one before, so that a model learns them without ever looking for the goal.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from weighted_mtp.micro_tasks.puzzles.puzzle import Puzzle

EDGE, ASK, ANSWER = 253, 254, 255
"""Between edges, before start and goal, before the path; nodes are the numbers from 0."""


@dataclass(frozen=True)
class StarGraph:
    """G(degree, length), its nodes named by different numbers below `names`."""

    degree: int = 2
    length: int = 5
    names: int = 30
    levels: tuple[str, ...] = ("graph",)
    trained_levels: int = 1

    def make(self, rng: Random, level: str, held_out: bool) -> Puzzle:
        nodes = rng.sample(range(self.names), self.degree * (self.length - 1) + 1)
        start, others = nodes[0], nodes[1:]
        arms = [[start, *others[i :: self.degree]] for i in range(self.degree)]
        edges = [pair for arm in arms for pair in pairwise(arm)]
        rng.shuffle(edges)
        path = rng.choice(arms)
        prompt = [symbol for edge in edges for symbol in (*edge, EDGE)]
        places = tuple(range(1, self.length))
        return Puzzle(
            (*prompt, ASK, start, path[-1], ANSWER),
            tuple(path),
            {"path": places, "first step": places[:1], "later steps": places[1:]},
        )
