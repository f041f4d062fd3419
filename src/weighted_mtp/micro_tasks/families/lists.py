"""Families over lists of numbers."""

from __future__ import annotations

from random import Random

from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import COMPARE, COMPARE_WORDS, near, numbers, single

MORE_LESS = ("<", ">")


def _near_lists(rng: Random, p: Params) -> list[Arguments]:
    """Lists about the threshold `a`."""
    return single([near(rng, p["a"], n) for n in (1, 2, 3, 4)] + [[], [p["a"]]])


def _multiples_about(rng: Random, p: Params) -> list[Arguments]:
    """Lists about the threshold `a`, rich in multiples of `b`."""
    a, b = p["a"], p["b"]
    nearest = a - a % b
    lists = []
    for extra in (1, 2, 3):
        multiples = [b * rng.randint(0, 2 * a // b + 3) for _ in range(extra)]
        lists.append([*near(rng, a, extra), nearest, nearest + b, *multiples])
    return single([*lists, [], [nearest, nearest + b, nearest + 2 * b]])


def _slice_inputs(rng: Random, p: Params) -> list[Arguments]:
    lengths = (p["j"] + 2, p["j"] + p["k"], p["j"] - 1, p["i"] + 1, 2)
    return single([numbers(rng, length, 0, 99) for length in lengths])


def _first_inputs(rng: Random, p: Params) -> list[Arguments]:
    def values(count: int, offset: int) -> list[int]:
        return [p["m"] * rng.randint(0, 6) + p["r"] + offset for _ in range(count)]

    return single(
        [
            values(2, 1) + values(2, 0),
            values(1, 0) + values(2, 1),
            [*values(3, 1), p["r"]],
            values(2, 2) + values(1, 0) + values(1, 1),
            values(3, 1),
        ]
    )


def _chunk_inputs(rng: Random, p: Params) -> list[Arguments]:
    k = p["k"]
    return single([numbers(rng, n, 1, 60) for n in (0, 1, k, k + 1, 2 * k + 1)])


FAMILIES = (
    Family(
        name="count_matching",
        difficulty=3,
        entry_points=("count_if", "matching", "quantity"),
        arguments="xs",
        space={"op": MORE_LESS, "a": range(5, 50), "b": range(2, 13)},
        valid=lambda op, a, b: a % b != 0,  # else a neighbour of `a` means the same
        phrases={"op": COMPARE_WORDS},
        wordings=(
            "Write a function $f that counts the numbers in xs $op_words $a or divisible by $b.",
            "Define $f: how many of xs are $op_words $a or multiples of $b.",
            "Implement $f to count what in xs is $op_words $a or a multiple of $b.",
            "How many numbers in xs are $op_words $a or can be divided by $b? Write $f.",
            "I need $f to count those x in xs that are $op_words $a or multiples of $b.",
        ),
        styles={
            "length": "def $f(xs):\n    return len([x for x in xs if x $op $a or x % $b == 0])",
            "loop": "def $f(xs):\n    n = 0\n    for x in xs:\n"
            "        if x $op $a or x % $b == 0:\n            n += 1\n    return n",
            "sum": "def $f(xs):\n    return sum([x $op $a or x % $b == 0 for x in xs])",
        },
        inputs=_multiples_about,
        expected=lambda xs, op, a, b: sum(COMPARE[op](x, a) or x % b == 0 for x in xs),
    ),
    Family(
        name="filter_scale",
        difficulty=4,
        entry_points=("scaled", "keep", "filtered"),
        arguments="xs",
        space={"op": MORE_LESS, "a": range(2, 60), "b": range(2, 31)},
        phrases={"op": COMPARE_WORDS},
        wordings=(
            "Write a function $f that returns the numbers in xs $op_words $a, times $b.",
            "Define $f: a list of all x in xs $op_words $a, each multiplied by $b.",
            "Implement $f to keep what in xs is $op_words $a and multiply it by $b.",
            "I need $f to pick the numbers in xs $op_words $a and multiply each by $b.",
            "Given xs, $f should list $b times each number that is $op_words $a.",
        ),
        styles={
            "comprehension": "def $f(xs):\n    return [x * $b for x in xs if x $op $a]",
            "loop": "def $f(xs):\n    out = []\n    for x in xs:\n        if x $op $a:\n"
            "            out.append(x * $b)\n    return out",
            "filter": "def $f(xs):\n    return [x * $b for x in filter(lambda x: x $op $a, xs)]",
        },
        inputs=_near_lists,
        expected=lambda xs, op, a, b: [x * b for x in xs if COMPARE[op](x, a)],
    ),
    Family(
        name="farthest",
        difficulty=4,
        entry_points=("farthest", "max_gap", "reach"),
        arguments="xs",
        space={"a": range(1, 61), "b": range(2, 21)},
        wordings=(
            "Write a function $f that returns the largest distance from $a in xs, times $b.",
            "Define $f: how far xs gets from $a at most, multiplied by $b.",
            "Implement $f to return $b times the greatest distance of xs from $a.",
            "How far from $a does xs get? Let $f return the largest distance times $b.",
            "I need $f to find the biggest gap between $a and a number in xs, times $b.",
        ),
        styles={
            "max": "def $f(xs):\n    return max([abs(x - $a) for x in xs]) * $b",
            "loop": "def $f(xs):\n    y = 0\n    for x in xs:\n        y = max(y, abs(x - $a))\n"
            "    return y * $b",
            "ends": "def $f(xs):\n    return max(max(xs) - $a, $a - min(xs)) * $b",
        },
        inputs=lambda rng, p: single(
            [
                [p["a"]],
                [p["a"] + 9, p["a"] - 2],
                [p["a"] - 8, p["a"] + 3],
                numbers(rng, 4, 0, 90),
                numbers(rng, 3, 0, 30),
            ]
        ),
        expected=lambda xs, a, b: max(abs(x - a) for x in xs) * b,
    ),
    Family(
        name="every_nth",
        difficulty=5,
        entry_points=("every_nth", "stride", "sample"),
        arguments="xs",
        space={"k": range(2, 11), "i": range(1, 17), "j": range(4, 28)},
        valid=lambda k, i, j: j > i + k and (j - i) % k == 1,  # the last item is at j - 1
        wordings=(
            "Write a function $f that returns each $k-th item of xs from index $i up to $j.",
            "Define $f: the items of xs from index $i to before $j in steps of $k.",
            "Implement $f to slice xs from $i to $j with step $k.",
            "I need $f to take every $k-th item of xs, from index $i and before index $j.",
            "Given xs, $f should return items $i up to but not $j, in steps of $k.",
        ),
        styles={
            "slice": "def $f(xs):\n    return xs[$i:$j:$k]",
            "range": "def $f(xs):\n    return [xs[i] for i in range($i, min($j, len(xs)), $k)]",
            "enumerate": "def $f(xs):\n    out = []\n    for i, x in enumerate(xs):\n"
            "        if $i <= i < $j and (i - $i) % $k == 0:\n            out.append(x)\n"
            "    return out",
        },
        inputs=_slice_inputs,
        expected=lambda xs, k, i, j: xs[i:j:k],
    ),
    Family(
        name="running_total",
        difficulty=5,
        entry_points=("running", "totals", "cumulative"),
        arguments="xs",
        space={"a": range(1, 51), "m": range(7, 51)},
        valid=lambda a, m: a < m,
        wordings=(
            "Write a function $f that returns running totals of xs from $a, modulo $m.",
            "Define $f: start at $a, add each x of xs, list every total modulo $m.",
            "Implement $f to list the sums so far of xs starting with $a, modulo $m.",
            "I need $f to start with $a, add up xs step by step and list each sum modulo $m.",
            "Given xs, $f should list its partial sums plus $a, each modulo $m.",
        ),
        styles={
            "loop": "def $f(xs):\n    t = $a\n    out = []\n    for x in xs:\n"
            "        t = (t + x) % $m\n        out.append(t)\n    return out",
            "sums": "def $f(xs):\n    return [($a + sum(xs[:i + 1])) % $m for i in range(len(xs))]",
            "last": "def $f(xs):\n    out = [$a]\n    for x in xs:\n"
            "        out.append((out[-1] + x) % $m)\n    return out[1:]",
        },
        inputs=lambda rng, p: single([[], *(numbers(rng, n, 0, 60) for n in (1, 3, 4, 5))]),
        expected=lambda xs, a, m: [(a + sum(xs[: i + 1])) % m for i in range(len(xs))],
    ),
    Family(
        name="first_index",
        difficulty=5,
        entry_points=("first", "find", "position"),
        arguments="xs",
        space={"m": range(3, 41), "r": range(40)},
        valid=lambda m, r: r < m,
        wordings=(
            "Write a function $f: index of the first x in xs with x % $m equal to $r, or -1.",
            "Define $f: where xs first has remainder $r modulo $m, -1 if nowhere.",
            "Implement $f to find the first x in xs that leaves $r when divided by $m, or -1.",
            "Where in xs is the first number with remainder $r by $m? -1 if none. Write $f.",
            "I need $f to return the index of the first x with x % $m == $r in xs, else -1.",
        ),
        styles={
            "enumerate": "def $f(xs):\n    for i, x in enumerate(xs):\n"
            "        if x % $m == $r:\n            return i\n    return -1",
            "range": "def $f(xs):\n    for i in range(len(xs)):\n"
            "        if xs[i] % $m == $r:\n            return i\n    return -1",
            "list": "def $f(xs):\n    hits = [x % $m == $r for x in xs]\n"
            "    return hits.index(True) if True in hits else -1",
        },
        inputs=_first_inputs,
        expected=lambda xs, m, r: next((i for i, x in enumerate(xs) if x % m == r), -1),
    ),
    Family(
        name="chunk_sums",
        difficulty=7,
        entry_points=("chunk_sums", "blocks", "groups"),
        arguments="xs",
        space={"k": range(2, 8), "b": range(1, 100)},
        wordings=(
            "Write a function $f that cuts xs into chunks of $k and returns each sum plus $b.",
            "Define $f: the sums of chunks of $k of xs, each plus $b.",
            "Implement $f to add up xs in groups of $k, with $b added to each sum.",
            "I need $f to split xs into pieces of $k and list the sum of each plus $b.",
            "Given xs, $f should sum each $k items after another and add $b to every sum.",
        ),
        styles={
            "comprehension": "def $f(xs):\n"
            "    return [sum(xs[i:i + $k]) + $b for i in range(0, len(xs), $k)]",
            "loop": "def $f(xs):\n    out = []\n    for i in range(0, len(xs), $k):\n"
            "        out.append(sum(xs[i:i + $k]) + $b)\n    return out",
            "while": "def $f(xs):\n    out = []\n    while xs:\n"
            "        out.append(sum(xs[:$k]) + $b)\n        xs = xs[$k:]\n    return out",
        },
        inputs=_chunk_inputs,
        expected=lambda xs, k, b: [sum(xs[i : i + k]) + b for i in range(0, len(xs), k)],
    ),
)
"""Families over lists of numbers."""
