"""Families over lists: what each element becomes, what is kept, what it adds up to."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import COMPARE, COMPARE_WORDS, near, numbers, single


def _some_lists(rng: Random, p: Params) -> list[Arguments]:
    return single([numbers(rng, n, 0, 60) for n in (1, 2, 3, 4, 5)])


def _maybe_empty(rng: Random, p: Params) -> list[Arguments]:
    return single([[], *(numbers(rng, n, 0, 60) for n in (1, 2, 3, 5))])


def _near_a(rng: Random, p: Params) -> list[Arguments]:
    return single([*(near(rng, p["a"], n) for n in (1, 2, 3, 4)), [], [p["a"]]])


def _lead_inputs(rng: Random, p: Params) -> list[Arguments]:
    """Lists that go on for a while on the right side of `a`, then leave it, then come back."""
    a, sign = p["a"], 1 if p["op"] == ">" else -1
    lists = []
    for lead in (0, 1, 2, 3):
        inside = [a + sign * rng.randint(1, 5) for _ in range(lead)]
        lists.append([*inside, a - sign * rng.randint(0, 1), a + sign])
    return single([*lists, [a + sign, a + 2 * sign], [a]])


def _with_repeats(rng: Random, p: Params) -> list[Arguments]:
    lists = []
    for n in (2, 3, 4):
        values = numbers(rng, n, 0, 60)
        lists.append([*values, rng.choice(values), values[0]])
    return single([*lists, numbers(rng, 3, 0, 60), []])


def _with_two(rng: Random, p: Params) -> list[Arguments]:
    a, b = p["a"], p["b"]
    lists = []
    for extra in (1, 2, 3):
        values = [a, b, a, *numbers(rng, extra, 0, 60)]
        rng.shuffle(values)
        lists.append(values)
    return single([*lists, [a + 1, b + 1, a], [b]])


def _leading(xs: list[int], op: str, a: int) -> list[int]:
    end = next((i for i, x in enumerate(xs) if not COMPARE[op](x, a)), len(xs))
    return xs[:end]


def _between_items(xs: list[int], a: int) -> list[int]:
    return [y for x in xs for y in (a, x)][1:]


def _highest_yet(xs: list[int], a: int) -> list[Any]:
    return [max(a, *xs[: i + 1]) for i in range(len(xs))]


FAMILIES = (
    Family(
        name="add_each",
        difficulty=1,
        entry_points=("add_each", "raise_all", "plus_all"),
        arguments="xs",
        space={"a": range(1, 501)},
        wordings=(
            "Write a function $f that adds $a to every number in xs.",
            "Define $f: a list of the numbers in xs, each $a larger.",
            "I need $f to return xs with $a added to each element.",
            "Given a list xs, $f should increase all its items by $a.",
            "Implement $f so that each x of xs becomes x plus $a.",
        ),
        styles={
            "comprehension": "def $f(xs):\n    return [x + $a for x in xs]",
            "loop": "def $f(xs):\n    out = []\n    for x in xs:\n        out.append(x + $a)\n"
            "    return out",
            "map": "def $f(xs):\n    return list(map(lambda x: x + $a, xs))",
        },
        inputs=_maybe_empty,
        expected=lambda xs, a: [x + a for x in xs],
    ),
    Family(
        name="sum_beyond",
        difficulty=2,
        entry_points=("sum_beyond", "sum_if", "partial_sum"),
        arguments="xs",
        space={"op": ("<", ">"), "a": range(5, 230)},
        phrases={"op": COMPARE_WORDS},
        wordings=(
            "Write a function $f that adds up the numbers in xs $op_words $a.",
            "Define $f: the sum of all x in xs that are $op_words $a.",
            "What do the elements of xs $op_words $a add up to? Write $f.",
            "I need $f to total only those numbers in xs that are $op_words $a.",
            "Given xs, $f should sum each item $op_words $a and skip the others.",
        ),
        styles={
            "sum": "def $f(xs):\n    return sum([x for x in xs if x $op $a])",
            "loop": "def $f(xs):\n    t = 0\n    for x in xs:\n        if x $op $a:\n"
            "            t += x\n    return t",
            "filter": "def $f(xs):\n    return sum(filter(lambda x: x $op $a, xs))",
        },
        inputs=_near_a,
        expected=lambda xs, op, a: sum(x for x in xs if COMPARE[op](x, a)),
    ),
    Family(
        name="spread",
        difficulty=2,
        entry_points=("spread", "extent", "span"),
        arguments="xs",
        space={"a": range(2, 432)},
        wordings=(
            "Write a function $f that returns the largest minus the smallest of xs, times $a.",
            "Define $f: $a times the difference between the maximum and minimum of xs.",
            "How far apart are the ends of xs, biggest minus smallest, times $a? Write $f.",
            "I need $f to multiply the spread of xs (max minus min) by $a.",
            "Given xs, $f should subtract its least number from its greatest and scale by $a.",
        ),
        styles={
            "max": "def $f(xs):\n    return (max(xs) - min(xs)) * $a",
            "sorted": "def $f(xs):\n    ys = sorted(xs)\n    return (ys[-1] - ys[0]) * $a",
            "loop": "def $f(xs):\n    low = high = xs[0]\n    for x in xs:\n"
            "        low = min(low, x)\n        high = max(high, x)\n"
            "    return (high - low) * $a",
        },
        inputs=_some_lists,
        expected=lambda xs, a: (max(xs) - min(xs)) * a,
    ),
    Family(
        name="without",
        difficulty=2,
        entry_points=("without", "remove_two", "drop_values"),
        arguments="xs",
        space={"a": range(40), "b": range(1, 41)},
        valid=lambda a, b: a < b,
        wordings=(
            "Write a function $f that returns xs without the numbers $a and $b.",
            "Define $f: all of xs that is neither $a nor $b.",
            "I need $f to remove every $a and every $b from xs.",
            "Given a list xs, $f should leave out each $a and $b and keep the rest.",
            "Drop whatever equals $a or $b from xs; name the function $f.",
        ),
        styles={
            "comprehension": "def $f(xs):\n    return [x for x in xs if x != $a and x != $b]",
            "loop": "def $f(xs):\n    out = []\n    for x in xs:\n"
            "        if x not in [$a, $b]:\n            out.append(x)\n    return out",
            "filter": "def $f(xs):\n    return list(filter(lambda x: x not in ($a, $b), xs))",
        },
        inputs=_with_two,
        expected=lambda xs, a, b: [x for x in xs if x not in (a, b)],
    ),
    Family(
        name="steps_between",
        difficulty=3,
        entry_points=("steps_between", "changes", "deltas"),
        arguments="xs",
        space={"a": range(2, 432)},
        wordings=(
            "Write a function $f that lists the differences of neighbours in xs, times $a.",
            "Define $f: each number in xs minus the one before it, multiplied by $a.",
            "By how much does xs rise at every step? List that times $a with $f.",
            "I need $f to return $a times the change from each item of xs to the next.",
            "Given xs, $f should subtract each item from the one after it and scale by $a.",
        ),
        styles={
            "zip": "def $f(xs):\n    return [(y - x) * $a for x, y in zip(xs, xs[1:])]",
            "range": "def $f(xs):\n"
            "    return [(xs[i] - xs[i - 1]) * $a for i in range(1, len(xs))]",
            "loop": "def $f(xs):\n    out = []\n    last = xs[0]\n    for x in xs[1:]:\n"
            "        out.append((x - last) * $a)\n        last = x\n    return out",
        },
        inputs=_some_lists,
        expected=lambda xs, a: [(y - x) * a for x, y in pairwise(xs)],
    ),
    Family(
        name="leading",
        difficulty=3,
        entry_points=("leading", "take_while", "beginning"),
        arguments="xs",
        space={"op": ("<", ">"), "a": range(10, 220)},
        phrases={"op": COMPARE_WORDS},
        wordings=(
            "Write a function $f that takes numbers from the start of xs while $op_words $a.",
            "Define $f: xs up to the first number that is not $op_words $a.",
            "I need $f to return the items of xs before the first one not $op_words $a.",
            "Given xs, $f should keep its beginning as long as numbers are $op_words $a.",
            "Read xs from the left and stop once a number isn't $op_words $a; call it $f.",
        ),
        styles={
            "break": "def $f(xs):\n    out = []\n    for x in xs:\n        if not x $op $a:\n"
            "            break\n        out.append(x)\n    return out",
            "slice": "def $f(xs):\n    for i, x in enumerate(xs):\n        if not x $op $a:\n"
            "            return xs[:i]\n    return xs",
            "takewhile": "def $f(xs):\n    from itertools import takewhile\n"
            "    return list(takewhile(lambda x: x $op $a, xs))",
        },
        inputs=_lead_inputs,
        expected=_leading,
    ),
    Family(
        name="distinct",
        difficulty=4,
        entry_points=("distinct", "unique", "no_repeats"),
        arguments="xs",
        space={"a": range(1, 431)},
        wordings=(
            "Write a function $f that drops repeats from xs and adds $a to what is left.",
            "Define $f: the different values of xs in order of appearance, each plus $a.",
            "I need $f to list every value of xs once, as first seen, with $a added.",
            "Given xs, $f should keep the first of equal numbers and add $a to each kept.",
            "Remove duplicates from xs, keep the order, add $a to each; name it $f.",
        ),
        styles={
            "loop": "def $f(xs):\n    out = []\n    for x in xs:\n        if x + $a not in out:\n"
            "            out.append(x + $a)\n    return out",
            "dict": "def $f(xs):\n    return [x + $a for x in dict.fromkeys(xs)]",
            "before": "def $f(xs):\n"
            "    return [x + $a for i, x in enumerate(xs) if x not in xs[:i]]",
        },
        inputs=_with_repeats,
        expected=lambda xs, a: [x + a for x in dict.fromkeys(xs)],
    ),
    Family(
        name="intersperse",
        difficulty=4,
        entry_points=("intersperse", "insert_between", "weave"),
        arguments="xs",
        space={"a": range(430)},
        wordings=(
            "Write a function $f that puts $a between all neighbours in xs.",
            "Define $f: the items of xs with a $a between each two of them.",
            "I need $f to insert $a between every pair of adjacent elements of xs.",
            "Given xs, $f should return it with the number $a after each item but the last.",
            "Separate the numbers of xs by $a, giving one flat list; call that $f.",
        ),
        styles={
            "slice": "def $f(xs):\n    out = []\n    for x in xs:\n        out += [$a, x]\n"
            "    return out[1:]",
            "index": "def $f(xs):\n    out = []\n    for i, x in enumerate(xs):\n"
            "        if i > 0:\n            out.append($a)\n        out.append(x)\n"
            "    return out",
            "comprehension": "def $f(xs):\n    return [y for x in xs for y in [$a, x]][1:]",
        },
        inputs=_maybe_empty,
        expected=_between_items,
    ),
    Family(
        name="highest_yet",
        difficulty=4,
        entry_points=("highest_yet", "running_max", "records"),
        arguments="xs",
        space={"a": range(5, 435)},
        wordings=(
            "Write a function $f that lists the highest number so far at each x in xs, from $a.",
            "Define $f: the running maximum of xs, starting with $a.",
            "I need $f to give, for each place in xs, the largest of $a and all up to there.",
            "Given xs, $f should start at $a and list the record after every number.",
            "For every x in xs, what is the biggest value yet, $a included? Write $f.",
        ),
        styles={
            "loop": "def $f(xs):\n    best = $a\n    out = []\n    for x in xs:\n"
            "        best = max(best, x)\n        out.append(best)\n    return out",
            "branch": "def $f(xs):\n    best = $a\n    out = []\n    for x in xs:\n"
            "        if x > best:\n            best = x\n        out.append(best)\n"
            "    return out",
            "slices": "def $f(xs):\n    return [max([$a] + xs[:i + 1]) for i in range(len(xs))]",
        },
        inputs=_near_a,
        expected=_highest_yet,
    ),
)
"""Families over lists: what each element becomes, what is kept, what it adds up to."""
