"""Families whose solutions take several lines and a small idea."""

from __future__ import annotations

from random import Random

from weighted_mtp.micro_tasks.families.strings import MARKS
from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import numbers, single


def _fibonacci(n: int, a: int, b: int) -> int:
    for _ in range(n):
        a, b = b, a + b
    return a


def _remainder_lists(rng: Random, p: Params) -> list[Arguments]:
    return single([numbers(rng, p["k"] + n, 0, 99) for n in (0, 1, 2, 4)] + [[7, 5]])


def _grid_inputs(rng: Random, p: Params) -> list[Arguments]:
    shapes = ((1, 1), (1, 3), (2, 2), (3, 2), (2, 3))
    return single([[numbers(rng, width, 0, 20) for _ in range(n)] for n, width in shapes])


def _pair_inputs(rng: Random, p: Params) -> list[Arguments]:
    a = p["a"]
    lists = []
    for extra in (0, 1, 2):
        x, y = numbers(rng, 2, 0, (a - 1) // 2)
        values = [x, a - x, y, a - y, *numbers(rng, extra, 0, 2 * a)]
        rng.shuffle(values)
        lists.append(values)
    x = lists[0][0]
    return single([*lists, [x, a - x], [x, x + a + 1], [x, a - x, x]])


def _base_digits(n: int, b: int, c: str) -> str:
    digits = []
    while n:
        n, digit = divmod(n, b)
        digits.append(str(digit))
    return c.join(digits)


def _fewest(n: int, a: int, b: int) -> int:
    counts = [i + (n - i * a) // b for i in range(n // a + 1) if (n - i * a) % b == 0]
    return min(counts, default=-1)


def _change_inputs(rng: Random, p: Params) -> list[Arguments]:
    a, b = p["a"], p["b"]
    mixed = [a * rng.randint(0, b + 2) + b * rng.randint(0, 3) for _ in range(3)]
    return single([0, a * b, 1, *mixed])


FAMILIES = (
    Family(
        name="sum_of_two",
        difficulty=4,
        entry_points=("sum_of_two", "fib", "growth"),
        arguments="n",
        space={"a": range(1, 22), "b": range(1, 22)},
        wordings=(
            "Write a function $f for term n of $a, $b, ..., where each adds the two before.",
            "Define $f: a Fibonacci sequence that starts $a, $b; return number n, from 0.",
            "I need $f to start with $a and $b, keep adding the last two, and return term n.",
            "Given n, $f should return item n (from 0) of the Fibonacci-like list $a, $b, ...",
            "Like Fibonacci, but beginning with $a and $b: let $f return the n-th, from 0.",
        ),
        styles={
            "pair": "def $f(n):\n    a, b = $a, $b\n    for _ in range(n):\n"
            "        a, b = b, a + b\n    return a",
            "list": "def $f(n):\n    u = [$a, $b]\n    for i in range(n):\n"
            "        u.append(u[-1] + u[-2])\n    return u[n]",
            "recursion": "def $f(n):\n    if n < 2:\n        return [$a, $b][n]\n"
            "    return $f(n - 1) + $f(n - 2)",
        },
        inputs=lambda rng, p: single([0, 1, 2, *numbers(rng, 2, 3, 9)]),
        expected=_fibonacci,
    ),
    Family(
        name="by_remainder",
        difficulty=5,
        entry_points=("by_remainder", "order_by", "smallest_rest"),
        arguments="xs",
        space={"m": range(3, 46), "k": range(2, 12)},
        wordings=(
            "Write a function $f: sort xs by remainder modulo $m (ties by value), keep $k items.",
            "Define $f: the first $k of xs when ordered by x % $m, then by x.",
            "I need $f to order xs by what division by $m leaves, then by size; return $k of it.",
            "Which $k numbers of xs have the least remainder by $m? List them in order with $f.",
            "Given xs, $f should sort by (x % $m, x) and return the first $k items.",
        ),
        styles={
            "key": "def $f(xs):\n    return sorted(xs, key=lambda x: (x % $m, x))[:$k]",
            "pairs": "def $f(xs):\n    ys = sorted([(x % $m, x) for x in xs])\n"
            "    return [x for r, x in ys[:$k]]",
            "rounds": "def $f(xs):\n    out = []\n    for r in range($m):\n"
            "        out += sorted([x for x in xs if x % $m == r])\n    return out[:$k]",
        },
        inputs=_remainder_lists,
        expected=lambda xs, m, k: sorted(xs, key=lambda x: (x % m, x))[:k],
    ),
    Family(
        name="column_sums",
        difficulty=6,
        entry_points=("column_sums", "columns", "down_sums"),
        arguments="rows",
        space={"a": range(2, 22), "b": range(1, 26)},
        wordings=(
            "Write a function $f that sums each column of the grid rows, times $a plus $b.",
            "Define $f: for every column of rows, $a times its sum plus $b, as a list.",
            "I need $f to add up the columns of a list of rows, scale by $a and add $b.",
            "Given a matrix rows, $f should return its column totals, each times $a plus $b.",
            "What are the column sums of rows? List them multiplied by $a plus $b with $f.",
        ),
        styles={
            "zip": "def $f(rows):\n    return [sum(column) * $a + $b for column in zip(*rows)]",
            "range": "def $f(rows):\n    out = []\n    for j in range(len(rows[0])):\n"
            "        out.append(sum([row[j] for row in rows]) * $a + $b)\n    return out",
            "loops": "def $f(rows):\n    out = [$b] * len(rows[0])\n    for row in rows:\n"
            "        for j, x in enumerate(row):\n            out[j] += x * $a\n    return out",
        },
        inputs=_grid_inputs,
        expected=lambda rows, a, b: [sum(column) * a + b for column in zip(*rows, strict=True)],
    ),
    Family(
        name="pair_count",
        difficulty=6,
        entry_points=("pair_count", "pairs", "two_sum"),
        arguments="xs",
        space={"a": range(12, 432)},
        wordings=(
            "Write a function $f that counts the pairs of items in xs that add up to $a.",
            "Define $f: how many pairs i < j have xs[i] + xs[j] equal to $a.",
            "In how many ways can two items of xs be chosen to sum to $a? Write $f.",
            "I need $f to count each two elements of xs whose total is $a.",
            "Given xs, $f should return the number of pairs in it with sum $a.",
        ),
        styles={
            "loops": "def $f(xs):\n    t = 0\n    for i in range(len(xs)):\n"
            "        for j in range(i):\n            if xs[i] + xs[j] == $a:\n"
            "                t += 1\n    return t",
            "seen": "def $f(xs):\n    t = 0\n    seen = []\n    for x in xs:\n"
            "        t += seen.count($a - x)\n        seen.append(x)\n    return t",
            "sum": "def $f(xs):\n    return sum([xs[:i].count($a - x) for i, x in enumerate(xs)])",
        },
        inputs=_pair_inputs,
        expected=lambda xs, a: sum(x + y == a for i, x in enumerate(xs) for y in xs[:i]),
    ),
    Family(
        name="prime_total",
        difficulty=7,
        entry_points=("prime_total", "primes", "prime_score"),
        arguments="n",
        space={"a": range(2, 22), "b": range(1, 26)},
        wordings=(
            "Write a function $f that sums the primes below n, times $a plus $b.",
            "Define $f: add all prime numbers less than n, multiply by $a, add $b.",
            "I need $f to return $a times the sum of the primes under n, plus $b.",
            "What do the primes smaller than n add up to? Let $f return that times $a plus $b.",
            "Given n, $f should start at $b and add $a times every prime below n.",
        ),
        styles={
            "all": "def $f(n):\n    return $b + $a * sum([i for i in range(2, n) "
            "if all([i % d for d in range(2, i)])])",
            "else": "def $f(n):\n    t = $b\n    for i in range(2, n):\n"
            "        for d in range(2, i):\n            if i % d == 0:\n                break\n"
            "        else:\n            t += i * $a\n    return t",
            "list": "def $f(n):\n    primes = []\n    for i in range(2, n):\n"
            "        if all([i % p for p in primes]):\n            primes.append(i)\n"
            "    return sum(primes) * $a + $b",
        },
        inputs=lambda rng, p: single([0, 2, 3, *numbers(rng, 3, 8, 40)]),
        expected=lambda n, a, b: (
            sum(i for i in range(2, n) if all(i % d for d in range(2, i))) * a + b
        ),
    ),
    Family(
        name="base_digits",
        difficulty=8,
        entry_points=("base_digits", "to_base", "convert"),
        arguments="n",
        space={"b": range(2, 21), "c": MARKS},
        wordings=(
            "Write a function $f: the digits of n in base $b, lowest first, joined by '$c'.",
            "Define $f: divide n by $b till 0 and join the remainders in turn by '$c'.",
            "I need $f to write n in base $b from the last digit to the first, '$c' between.",
            "Given n, $f should return its base $b digits, units first, separated by '$c'.",
            "Convert n to base $b: least digit first, each a number, '$c' between. Name it $f.",
        ),
        styles={
            "list": "def $f(n):\n    out = []\n    while n:\n        out.append(str(n % $b))\n"
            "        n //= $b\n    return '$c'.join(out)",
            "recursion": "def $f(n):\n    if n < $b:\n        return str(n) if n else ''\n"
            "    return str(n % $b) + '$c' + $f(n // $b)",
            "for": "def $f(n):\n    out = ''\n    for i in range(n):\n        if n == 0:\n"
            "            break\n        out += '$c' + str(n % $b)\n        n //= $b\n"
            "    return out[1:]",
        },
        inputs=lambda rng, p: single(
            [0, p["b"], p["b"] ** 2 + 1, p["b"] - 1, *numbers(rng, 2, 30, 999)]
        ),
        expected=_base_digits,
    ),
    Family(
        name="fewest_coins",
        difficulty=10,
        entry_points=("fewest_coins", "least_coins", "pay"),
        arguments="n",
        space={"a": range(2, 36), "b": range(3, 37)},
        valid=lambda a, b: a < b,
        wordings=(
            "Write a function $f: the fewest coins of $a and $b that make n exactly, or -1.",
            "Define $f: how few coins of $a and $b pay n; -1 if no choice of them does.",
            "I need $f to pay n with the least number of coins worth $a or $b, else -1.",
            "Given n, $f should return the smallest count of $a and $b that sums to n, or -1.",
            "With coins of $a and $b, how many at least make n? -1 if impossible. Write $f.",
        ),
        styles={
            "loop": "def $f(n):\n    for j in range(n // $b, -1, -1):\n"
            "        if (n - j * $b) % $a == 0:\n"
            "            return j + (n - j * $b) // $a\n    return -1",
            "list": "def $f(n):\n    counts = [j + (n - j * $b) // $a "
            "for j in range(n // $b + 1) if (n - j * $b) % $a == 0]\n"
            "    return min(counts, default=-1)",
            "table": "def $f(n):\n    t = [0] + [999] * n\n    for i in range(1, n + 1):\n"
            "        for c in [$a, $b]:\n            if c <= i:\n"
            "                t[i] = min(t[i], t[i - c] + 1)\n"
            "    return t[n] if t[n] < 999 else -1",
        },
        inputs=_change_inputs,
        expected=_fewest,
    ),
)
"""Families whose solutions take several lines and a small idea."""
