"""Draws of test inputs, shared by the families."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {"<": operator.lt, ">": operator.gt}
COMPARE_WORDS = {"<": "less than", ">": "greater than"}
SIGN: Mapping[str, Callable[[Any, Any], Any]] = {"+": operator.add, "-": operator.sub}
SIGN_WORDS = {"+": "plus", "-": "minus"}


def single(values: Sequence[Any]) -> list[tuple[Any]]:
    """Argument tuples of a one-argument function."""
    return [(value,) for value in values]


def numbers(rng: Random, count: int, low: int, high: int) -> list[int]:
    """Distinct integers from `low` to `high`."""
    return rng.sample(range(low, high + 1), count)


def near(rng: Random, value: int, count: int) -> list[int]:
    """`value` and its neighbours, and `count` numbers about it, in random order."""
    values = [value - 1, value, value + 1]
    values += [max(0, value + rng.randint(-20, 30)) for _ in range(count)]
    rng.shuffle(values)
    return values


def text(rng: Random, length: int, alphabet: str = LETTERS) -> str:
    """Random characters."""
    return "".join(rng.choice(alphabet) for _ in range(length))


def telling(pool: Sequence[Any], answer: Callable[[Any], Any], count: int) -> list[Any]:
    """Up to `count` inputs from a pool, early ones first, whose answers differ where they can."""
    by_answer: dict[str, list[Any]] = {}
    for value in pool:
        by_answer.setdefault(repr(answer(value)), []).append(value)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_answer.values()))
    return list(itertools.islice((value for value in turns if value is not None), count))
