"""Every family, and the drawing of problems from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.micro_tasks.compositions import COMPOSITIONS
from weighted_mtp.micro_tasks.families import SINGLES
from weighted_mtp.micro_tasks.family import Family, Problem, Split

FAMILIES: tuple[Family, ...] = (*SINGLES, *COMPOSITIONS)
"""The families of one operation and those that compose two."""


def up_to(
    difficulty: int,
    labels: Sequence[str] | None = None,
    max_constant: int | None = None,
    marked: bool = True,
) -> tuple[Family, ...]:
    """The families of at most this difficulty, all or those of some labels.

    Args:
        max_constant: leaves only problems whose numbers are no larger.
        marked: whether names bear a random mark.

    Raises:
        UserError: no family has one of the labels, or none has a problem left.
    """
    known = {family.label for family in FAMILIES}
    unknown = sorted(set(labels or ()) - known)
    if unknown:
        raise UserError(
            f"micro tasks: no family {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    chosen = [
        replace(family, space=_small(family.space, max_constant), marked=marked)
        for family in FAMILIES
        if family.difficulty <= difficulty and (labels is None or family.label in labels)
    ]
    usable = tuple(family for family in chosen if all(family.space.values()))
    if not usable:
        raise UserError("micro tasks: these settings leave no problem at all")
    return usable


def _small(space: Mapping[str, Sequence[Any]], most: int | None) -> dict[str, Sequence[Any]]:
    """A space without the numbers above `most`."""
    if most is None:
        return dict(space)
    return {
        name: [v for v in values if not (isinstance(v, int) and v > most)]
        for name, values in space.items()
    }


def draw_problems(
    count: int, seed: int, split: Split, families: Sequence[Family] = FAMILIES
) -> list[Problem]:
    """Different problems of one split, taken from the families in turn, a group as one family.

    Raises:
        UserError: the families hold fewer.
    """
    groups: dict[str, list[Family]] = {}
    for family in families:
        if family.held_out == (split == "compositions"):
            groups.setdefault(family.label, []).append(family)
    queues = []
    for label, members in groups.items():
        Random(f"group/{seed}/{split}/{label}").shuffle(members)
        queues.append(_in_turn([_shuffled(family, seed, split) for family in members]))
    Random(f"families/{seed}/{split}").shuffle(queues)
    most = sum(math.prod(map(len, x.space.values())) for some in groups.values() for x in some)
    problems = list(itertools.islice(_in_turn(queues), count)) if count <= most else []
    if len(problems) < count:
        held = f"fewer than {most}" if count > most else str(len(problems))
        raise UserError(f"micro tasks: split {split!r} holds {held} problems, not {count}")
    Random(f"order/{seed}/{split}").shuffle(problems)
    return problems


def _shuffled(family: Family, seed: int, split: Split) -> Iterator[Problem]:
    """A family's problems of one split in random order, each once."""
    seen = set()
    for problem in family.problems(Random(f"draw/{seed}/{split}/{family.name}")):
        if problem.split == split and problem.task_id not in seen:
            seen.add(problem.task_id)
            yield problem


def _in_turn(queues: Sequence[Iterator[Problem]]) -> Iterator[Problem]:
    """One of each, then another of each, while they last."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return (problem for problem in turns if problem is not None)
