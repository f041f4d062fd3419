"""Two operations to be put together: their clauses, their code, and which pairs are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from string import Template
from typing import Any

from weighted_mtp.micro_tasks.compositions.parts import Part
from weighted_mtp.micro_tasks.family import Family, Params

HELD_OUT_TENTHS = 3
"""Of ten pairs, how many occur in the split "compositions" only."""


def is_held_out(first: str, second: str) -> bool:
    """Whether two operations meet in the split "compositions" only, in either order."""
    pair = "+".join(sorted((first, second)))
    return int(hashlib.sha256(pair.encode()).hexdigest(), 16) % 10 < HELD_OUT_TENTHS


class Pair:
    """An inner and an outer part; their parameters `a` are the composition's `i_a` and `o_a`."""

    def __init__(self, inner: Part, outer: Part) -> None:
        self.inner, self.outer = inner, outer

    def first(self, it: str) -> str:
        """The inner clause about `it`."""
        return _fill(self.inner.says, self.inner, "i_", it=it)

    def then(self, it: str) -> str:
        """The outer clause about `it`."""
        return _fill(self.outer.says, self.outer, "o_", it=it)

    def which(self) -> str:
        """What those are that pass the outer test."""
        return _fill(self.outer.which, self.outer, "o_")

    def inner_code(self, it: str) -> str:
        """The inner expression over `it`."""
        return _fill(self.inner.code, self.inner, "i_", it=it)

    def outer_code(self, it: str) -> str:
        """The outer expression over `it`."""
        return _fill(self.outer.code, self.outer, "o_", it=it)

    def steps(self, params: Params) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """The two operations of one problem, as functions."""
        i, o = _own(self.inner, "i_", params), _own(self.outer, "o_", params)
        f, g = self.inner.family.expected, self.outer.family.expected
        return (lambda x: f(x, **i)), (lambda x: g(x, **o))

    def parts_valid(self, params: Params) -> bool:
        """Whether each part is a problem of its own family."""
        i, o = _own(self.inner, "i_", params), _own(self.outer, "o_", params)
        return self.inner.family.valid(**i) and self.outer.family.valid(**o)

    def family(self, shape: str, extra_difficulty: int, **fields: Any) -> Family:
        """The family of the pair in one shape; `fields` are what depends on the shape.

        It is harder than both its parts, so wherever it occurs they occur too.
        """
        sides = (("i_", self.inner), ("o_", self.outer))
        hardest = max(part.family.difficulty for _, part in sides)
        return Family(
            name=f"{shape}/{self.inner.name}+{self.outer.name}",
            difficulty=min(11, hardest + extra_difficulty),
            space={i + name: values for i, part in sides for name, values in part.space.items()},
            phrases={
                i + name: words
                for i, part in sides
                for name, words in part.family.phrases.items()
                if len(part.space[name]) > 1
            },
            group=shape,
            parts=(self.inner.name, self.outer.name),
            held_out=is_held_out(self.inner.name, self.outer.name),
            **fields,
        )


def _fill(template: str, part: Part, prefix: str, **more: str) -> str:
    """A part's template, its parameters under the composition's names."""
    names = [*part.space, *(f"{name}_words" for name in part.family.phrases)]
    return Template(template).substitute({name: f"${prefix}{name}" for name in names} | more)


def _own(part: Part, prefix: str, params: Params) -> dict[str, Any]:
    return {name: params[prefix + name] for name in part.space}
