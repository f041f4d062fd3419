"""Families whose constants are many: the program has to repeat what the instruction lists.

Copying is what a young model learns last; here most of the answer is copied.
"""

from __future__ import annotations

from random import Random

from weighted_mtp.micro_tasks.family import MARKS, Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import single

COUNT = 1200


def _number_lists(name: str, low: int = 5, high: int = 8) -> tuple[tuple[int, ...], ...]:
    """`COUNT` different tuples of different numbers, the same on every machine."""
    rng = Random(f"literals/{name}")
    lists = (tuple(rng.sample(range(100), rng.randint(low, high))) for _ in range(2 * COUNT))
    return tuple(dict.fromkeys(lists))[:COUNT]


def _word_lists(name: str) -> tuple[tuple[str, ...], ...]:
    rng = Random(f"literals/{name}")
    lists = (tuple(rng.sample(MARKS, rng.randint(3, 5))) for _ in range(2 * COUNT))
    return tuple(dict.fromkeys(lists))[:COUNT]


def _places(rng: Random, p: Params) -> list[Arguments]:
    """Every place of the list `a`."""
    return single(list(range(len(p["a"]))))


def _members(rng: Random, p: Params) -> list[Arguments]:
    """All members of `a`, and two others."""
    others = [x for x in range(100) if x not in p["a"]]
    return single([*p["a"], *rng.sample(others, 2)])


def _words(rng: Random, p: Params) -> list[Arguments]:
    others = [word for word in MARKS if word not in p["a"]]
    return single([*p["a"], *rng.sample(others, 2)])


def _counts(rng: Random, p: Params) -> list[Arguments]:
    return single([len(p["a"]), 1, 2, 0])


FAMILIES = (
    Family(
        name="item_of",
        difficulty=1,
        entry_points=("item", "entry", "pick"),
        arguments="i",
        space={"a": _number_lists("item_of")},
        wordings=(
            "Write a function $f that returns item i of $a, from 0.",
            "Given an index i, $f looks up entry i of $a.",
            "I need $f to hold $a and return the one at i.",
            "Define $f: number i of the tuple $a, counting from 0.",
            "From $a, return the item at index i; call it $f.",
        ),
        styles={
            "direct": "def $f(i):\n    return $a[i]",
            "named": "def $f(i):\n    items = $a\n    return items[i]",
            "list": "def $f(i):\n    items = list($a)\n    return items[i]",
        },
        inputs=_places,
        expected=lambda i, a: a[i],
    ),
    Family(
        name="is_member",
        difficulty=1,
        entry_points=("member", "known", "listed"),
        arguments="x",
        space={"a": _number_lists("is_member")},
        wordings=(
            "Write a function $f that tells whether x is one of $a.",
            "Is x among $a? Answer with a function $f.",
            "I need $f to check that x is in $a.",
            "Define $f: true if x occurs in $a.",
            "Given x, $f returns whether it is any of $a.",
        ),
        styles={
            "direct": "def $f(x):\n    return x in $a",
            "any": "def $f(x):\n    return any([x == y for y in $a])",
            "loop": (
                "def $f(x):\n    for y in $a:\n        if x == y:\n            return True\n"
                "    return False"
            ),
        },
        inputs=_members,
        expected=lambda x, a: x in a,
    ),
    Family(
        name="place_of",
        difficulty=1,
        entry_points=("place", "rank", "number_of"),
        arguments="s",
        space={"a": _word_lists("place_of")},
        wordings=(
            "Write a function $f that returns the index of s in $a, or -1.",
            "Where in $a does s stand? $f gives the index, -1 if nowhere.",
            "I need $f to look for the word s in $a and return its place, or -1.",
            "Define $f: the position of s among $a, -1 for other words.",
            "Given a word s, $f finds its index in $a (-1 if missing).",
        ),
        styles={
            "branch": "def $f(s):\n    words = $a\n    return words.index(s) if s in words else -1",
            "loop": (
                "def $f(s):\n    for i, word in enumerate($a):\n        if word == s:\n"
                "            return i\n    return -1"
            ),
            "early": (
                "def $f(s):\n    words = $a\n    if s not in words:\n        return -1\n"
                "    return words.index(s)"
            ),
        },
        inputs=_words,
        expected=lambda s, a: a.index(s) if s in a else -1,
    ),
    Family(
        name="first_items",
        difficulty=1,
        entry_points=("start_of", "begin", "opening"),
        arguments="n",
        space={"a": _number_lists("first_items", 5, 7)},
        wordings=(
            "Write a function $f that returns the sum of the first n of $a.",
            "Add up the first n numbers of $a in a function $f.",
            "I need $f: the total of the n first items of $a.",
            "Define $f to sum the first n entries of $a.",
            "Given n, $f sums that many of $a, from the start.",
        ),
        styles={
            "direct": "def $f(n):\n    return sum($a[:n])",
            "named": "def $f(n):\n    items = $a\n    return sum(items[:n])",
            "loop": (
                "def $f(n):\n    total = 0\n    for x in $a[:n]:\n"
                "        total += x\n    return total"
            ),
        },
        inputs=_counts,
        expected=lambda n, a: sum(a[:n]),
    ),
)
