"""Puzzles: answers by other means, the same number the same puzzle, no test puzzle trained on."""

from itertools import pairwise
from random import Random

import pytest

from weighted_mtp.micro_tasks.puzzles import (
    Polynomials,
    StarGraph,
    Stories,
    draw_puzzle,
    is_held_out,
)
from weighted_mtp.micro_tasks.puzzles import polynomials as ring
from weighted_mtp.micro_tasks.puzzles.star_graph import ANSWER, ASK, EDGE
from weighted_mtp.micro_tasks.puzzles.stories import KNOWN, SYLLABLES

TASKS = [StarGraph(), Polynomials(), Stories()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_number_is_a_puzzle_and_tests_are_apart(task):
    for level in (None, *task.levels):
        puzzles = [draw_puzzle(task, 3, i, level) for i in range(20)]
        assert puzzles == [draw_puzzle(task, 3, i, level) for i in range(20)]
        assert len({(p.prompt, p.answer) for p in puzzles}) == 20
        assert all(is_held_out(p) == (level is not None) for p in puzzles)
        for puzzle in puzzles:
            assert all(0 <= symbol < 256 for symbol in (*puzzle.prompt, *puzzle.answer))
            for places in puzzle.asked.values():
                assert all(0 <= place < len(puzzle.answer) for place in places)
    assert draw_puzzle(task, 3, 0) != draw_puzzle(task, 4, 0)


def test_the_path_follows_edges_to_the_goal_and_both_first_steps_are_open():
    task, choices = StarGraph(3, 4, 20), set()
    for i in range(30):
        puzzle = draw_puzzle(task, 0, i)
        *edges, ask, start, goal, answer = puzzle.prompt
        assert (ask, answer) == (ASK, ANSWER)
        assert edges[2::3] == [EDGE] * 9
        pairs = list(zip(edges[::3], edges[1::3], strict=True))
        path = puzzle.answer
        assert (path[0], path[-1], len(path)) == (start, goal, 4)
        assert all(pair in pairs for pair in pairwise(path))
        firsts = [b for a, b in pairs if a == start]
        assert len(set(firsts)) == 3
        choices.add(firsts.index(path[1]))
        assert len({node for pair in pairs for node in pair}) == 10
    assert choices == {0, 1, 2}


def evaluated(words: list[int]) -> tuple[int, ...]:
    """The value of an expression, all arithmetic with whole numbers and reduced at the end only
    where the ring needs it."""
    word = words.pop(0)
    if word < ring.MODULUS:
        return (word, *(words.pop(0) for _ in range(ring.DEGREE - 1)))
    a = evaluated(words)
    if word == ring.NEGATE:
        return tuple(-x % 7 for x in a)
    b = evaluated(words)
    if word == ring.ADD:
        return tuple((x + y) % 7 for x, y in zip(a, b, strict=True))
    powers = [[1] + [0] * 40]  # b⁰, b¹, …
    for _ in range(4):
        powers.append(
            [sum(powers[-1][i] * b[k - i] for i in range(k + 1) if k - i < 5) for k in range(41)]
        )
    if word == ring.COMPOSE:
        return tuple(sum(a[n] * powers[n][k] for n in range(5)) % 7 for k in range(5))
    return tuple(sum(a[i] * b[k - i] for i in range(k + 1)) % 7 for k in range(5))


def test_values_of_expressions():
    for m in range(1, 9):
        for seed in range(10):
            words, value = ring.expression(Random(f"{m}/{seed}"), m)
            assert sum(word >= ring.NEGATE for word in words) == m
            rest = list(words)
            assert evaluated(rest) == value
            assert not rest
    one = (0, 1, 0, 0, 0)
    assert ring.composed((1, 2, 3, 0, 0), one) == (1, 2, 3, 0, 0)
    assert ring.multiplied(one, (1, 2, 3, 4, 5)) == (0, 1, 2, 3, 4)


def test_training_has_few_operations():
    counts = set()
    for i in range(60):
        puzzle = draw_puzzle(Polynomials(), 0, i)
        counts.add(sum(ring.NEGATE <= word < ring.EQUALS for word in puzzle.prompt))
    assert counts == {1, 2, 3, 4, 5}


def test_names_to_test_with_are_made_up_and_asked_where_they_come_again():
    known = 0
    for level in (None, "story"):
        for i in range(40):
            puzzle = draw_puzzle(Stories(), 0, i, level)
            story, seen = puzzle.answer, {}
            asked = {**dict.fromkeys(puzzle.asked["new"], "new")}
            asked |= dict.fromkeys(puzzle.asked["again"], "again")
            for place in sorted(asked):
                first, second = story[place - 1 : place + 1]
                assert max(first, second) < SYLLABLES
                assert asked[place] == ("again" if first in seen else "new")
                assert seen.setdefault(first, second) == second
                known += level is None and (first, second) in KNOWN
                assert level is None or (first, second) not in KNOWN
            syllables = sum(symbol < SYLLABLES for symbol in story)
            assert syllables == 2 * len(asked)
    assert known > 100
