"""Families that decide about a number."""

from __future__ import annotations

from random import Random

from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import numbers, single


def _divisible_inputs(rng: Random, p: Params) -> list[Arguments]:
    m = p["m"]
    hit = m * rng.randint(3, 9)
    return single([m, hit, hit + 1, hit - 1, m * 2 + rng.randint(1, m - 1)])


def _between_inputs(rng: Random, p: Params) -> list[Arguments]:
    low, high = p["low"], p["high"]
    return single([low, high, low - 1, high + 1, rng.randint(low, high), high + 30])


def _within_inputs(rng: Random, p: Params) -> list[Arguments]:
    a, x = p["a"], rng.randint(5, 60)
    far = a + rng.randint(2, 20)
    return [(x, x + a), (x + a + 1, x), (x, x), (x, x + far), (x + a, x), (x, x + a + 1)]


def _discount_inputs(rng: Random, p: Params) -> list[Arguments]:
    a = p["a"]
    return single([a, a + 1, a - 1, rng.randint(0, a), a + rng.randint(5, 60)])


def _tiered_inputs(rng: Random, p: Params) -> list[Arguments]:
    c = p["c"]
    return single([0, 1, c, c + 1, c + rng.randint(3, 9), c + 20])


def _halve_or(x: int, a: int, b: int) -> int:
    return x // 2 if x % 2 == 0 else x * a + b


