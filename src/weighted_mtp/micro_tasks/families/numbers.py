"""Families of one plain calculation with numbers."""

from __future__ import annotations

import math
from random import Random

from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import numbers, single


def _pairs(rng: Random, p: Params) -> list[Arguments]:
    x, y, z = numbers(rng, 3, 2, 90)
    return [(x, y), (y, x), (0, z), (z, z), (rng.randint(-9, -1), x)]


def _about(rng: Random, p: Params) -> list[Arguments]:
    """Numbers on both sides of `a`, even and odd."""
    a = p["a"]
    return single([a, a + rng.randint(1, 30), a - rng.randint(1, 30), 0, 1, rng.randint(2, 99)])


def _largest_inputs(rng: Random, p: Params) -> list[Arguments]:
    a = p["a"]
    low, high = rng.randint(0, a - 1), a + rng.randint(1, 40)
    return [(low, low - 2), (low, high), (high + 3, high), (a, low), (low, a + 1)]


def _divisor_inputs(rng: Random, p: Params) -> list[Arguments]:
    a = p["a"]
    shared = [d for d in range(2, a + 1) if a % d == 0]
    some = [rng.choice(shared) * rng.randint(1, 9) for _ in range(3)]
    return single([a, 1, *some, a * rng.randint(2, 5) + 1])


def _digit_inputs(rng: Random, p: Params) -> list[Arguments]:
    d = str(p["d"])
    other = str(rng.randint(100, 999))
    hit = int("1" + d)
    return single([hit, int(f"2{d}{d}"), int("3" + other), int(f"{hit}4{other}{d}"), 0, 57])


