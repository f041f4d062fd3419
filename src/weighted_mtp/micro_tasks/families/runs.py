"""Families about repeats and runs: how often, how long, how deep."""

from __future__ import annotations

from itertools import groupby
from random import Random

from weighted_mtp.micro_tasks.families.strings import MARKS
from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import COMPARE, COMPARE_WORDS, numbers, single, text

MORE_LESS = ("<", ">")


def _frequent_inputs(rng: Random, p: Params) -> list[Arguments]:
    a, k = p["a"], p["k"]
    lists = []
    for _ in range(4):
        below, above = max(0, a - rng.randint(1, 9)), a + rng.randint(1, 9)
        counts = {below: k, above: k, a: k, a + 12: k - 1, max(0, a - 12): k - 1}
        values = [value for value, count in counts.items() for _ in range(count)]
        rng.shuffle(values)
        lists.append(values)
    return single([*lists, [a + 1] * k])


def _streak_inputs(rng: Random, p: Params) -> list[Arguments]:
    a, k = p["a"], p["k"]
    sign = 1 if p["op"] == ">" else -1
    lists = []
    for lengths in ((k, k - 1), (k + 1, k), (k - 1, k - 1, k), (2 * k,), (k, k, 1)):
        values: list[int] = []
        for length in lengths:
            values += [a + sign * rng.randint(1, 9) for _ in range(length)]
            values.append(a)
        lists.append(values[:-1])
    return single(lists)


def _streaks(xs: list[int], k: int, op: str, a: int) -> int:
    hits = "".join("x" if COMPARE[op](x, a) else " " for x in xs)
    return sum(len(run) >= k for run in hits.split())


def _run_texts(rng: Random, p: Params) -> list[Arguments]:
    def runs(*lengths: int) -> str:
        return "".join(
            a * n for a, n in zip(rng.sample("abcdefgh", len(lengths)), lengths, strict=True)
        )

    return single([runs(1), runs(3, 1), runs(1, 2, 2), runs(2, 4), runs(1, 1, 3) + "a"])


def _brackets(rng: Random, p: Params) -> list[Arguments]:
    c, d = p["c"], p["d"]
    letters = text(rng, 3)
    return single(
        [
            letters,
            c + letters + d,
            c + c + letters[0] + d + d + c + d,
            c + d + c + letters[1] + d,
            c * 3 + d + letters[2] + d + c + d + d,
            letters[0] + c + c + d + c + c + d * 4,
        ]
    )


def _depth(s: str, c: str, d: str) -> int:
    return max(s[:i].count(c) - s[:i].count(d) for i in range(len(s) + 1))


def _window_inputs(rng: Random, p: Params) -> list[Arguments]:
    k = p["k"]
    return single([numbers(rng, n, 0, 60) for n in (k - 1, k, k + 1, k + 2, k + 4)])