FAMILIES = (
    Family(
        name="divisible",
        difficulty=1,
        entry_points=("divisible", "is_multiple", "divides"),
        arguments="x",
        space={"m": range(2, 422)},
        wordings=(
            "Write a function $f that says whether x is divisible by $m.",
            "Define $f: True if x is a multiple of $m, False otherwise.",
            "Is x a multiple of $m? Answer with $f.",
            "I need $f to check if $m divides x.",
            "Given x, $f should tell if dividing x by $m leaves nothing over.",
        ),
        styles={
            "direct": "def $f(x):\n    return x % $m == 0",
            "not": "def $f(x):\n    return not x % $m",
            "branch": "def $f(x):\n    if x % $m == 0:\n        return True\n    return False",
        },
        inputs=_divisible_inputs,
        expected=lambda x, m: x % m == 0,
    ),
    Family(
        name="between",
        difficulty=2,
        entry_points=("between", "in_range", "inside"),
        arguments="x",
        space={"low": range(60), "high": range(100)},
        valid=lambda low, high: low + 2 < high,
        wordings=(
            "Write a function $f that says whether x is at least $low and at most $high.",
            "Define $f: True if x is between $low and $high, ends included, else False.",
            "Does x lie in the range from $low to $high inclusive? Answer with $f.",
            "I need $f to check that x is no less than $low and no more than $high.",
            "Given x, $f should tell if it is one of the numbers $low to $high.",
        ),
        styles={
            "chain": "def $f(x):\n    return $low <= x <= $high",
            "and": "def $f(x):\n    return x >= $low and x <= $high",
            "branches": "def $f(x):\n    if x < $low:\n        return False\n"
            "    if x > $high:\n        return False\n    return True",
        },
        inputs=_between_inputs,
        expected=lambda x, low, high: low <= x <= high,
    ),
    Family(
        name="within",
        difficulty=2,
        entry_points=("within", "close_to", "near_enough"),
        arguments="x, y",
        space={"a": range(1, 421)},
        wordings=(
            "Write a function $f that says whether x and y are at most $a apart.",
            "Define $f: True if the gap between x and y is $a or less, else False.",
            "Are x and y within $a of each other? Answer with $f.",
            "I need $f to check that x and y differ by no more than $a.",
            "Given x and y, $f should tell if their distance is at most $a.",
        ),
        styles={
            "abs": "def $f(x, y):\n    return abs(x - y) <= $a",
            "chain": "def $f(x, y):\n    return x - $a <= y <= x + $a",
            "branch": "def $f(x, y):\n    if x > y:\n        return x - y <= $a\n"
            "    return y - x <= $a",
        },
        inputs=_within_inputs,
        expected=lambda x, y, a: abs(x - y) <= a,
    ),
    Family(
        name="discount",
        difficulty=2,
        entry_points=("discount", "reduce_if", "price"),
        arguments="x",
        space={"a": range(10, 100), "b": range(1, 10)},
        wordings=(
            "Write a function $f that takes $b off x if x is greater than $a, else returns x.",
            "Define $f: x minus $b when x is over $a, otherwise x as it is.",
            "Prices over $a are cut by $b. Write $f, the price to pay for x.",
            "I need $f to lower x by $b, but only if it is more than $a.",
            "Given x, $f should return x, less $b if x exceeds $a.",
        ),
        styles={
            "branch": "def $f(x):\n    if x > $a:\n        return x - $b\n    return x",
            "in_place": "def $f(x):\n    if x > $a:\n        x -= $b\n    return x",
            "expression": "def $f(x):\n    return x - $b if x > $a else x",
        },
        inputs=_discount_inputs,
        expected=lambda x, a, b: x - b if x > a else x,
    ),
    Family(
        name="halve_or",
        difficulty=3,
        entry_points=("halve_or", "next_number", "one_step"),
        arguments="x",
        space={"a": range(2, 22), "b": range(1, 41)},
        wordings=(
            "Write a function $f that halves x if it is even, else returns $a times x plus $b.",
            "Define $f: x // 2 for even x, and x times $a plus $b for odd x.",
            "If x is even, $f gives half of it; if odd, $a times x plus $b. Write it.",
            "I need $f: an even x is halved, an odd one multiplied by $a with $b added.",
            "Implement $f so that even x becomes x / 2 and odd x becomes $a x + $b.",
        ),
        styles={
            "branch": "def $f(x):\n    if x % 2 == 0:\n        return x // 2\n"
            "    return x * $a + $b",
            "else": "def $f(x):\n    if x % 2:\n        y = x * $a + $b\n    else:\n"
            "        y = x // 2\n    return y",
            "expression": "def $f(x):\n    return x // 2 if x % 2 == 0 else x * $a + $b",
        },
        inputs=lambda rng, p: single(
            [0, 1, 2, 2 * rng.randint(3, 40), 2 * rng.randint(3, 40) + 1, rng.randint(3, 9)]
        ),
        expected=_halve_or,
    ),
    Family(
        name="tiered",
        difficulty=4,
        entry_points=("tiered", "total_price", "cost"),
        arguments="n",
        space={"a": range(5, 31), "b": range(1, 21), "c": range(2, 10)},
        valid=lambda a, b, c: b < a,
        wordings=(
            "Write a function $f: the cost of n items, the first $c at $a each, the rest at $b.",
            "The first $c items cost $a each and any more cost $b each. Define $f: n items' price.",
            "I need $f to price n tickets: up to $c of them at $a, every further one at $b.",
            "Given n, $f should charge $a apiece for the first $c and $b apiece after that.",
            "What do n items cost at $a each, but $b each beyond the first $c? Write $f.",
        ),
        styles={
            "branch": "def $f(n):\n    if n <= $c:\n        return n * $a\n"
            "    return $c * $a + (n - $c) * $b",
            "min": "def $f(n):\n    first = min(n, $c)\n    rest = n - first\n"
            "    return first * $a + rest * $b",
            "loop": "def $f(n):\n    t = 0\n    for i in range(n):\n"
            "        t += $a if i < $c else $b\n    return t",
        },
        inputs=_tiered_inputs,
        expected=lambda n, a, b, c: min(n, c) * a + max(n - c, 0) * b,
    ),
    Family(
        name="either_divides",
        difficulty=3,
        entry_points=("either_divides", "exactly_one", "one_factor"),
        arguments="x",
        space={"a": range(2, 40), "b": range(3, 41)},
        valid=lambda a, b: a < b and b % a != 0,
        wordings=(
            "Write a function $f that says whether x is divisible by $a or $b but not by both.",
            "Define $f: True if exactly one of $a and $b divides x, else False.",
            "Does just one of $a and $b divide x? Answer with $f.",
            "I need $f to check that x is a multiple of $a or of $b, and not of the two.",
            "Given x, $f should tell if one, and only one, of $a and $b divides it.",
        ),
        styles={
            "differ": "def $f(x):\n    return (x % $a == 0) != (x % $b == 0)",
            "branch": "def $f(x):\n    if x % $a == 0:\n        return x % $b != 0\n"
            "    return x % $b == 0",
            "count": "def $f(x):\n    hits = [d for d in [$a, $b] if x % d == 0]\n"
            "    return len(hits) == 1",
        },
        inputs=lambda rng, p: single(
            [p["a"], p["b"], p["a"] * p["b"], p["a"] * p["b"] + 1, *numbers(rng, 2, 5, 99)]
        ),
        expected=lambda x, a, b: (x % a == 0) != (x % b == 0),
    ),
)
"""Families that decide about a number."""
