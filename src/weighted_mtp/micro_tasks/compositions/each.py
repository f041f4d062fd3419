"""Each: one operation on every item of a list, then a test that says which results count."""

from __future__ import annotations

from random import Random
from string import Template
from typing import Any

from weighted_mtp.micro_tasks.compositions.pair import Pair
from weighted_mtp.micro_tasks.compositions.parts import Part
from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import single, telling

SCANNED = range(120)
ENOUGH = 8
"""Of the scanned numbers, how many must pass the test, and how many fail it."""
WORDINGS = (
    "Write a function $f: for every x in xs, $first_x; return $what that are $which.",
    "Define $f: $first_each, then give $what that are $which.",
    "I need $f to $first_every and return $what that are $which.",
    "Given xs, $f should $first_item and then return $what that are $which.",
)


def each(inner: Part, test: Part, total: bool) -> Family:
    """The problems that ask for those `inner(x)` that pass a test, as a list or as their sum."""
    pair = Pair(inner, test)

    def expected(xs: list[int], **params: Any) -> Any:
        f, passes = pair.steps(params)
        kept = [y for y in map(f, xs) if passes(y)]
        return sum(kept) if total else kept

    def sides(params: Params) -> tuple[list[int], list[int]]:
        """Numbers whose results pass the test, and others."""
        f, passes = pair.steps(params)
        passed = [passes(f(x)) for x in SCANNED]
        return [x for x in SCANNED if passed[x]], [x for x in SCANNED if not passed[x]]

    def valid(**params: Any) -> bool:
        """Some numbers count and some do not, and those that do were changed, not to nothing."""
        if not pair.parts_valid(params):
            return False
        f = pair.steps(params)[0]
        hits, misses = sides(params)
        changed = sum(f(x) not in (0, x) for x in hits)
        return min(len(hits), len(misses)) >= ENOUGH and changed >= ENOUGH // 2

    def behaviour(**params: Any) -> list[Any]:
        f, passes = pair.steps(params)
        results = [f(x) for x in SCANNED]
        return [y if passes(y) else None for y in results]

    def inputs(rng: Random, params: Params) -> list[Arguments]:
        hits, misses = sides(params)
        pool = []
        for count in (1, 2, 2, 3, 3):
            values = rng.sample(hits, count) + rng.sample(misses, rng.randint(1, 2))
            rng.shuffle(values)
            pool.append(values)
        return single([*telling(pool, lambda xs: expected(xs, **params), 5), []])

    says = {
        "first_x": pair.first("x"),
        "first_each": pair.first("each x in xs"),
        "first_every": pair.first("every number in xs"),
        "first_item": pair.first("each item"),
        "what": "the sum of the results" if total else "those results",
        "which": pair.which(),
        "f": "$f",
    }
    return pair.family(
        "total_matching" if total else "keep_matching",
        2 if total else 1,
        entry_points=("map_total", "gather", "collect")
        if total
        else ("map_keep", "sift", "chosen"),
        arguments="xs",
        wordings=tuple(Template(wording).substitute(says) for wording in WORDINGS),
        styles=_styles(pair, total),
        inputs=inputs,
        expected=expected,
        valid=valid,
        behaviour=behaviour,
    )


def _styles(pair: Pair, total: bool) -> dict[str, str]:
    y, test = pair.inner_code("x"), pair.outer_code("y")
    if total:
        start, add, end = "t = 0", "t += y", "t"
        kept, chosen = f"sum([y for y in ys if {test}])", f"sum(filter(lambda y: {test}, ys))"
    else:
        start, add, end = "out = []", "out.append(y)", "out"
        kept, chosen = f"[y for y in ys if {test}]", f"list(filter(lambda y: {test}, ys))"
    return {
        "comprehension": f"def $f(xs):\n    ys = [{y} for x in xs]\n    return {kept}",
        "loop": f"def $f(xs):\n    {start}\n    for x in xs:\n        y = {y}\n"
        f"        if {test}:\n            {add}\n    return {end}",
        "filter": f"def $f(xs):\n    ys = map(lambda x: {y}, xs)\n    return {chosen}",
    }
