"""Families whose heart is a loop over a range: sums, step counts, recurrences, tables."""

from __future__ import annotations

from random import Random

from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import numbers, single


def _multiples_inputs(rng: Random, p: Params) -> list[Arguments]:
    a, b = p["a"], p["b"]
    return single([0, a, b + 1, a * b, a * b + 1, rng.randint(b, 90)])


def _grid_inputs(rng: Random, p: Params) -> list[Arguments]:
    return [(0, 3), (1, 2), (2, 1), (3, rng.randint(4, 8)), (rng.randint(4, 8), 5)]


def _steps_inputs(rng: Random, p: Params) -> list[Arguments]:
    a, k = p["a"], p["k"]
    twice = k * k * (a // k + rng.randint(2, 4))
    return single([a, a + 1, k * (a + rng.randint(2, 6)), twice, twice + p["b"], twice + 1])


def _steps(n: int, k: int, b: int, a: int) -> int:
    steps = 0
    while n > a:
        n = n // k if n % k == 0 else n - b
        steps += 1
    return steps


def _term(n: int, a: int, b: int, p: int, q: int) -> int:
    for _ in range(n):
        a, b = b, p * b + q * a
    return a


def _ways(n: int, a: int, b: int, c: int) -> int:
    pairs = ((i, j) for i in range(0, n + 1, a) for j in range(0, n - i + 1, b))
    return sum((n - i - j) % c == 0 for i, j in pairs)


FAMILIES = (
    Family(
        name="multiples_sum",
        difficulty=4,
        entry_points=("sum_below", "add_multiples", "multiples"),
        arguments="n",
        space={"a": range(2, 40), "b": range(3, 41)},
        valid=lambda a, b: a < b and b % a != 0,
        wordings=(
            "Write a function $f that adds the numbers below n divisible by $a or $b.",
            "Define $f: the sum of all multiples of $a or $b below n.",
            "Implement $f to sum what is below n and a multiple of $a or $b.",
            "What do all multiples of $a or $b less than n add up to? Write $f.",
            "I need $f to add up each i under n that $a or $b divides.",
        ),
        styles={
            "sum": "def $f(n):\n"
            "    return sum([i for i in range(n) if i % $a == 0 or i % $b == 0])",
            "loop": "def $f(n):\n    t = 0\n    for i in range(n):\n"
            "        if i % $a == 0 or i % $b == 0:\n            t += i\n    return t",
            "sets": "def $f(n):\n    return sum(set(range(0, n, $a)) | set(range(0, n, $b)))",
        },
        inputs=_multiples_inputs,
        expected=lambda n, a, b: sum(i for i in range(n) if i % a == 0 or i % b == 0),
    ),
    Family(
        name="grid_sum",
        difficulty=7,
        entry_points=("grid_sum", "table_sum", "grid"),
        arguments="n, m",
        space={"a": range(2, 41), "b": range(2, 41)},
        wordings=(
            "Write a function $f that adds i times $a plus j times $b for all i < n, j < m.",
            "Define $f: the sum of $a i + $b j over i below n and j below m.",
            "Implement $f to total $a times i plus $b times j for i < n and j < m.",
            "I need $f to add $a i + $b j over all cells i, j of an n by m grid, from 0.",
            "Given n and m, $f should sum i * $a + j * $b for i in range(n), j in range(m).",
        ),
        styles={
            "loops": "def $f(n, m):\n    t = 0\n    for i in range(n):\n"
            "        for j in range(m):\n            t += i * $a + j * $b\n    return t",
            "sum": "def $f(n, m):\n"
            "    return sum([i * $a + j * $b for i in range(n) for j in range(m)])",
            "sides": "def $f(n, m):\n    t = sum(range(n)) * m * $a\n"
            "    return t + sum(range(m)) * n * $b",
        },
        inputs=_grid_inputs,
        expected=lambda n, m, a, b: sum(i * a + j * b for i in range(n) for j in range(m)),
    ),
    Family(
        name="step_count",
        difficulty=9,
        entry_points=("steps", "count_steps", "descend"),
        arguments="n",
        space={"k": range(2, 7), "b": range(1, 13), "a": range(1, 31)},
        wordings=(
            "Write a function $f: steps until n <= $a, n // $k if $k divides n, else n - $b.",
            "Define $f: divide n by $k if possible, else take $b off; count until at most $a.",
            "Implement $f to count steps to at most $a: n by $k if it divides, else minus $b.",
            "I need $f: the steps from n to at most $a, each n // $k if exact, else n - $b.",
            "How many steps bring n to at most $a? By $k if it divides, else less $b. Write $f.",
        ),
        styles={
            "while": "def $f(n):\n    t = 0\n    while n > $a:\n"
            "        n = n // $k if n % $k == 0 else n - $b\n        t += 1\n    return t",
            "recursion": "def $f(n):\n    if n <= $a:\n        return 0\n"
            "    if n % $k == 0:\n        return 1 + $f(n // $k)\n    return 1 + $f(n - $b)",
            "for": "def $f(n):\n    for t in range(n):\n        if n <= $a:\n"
            "            return t\n        n = n // $k if n % $k == 0 else n - $b\n    return 0",
        },
        inputs=_steps_inputs,
        expected=_steps,
    ),
    Family(
        name="recurrence",
        difficulty=10,
        entry_points=("term", "sequence", "nth"),
        arguments="n",
        space={"a": range(10), "b": range(1, 10), "p": range(2, 7), "q": range(2, 7)},
        wordings=(
            "Write a function $f: term n of $a, $b, ... where next is $p times last plus $q "
            "times the one before.",
            "Define $f: term n of the sequence $a, $b, ... with u = $p v + $q w for last v, w.",
            "Implement $f for the recurrence from $a, $b: $p times last plus $q times previous.",
            "I need $f: term n of a sequence from $a, $b on, each $p times the last plus $q times "
            "the one before that.",
            "Given n, $f should start at $a, $b, go on by $p times the newest plus $q times the "
            "one before, and return term n.",
        ),
        styles={
            "pair": "def $f(n):\n    a, b = $a, $b\n    for _ in range(n):\n"
            "        a, b = b, b * $p + a * $q\n    return a",
            "list": "def $f(n):\n    u = [$a, $b]\n    for i in range(n):\n"
            "        u.append(u[-1] * $p + u[-2] * $q)\n    return u[n]",
            "recursion": "def $f(n):\n    if n < 2:\n        return [$a, $b][n]\n"
            "    return $f(n - 1) * $p + $f(n - 2) * $q",
        },
        inputs=lambda rng, p: single([0, 1, 2, *numbers(rng, 2, 3, 9)]),
        expected=_term,
    ),
    Family(
        name="coin_ways",
        difficulty=11,
        entry_points=("ways", "change", "payments"),
        arguments="n",
        space={"a": range(1, 20), "b": range(2, 21), "c": range(3, 22)},
        valid=lambda a, b, c: a < b < c,
        wordings=(
            "Write a function $f that counts the ways to pay n with coins of $a, $b and $c.",
            "Define $f: in how many ways coins of $a, $b and $c make n.",
            "Implement $f to count the sums of $a, $b and $c, in any number, that give n.",
            "In how many ways can n be paid with coins worth $a, $b and $c? Write $f.",
            "I need $f to count all ways to make n out of coins $a, $b and $c.",
        ),
        styles={
            "table": "def $f(n):\n    t = [1] + [0] * n\n    for c in [$a, $b, $c]:\n"
            "        for i in range(c, n + 1):\n            t[i] += t[i - c]\n    return t[n]",
            "loops": "def $f(n):\n    t = 0\n    for i in range(0, n + 1, $a):\n"
            "        for j in range(i, n + 1, $b):\n            t += (n - j) % $c == 0\n"
            "    return t",
            "sum": "def $f(n):\n    return sum([(n - j) % $c == 0 for i in range(0, n + 1, $a) "
            "for j in range(i, n + 1, $b)])",
        },
        inputs=lambda rng, p: single(
            [
                0,
                p["a"] + p["b"],
                p["a"] + p["c"],
                p["a"] * p["b"] + p["c"],
                *numbers(rng, 2, 40, 90),
            ]
        ),
        expected=_ways,
    ),
)
"""Families whose heart is a loop over a range."""
