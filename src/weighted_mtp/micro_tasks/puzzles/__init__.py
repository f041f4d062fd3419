"""Puzzles in symbols: sequences whose answer a model trained from scratch has to find, each made
from its number alone. They are the small tasks of papers on multi-token prediction.

`puzzle.py` says what a puzzle is and draws them, `star_graph.py`, `polynomials.py` and `stories.py`
make them.
"""

from weighted_mtp.micro_tasks.puzzles.polynomials import Polynomials
from weighted_mtp.micro_tasks.puzzles.puzzle import Puzzle, PuzzleTask, draw_puzzle, is_held_out
from weighted_mtp.micro_tasks.puzzles.star_graph import StarGraph
from weighted_mtp.micro_tasks.puzzles.stories import Stories

__all__ = [
    "Polynomials",
    "Puzzle",
    "PuzzleTask",
    "StarGraph",
    "Stories",
    "draw_puzzle",
    "is_held_out",
]
