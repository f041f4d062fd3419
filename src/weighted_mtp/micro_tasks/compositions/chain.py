"""Chains: the outer operation applied to what the inner one gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from string import Template
from typing import Any

from weighted_mtp.micro_tasks.compositions.pair import Pair
from weighted_mtp.micro_tasks.compositions.parts import Kind, Part
from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import LETTERS, numbers, single, telling, text

SCANNED = range(120)
WORDINGS = (
    "Write a function $f: first $first_x, then $then_result.",
    "Define $f in two steps: $first_x; then $then_that.",
    "I need $f to $first_x and then $then_outcome.",
    "Given $x, $f should $first_it, and after that $then_result.",
    "Implement $f: $first_x, and with the outcome go on: $then_it.",
)
VARIABLES: Mapping[Kind, str] = {"number": "x", "text": "s", "list": "xs"}
ENTRY_POINTS: Mapping[Kind, tuple[str, ...]] = {
    "number": ("two_steps", "combine", "process"),
    "text": ("transform", "rework", "edit"),
    "list": ("pipeline", "prepare", "handle"),
}


def chain(inner: Part, outer: Part) -> Family:
    """The problems that ask for `outer(inner(x))`."""
    pair = Pair(inner, outer)
    variable, probes = VARIABLES[inner.takes], PROBES[inner.takes]

    def expected(value: Any, **params: Any) -> Any:
        f, g = pair.steps(params)
        return g(f(value))

    def behaviour(**params: Any) -> list[Any]:
        f, g = pair.steps(params)
        return [g(f(value)) for value in probes]

    def valid(**params: Any) -> bool:
        """Both steps do something, and the answer is not nearly always the same."""
        if not pair.parts_valid(params):
            return False
        f, g = pair.steps(params)
        between = [f(value) for value in probes]
        after = [g(value) for value in between]
        commonest = Counter(map(repr, after)).most_common(1)[0][1] / len(after)
        outer_alone = inner.takes == inner.gives and [g(value) for value in probes] == after
        limit = 0.9 if outer.gives == "truth" else 0.6
        return after != between and not outer_alone and commonest <= limit

    def inputs(rng: Random, params: Params) -> list[Arguments]:
        f, g = pair.steps(params)
        pool = _pool(rng, inner.takes, params, lambda value: g(f(value)))
        return single(telling(pool, lambda value: g(f(value)), 6))

    says = {
        "first_x": pair.first(variable),
        "first_it": pair.first("it"),
        "then_result": pair.then("the result"),
        "then_that": pair.then("that"),
        "then_outcome": pair.then("what comes out"),
        "then_it": pair.then("it"),
        "x": variable,
        "f": "$f",
    }
    return pair.family(
        f"chain_{inner.takes}s",
        1,
        entry_points=ENTRY_POINTS[inner.takes],
        arguments=variable,
        wordings=tuple(Template(wording).substitute(says) for wording in WORDINGS),
        styles=_styles(pair, variable),
        inputs=inputs,
        expected=expected,
        valid=valid,
        behaviour=behaviour,
    )


def _styles(pair: Pair, x: str) -> dict[str, str]:
    inner = pair.inner_code(x)
    styles = {
        "steps": f"def $f({x}):\n    y = {inner}\n    return {pair.outer_code('y')}",
        "in_place": f"def $f({x}):\n    {x} = {inner}\n    {x} = {pair.outer_code(x)}\n"
        f"    return {x}",
    }
    if pair.outer.code.count("$it") == 1:
        styles["nested"] = f"def $f({x}):\n    return {pair.outer_code(f'({inner})')}"
    else:
        styles["helper"] = (
            f"def $f({x}):\n    def then(y):\n        return {pair.outer_code('y')}\n"
            f"    return then({inner})"
        )
    return styles


def _pool(rng: Random, kind: Kind, params: Params, answer: Any) -> Sequence[Any]:
    """Inputs to choose from, those that tell most first."""
    if kind == "number":
        answers = [int(answer(value)) for value in SCANNED]
        turns = [x for x in SCANNED[1:-1] if 2 * answers[x] != answers[x - 1] + answers[x + 1]]
        pool = rng.sample(turns, min(len(turns), 2))
        return [*pool, *(value - 1 for value in pool), *numbers(rng, 30, 0, 150)]
    if kind == "text":
        return _texts(rng, "".join(v for v in params.values() if isinstance(v, str)))
    around = [v + step for v in params.values() if type(v) is int for step in (-1, 0, 1)]
    values = [v for v in around if 0 <= v < 100] + numbers(rng, 12, 0, 99)
    return [rng.choices(values, k=n) for n in rng.sample((2, 3, 3, 4, 4, 5, 5, 6, 6, 7), 10)]


def _texts(rng: Random, special: str) -> list[str]:
    """Texts rich in the letters among `special`; the first has more than letters."""
    alphabet = LETTERS + "".join(c for c in special if c in LETTERS) * 6
    lengths = rng.sample((1, 2, 3, 4, 5, 6, 8, 14), 8)
    return [
        text(rng, 3, alphabet) + " A" + text(rng, 2),
        *(text(rng, n, alphabet) for n in lengths),
    ]


PROBES: Mapping[Kind, Sequence[Any]] = {
    "number": (*range(40), 50, 64, 77, 99, 100, 123, 150, 200),
    "text": ("", LETTERS, LETTERS[::-1], *_texts(Random("probes"), ""), "moonlight", "jazz"),
    "list": [Random(f"probe {n}").choices(range(n * 9), k=n) for n in range(1, 11)],
}
"""Inputs on which a composition shows what it does."""