FAMILIES = (
    Family(
        name="window_sums",
        difficulty=6,
        entry_points=("window_sums", "moving", "sliding"),
        arguments="xs",
        space={"k": range(2, 9), "b": range(1, 70)},
        wordings=(
            "Write a function $f that sums every $k neighbouring numbers in xs, each plus $b.",
            "Define $f: the sums of all windows of $k items in xs, with $b added to each.",
            "I need $f to slide a window of $k over xs and list each sum plus $b.",
            "Given xs, $f should return the moving sums of $k items, $b more each.",
            "Implement $f: for each $k items in a row in xs, their sum plus $b, as a list.",
        ),
        styles={
            "comprehension": "def $f(xs):\n    return [sum(xs[i:i + $k]) + $b "
            "for i in range(len(xs) - $k + 1)]",
            "loop": "def $f(xs):\n    out = []\n    for i in range(len(xs) - $k + 1):\n"
            "        t = $b\n        for x in xs[i:i + $k]:\n            t += x\n"
            "        out.append(t)\n    return out",
            "end": "def $f(xs):\n    out = []\n    for j in range($k, len(xs) + 1):\n"
            "        out.append(sum(xs[j - $k:j]) + $b)\n    return out",
        },
        inputs=_window_inputs,
        expected=lambda xs, k, b: [sum(xs[i : i + k]) + b for i in range(len(xs) - k + 1)],
    ),
    Family(
        name="run_lengths",
        difficulty=7,
        entry_points=("run_lengths", "compress", "squeeze"),
        arguments="s",
        space={"c": MARKS, "d": MARKS},
        valid=lambda c, d: c != d,
        wordings=(
            "Write a function $f that gives each run of equal letters in s as letter, '$c', "
            "length, joined by '$d'.",
            "Define $f: run-length encode s, 'aaab' as 'a${c}3${d}b${c}1', with '$c' and '$d'.",
            "I need $f to compress s: each run becomes its letter, '$c' and its length, "
            "with '$d' between runs.",
            "Given s, $f should join by '$d' its runs, each as the letter, then '$c', then "
            "how often.",
        ),
        styles={
            "groupby": "def $f(s):\n    from itertools import groupby\n"
            "    return '$d'.join([k + '$c' + str(len(list(g))) for k, g in groupby(s)])",
            "loop": "def $f(s):\n    out = []\n    n = 0\n    for i in range(len(s)):\n"
            "        n += 1\n        if s[i:i + 1] != s[i + 1:i + 2]:\n"
            "            out.append(s[i] + '$c' + str(n))\n            n = 0\n"
            "    return '$d'.join(out)",
            "while": "def $f(s):\n    out = []\n    while s:\n"
            "        rest = s.lstrip(s[0])\n"
            "        out.append(s[0] + '$c' + str(len(s) - len(rest)))\n        s = rest\n"
            "    return '$d'.join(out)",
        },
        inputs=_run_texts,
        expected=lambda s, c, d: d.join(f"{k}{c}{len(list(g))}" for k, g in groupby(s)),
    ),
    Family(
        name="depth",
        difficulty=8,
        entry_points=("depth", "nesting", "deepest"),
        arguments="s",
        space={"c": MARKS, "d": MARKS},
        valid=lambda c, d: c != d,
        wordings=(
            "Write a function $f: how deep s nests if '$c' opens a bracket and '$d' closes one.",
            "Define $f: the greatest depth in s, where '$c' goes one level in and '$d' one out.",
            "I need $f to find the deepest nesting of s with '$c' as opening and '$d' as closing.",
            "Read s: '$c' is one up, '$d' one down. Let $f return the highest level reached.",
            "Given s, $f should count '$c' as +1 and '$d' as -1 and return the largest total.",
        ),
        styles={
            "loop": "def $f(s):\n    t = best = 0\n    for x in s:\n        if x == '$c':\n"
            "            t += 1\n        if x == '$d':\n            t -= 1\n"
            "        best = max(best, t)\n    return best",
            "list": "def $f(s):\n    levels = [0]\n    for x in s:\n"
            "        step = (x == '$c') - (x == '$d')\n"
            "        levels.append(levels[-1] + step)\n    return max(levels)",
            "counts": "def $f(s):\n    return max([s[:i].count('$c') - s[:i].count('$d') "
            "for i in range(len(s) + 1)])",
        },
        inputs=_brackets,
        expected=_depth,
    ),
    Family(
        name="frequent",
        difficulty=8,
        entry_points=("frequent", "repeated", "common"),
        arguments="xs",
        space={"op": MORE_LESS, "a": range(10, 80), "k": range(2, 6)},
        phrases={"op": COMPARE_WORDS},
        wordings=(
            "Write a function $f that sorts the values $op_words $a found $k or more times in xs.",
            "Define $f: sorted values of xs $op_words $a that occur at least $k times.",
            "Implement $f to list in order what is $op_words $a and at least $k times in xs.",
            "Which values of xs are $op_words $a and occur $k times or more? Sort them with $f.",
            "I need $f to list, sorted, numbers $op_words $a that xs has at least $k times.",
        ),
        styles={
            "set": "def $f(xs):\n"
            "    return sorted([x for x in set(xs) if x $op $a and xs.count(x) >= $k])",
            "loop": "def $f(xs):\n    out = []\n    for x in sorted(set(xs)):\n"
            "        if x $op $a and xs.count(x) >= $k:\n            out.append(x)\n"
            "    return out",
            "dict": "def $f(xs):\n    d = {}\n    for x in xs:\n        d[x] = d.get(x, 0) + 1\n"
            "    return sorted([x for x in d if x $op $a and d[x] >= $k])",
        },
        inputs=_frequent_inputs,
        expected=lambda xs, op, a, k: sorted(
            x for x in set(xs) if COMPARE[op](x, a) and xs.count(x) >= k
        ),
    ),
    Family(
        name="streaks",
        difficulty=9,
        entry_points=("streaks", "runs", "spells"),
        arguments="xs",
        space={"op": MORE_LESS, "a": range(10, 80), "k": range(2, 6)},
        phrases={"op": COMPARE_WORDS},
        wordings=(
            "Write a function $f that counts the runs in xs of $k or more numbers $op_words $a.",
            "Define $f: how many streaks of at least $k numbers $op_words $a are in xs.",
            "Implement $f to count stretches of xs $op_words $a of length $k or more.",
            "I need $f to count how often $k or more numbers in a row in xs are $op_words $a.",
            "Given xs, $f should count its unbroken runs of at least $k numbers $op_words $a.",
        ),
        styles={
            "branches": "def $f(xs):\n    t = n = 0\n    for x in xs:\n        if x $op $a:\n"
            "            n += 1\n            if n == $k:\n                t += 1\n"
            "        else:\n            n = 0\n    return t",
            "expression": "def $f(xs):\n    t = n = 0\n    for x in xs:\n"
            "        n = n + 1 if x $op $a else 0\n        t += n == $k\n    return t",
            "split": "def $f(xs):\n    s = ''.join(['x' if x $op $a else ' ' for x in xs])\n"
            "    return len([w for w in s.split() if len(w) >= $k])",
        },
        inputs=_streak_inputs,
        expected=_streaks,
    ),
)
"""Families about repeats and runs: how often, how long, how deep."""
