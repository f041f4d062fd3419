"""What a family of problems is: a parameter space, words, solutions, inputs, right answers."""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from string import Template
from typing import Any

from weighted_mtp.core.choices import SPLITS as SPLITS
from weighted_mtp.core.choices import Split as Split

_WORDS = """
ant ape ash bat bee bay bow box cap car cat cod cow cub dew doe dog elk elm ewe eel fig fir fly
fog fox gem gnu hat hay hen hog ice ink ivy jam jar jay jet kid kit koi log map mud net nut oak
oar owl pea pen pie pig pin pod ram ray rye sea sky sun tar tea tin toe urn van vat wax web yak
yam zoo
"""
MARKS = tuple(_WORDS.split())
"""What follows a function's name: it must be read from the instruction, it cannot be guessed."""
Params = Mapping[str, Any]
Arguments = tuple[Any, ...]


def _always(**_: Any) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """Problems that differ in constants only.

    Texts are `string.Template`s: `$f` is the entry point, `$a` the parameter `a`, and `$a_words`
    how `phrases["a"]` says it. Wordings name the function through `$f`; solutions define it.

    Attributes:
        name: unique, stable (it is part of every problem's identity).
        difficulty: 1 to 11.
        entry_points: function names a problem may ask for, before their mark.
        arguments: the argument list, as source.
        space: every parameter's possible values.
        wordings: instructions; each says everything that matters.
        styles: correct solutions, by name of the style.
        inputs: draws the test inputs of one problem, edge cases included.
        expected: the right answer, called as `expected(*arguments, **params)`.
        phrases: words for values that are written otherwise in prose than in code.
        valid: whether a point of the space is a problem (called with the parameters).
        group: families of one group take their turns as if they were one; "" for none.
        parts: what a composition composes, by the names of the families they come from.
        marked: names end in a random mark, which must be read from the instruction.
        held_out: all problems are of the split "compositions", and none of any other.
        behaviour: what the function does, called with the parameters; problems that do the same
            are one. Left out where different parameters always mean different functions.
    """

    name: str
    difficulty: int
    entry_points: tuple[str, ...]
    arguments: str
    space: Mapping[str, Sequence[Any]]
    wordings: tuple[str, ...]
    styles: Mapping[str, str]
    inputs: Callable[[Random, Params], Sequence[Arguments]]
    expected: Callable[..., Any]
    phrases: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    valid: Callable[..., bool] = _always
    group: str = ""
    parts: tuple[str, ...] = ()
    marked: bool = True
    held_out: bool = False
    behaviour: Callable[..., Any] | None = None

    @property
    def label(self) -> str:
        """What rows call the family: its group, if it has one."""
        return self.group or self.name

    def problems(self, rng: Random | None = None) -> Iterator[Problem]:
        """Every problem of the family, in a fixed order or in random order.

        A composition's may repeat: other parameters, same behaviour, same `task_id`.
        """
        sizes = [len(values) for values in self.space.values()]
        total = math.prod(sizes)
        for place in range(total) if rng is None else _shuffled(total, rng):
            params = {}
            for name, values in self.space.items():
                place, index = divmod(place, len(values))
                params[name] = values[index]
            if self.valid(**params):
                yield Problem(self, params)

    def words(self, params: Params) -> dict[str, str]:
        """What the templates' names stand for, but for `$f`."""
        words = {name: str(value) for name, value in params.items()}
        for name, phrases in self.phrases.items():
            words[f"{name}_words"] = phrases[params[name]]
        return words


def _shuffled(count: int, rng: Random) -> Iterator[int]:
    """0 to `count` - 1 in random order, no more of it worked out than is read."""
    moved: dict[int, int] = {}
    for place in range(count):
        other = rng.randrange(place, count)
        yield moved.get(other, other)
        moved[other] = moved.get(place, place)


@dataclass(frozen=True)
class Problem:
    """One point of a family's space. Names and wording are not part of its identity."""

    family: Family
    params: Params

    @cached_property
    def digest(self) -> str:
        """A stable hash of family and parameters, or of family and behaviour."""
        if self.family.behaviour is not None:
            identity = repr(self.family.behaviour(**self.params))
        else:
            identity = ",".join(f"{name}={self.params[name]!r}" for name in sorted(self.params))
        return hashlib.sha256(f"{self.family.name}({identity})".encode()).hexdigest()

    @property
    def task_id(self) -> str:
        """`micro/<family>/<hash>`."""
        return f"micro/{self.family.label}/{self.digest[:10]}"

    @property
    def split(self) -> Split:
        """Where the problem lives, whatever the seed: 80 % train, 10 % each of the others."""
        if self.family.held_out:
            return "compositions"
        bucket = int(self.digest[-8:], 16) % 10
        return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


@dataclass(frozen=True)
class Task:
    """A problem put into words: what one person would be asked, and how answers are tested.

    Attributes:
        solutions: correct sources by style, formatted by `ast.unparse` like mutated ones, so
            that nothing but meaning tells right from wrong.
    """

    problem: Problem
    entry_point: str
    instruction: str
    tests: tuple[str, ...]
    solutions: Mapping[str, str]


def normalise(source: str) -> str:
    """The source as `ast.unparse` writes it."""
    return ast.unparse(ast.parse(source)) + "\n"


def pose(problem: Problem, rng: Random) -> Task:
    """Choose a name, a wording and test inputs for a problem."""
    family = problem.family
    entry_point = rng.choice(family.entry_points)
    if family.marked:
        entry_point += f"_{rng.choice(MARKS)}"
    words = family.words(problem.params) | {"f": entry_point}
    signature = f"`{entry_point}({family.arguments})`"
    wording = Template(rng.choice(family.wordings))
    solutions = {
        style: normalise(Template(text).substitute(words)) for style, text in family.styles.items()
    }
    tests = []
    for arguments in family.inputs(rng, problem.params):
        call = f"{entry_point}({', '.join(map(repr, arguments))})"
        tests.append(f"assert {call} == {family.expected(*arguments, **problem.params)!r}")
    return Task(
        problem=problem,
        entry_point=entry_point,
        instruction=wording.substitute(words | {"f": signature}),
        tests=tuple(dict.fromkeys(tests)),
        solutions=solutions,
    )