FAMILIES = (
    Family(
        name="distance",
        difficulty=1,
        entry_points=("distance", "how_far", "away"),
        arguments="x",
        space={"a": range(1, 601)},
        wordings=(
            "Write a function $f that returns the distance between x and $a.",
            "How far is x from $a? Answer with a function $f, never negative.",
            "I need $f: the absolute difference of x and $a.",
            "Given a number x, $f should return its distance from $a.",
            "Define $f, which takes the distance of x from $a.",
        ),
        styles={
            "abs": "def $f(x):\n    return abs(x - $a)",
            "branch": "def $f(x):\n    if x > $a:\n        return x - $a\n    return $a - x",
            "max": "def $f(x):\n    return max(x - $a, $a - x)",
        },
        inputs=_about,
        expected=lambda x, a: abs(x - a),
    ),
    Family(
        name="difference",
        difficulty=1,
        entry_points=("difference", "subtract", "gap"),
        arguments="x, y",
        space={"a": range(2, 502)},
        wordings=(
            "Write a function $f that subtracts y from x and multiplies by $a.",
            "Define $f: $a times the difference x minus y.",
            "I need $f to return x minus y, times $a.",
            "Take y away from x and multiply the result by $a; call it $f.",
            "Please write $f, which gives (x - y) * $a.",
        ),
        styles={
            "direct": "def $f(x, y):\n    return (x - y) * $a",
            "named": "def $f(x, y):\n    d = x - y\n    return d * $a",
            "apart": "def $f(x, y):\n    return x * $a - y * $a",
        },
        inputs=_pairs,
        expected=lambda x, y, a: (x - y) * a,
    ),
    Family(
        name="average",
        difficulty=2,
        entry_points=("average", "middle", "halfway"),
        arguments="x",
        space={"a": range(1, 501)},
        wordings=(
            "Write a function $f that averages x with $a, rounding down.",
            "Define $f: the average of x and $a, rounded down.",
            "What integer is halfway between x and $a, rounded down? Write $f to say so.",
            "I need $f to return the floor of the mean of x and $a.",
            "Given x, $f should return half the sum of x and $a as an integer, rounded down.",
        ),
        styles={
            "direct": "def $f(x):\n    return (x + $a) // 2",
            "named": "def $f(x):\n    t = x + $a\n    return t // 2",
            "odd": "def $f(x):\n    t = x + $a\n    return (t - t % 2) // 2",
        },
        inputs=_about,
        expected=lambda x, a: (x + a) // 2,
    ),
    Family(
        name="largest",
        difficulty=2,
        entry_points=("largest", "biggest", "max_of"),
        arguments="x, y",
        space={"a": range(5, 505)},
        wordings=(
            "Write a function $f that returns the largest of x, y and $a.",
            "Define $f: the larger of x and y, but never less than $a.",
            "Which is greatest, x, y or $a? Let $f return it.",
            "I need the maximum of x, y and $a from a function $f.",
            "Implement $f to pick the biggest number out of x, y and $a.",
        ),
        styles={
            "max": "def $f(x, y):\n    return max(x, y, $a)",
            "branches": "def $f(x, y):\n    z = $a\n    if x > z:\n        z = x\n"
            "    if y > z:\n        z = y\n    return z",
            "sorted": "def $f(x, y):\n    return sorted([x, y, $a])[-1]",
        },
        inputs=_largest_inputs,
        expected=lambda x, y, a: max(x, y, a),
    ),
    Family(
        name="round_down",
        difficulty=2,
        entry_points=("round_down", "floor_to", "snap"),
        arguments="x",
        space={"a": range(2, 422)},
        wordings=(
            "Write a function $f that rounds x down to a multiple of $a.",
            "Define $f: the largest multiple of $a that is not above x.",
            "I need $f to round x down to the nearest multiple of $a.",
            "Make a function $f that takes x and drops what is left over after full steps of $a.",
            "Which multiple of $a is at or just below x? Write $f to return it.",
        ),
        styles={
            "divide": "def $f(x):\n    return x // $a * $a",
            "rest": "def $f(x):\n    return x - x % $a",
            "named": "def $f(x):\n    rest = x % $a\n    x -= rest\n    return x",
        },
        inputs=lambda rng, p: single(
            [
                p["a"],
                p["a"] - 1,
                p["a"] * rng.randint(3, 9),
                p["a"] * rng.randint(2, 9) + 1,
                p["a"] * rng.randint(2, 9) - 1,
            ]
        ),
        expected=lambda x, a: x // a * a,
    ),
    Family(
        name="count_digit",
        difficulty=3,
        entry_points=("count_digit", "digit_count", "occurrences"),
        arguments="n",
        space={"d": range(10), "a": range(2, 52)},
        wordings=(
            "Write a function $f that counts how often the digit $d occurs in n, times $a.",
            "Define $f: the number of digits of n equal to $d, multiplied by $a.",
            "How many times is $d a digit of n? Return $a times that from $f.",
            "I need $f to find each digit $d in n and score $a for each one.",
            "Given n, $f should return $a for every digit $d it has, added up.",
        ),
        styles={
            "method": "def $f(n):\n    return str(n).count('$d') * $a",
            "loop": "def $f(n):\n    t = 0\n    for c in str(n):\n        if c == '$d':\n"
            "            t += $a\n    return t",
            "sum": "def $f(n):\n    return sum([$a for c in str(n) if int(c) == $d])",
        },
        inputs=_digit_inputs,
        expected=lambda n, d, a: str(n).count(str(d)) * a,
    ),
    Family(
        name="common_divisor",
        difficulty=4,
        entry_points=("common_divisor", "gcd", "shared_factor"),
        arguments="x",
        space={"a": range(4, 101), "b": range(1, 11)},
        valid=lambda a, b: any(a % d == 0 for d in range(2, a)),
        wordings=(
            "Write a function $f that returns $b times the greatest common divisor of x and $a.",
            "Define $f: the largest number that divides both x and $a, multiplied by $b.",
            "I need the gcd of x and $a, times $b, from a function $f.",
            "Given x, let $f find the highest common factor of x and $a and multiply it by $b.",
            "Implement $f: which is the biggest divisor x shares with $a? Return it times $b.",
        ),
        styles={
            "math": "def $f(x):\n    from math import gcd\n    return gcd(x, $a) * $b",
            "euclid": "def $f(x):\n    y = $a\n    while y:\n        x, y = y, x % y\n"
            "    return x * $b",
            "search": "def $f(x):\n    for d in range($a, 0, -1):\n"
            "        if x % d == 0 and $a % d == 0:\n            return d * $b",
        },
        inputs=_divisor_inputs,
        expected=lambda x, a, b: math.gcd(x, a) * b,
    ),
)
"""Families of one plain calculation with numbers."""
