"""The families of micro tasks: every solution right, every constant said, every mutant runs."""

import ast
import json
from collections import Counter
from itertools import islice
from random import Random

import pytest

from weighted_mtp.core.types import Program
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import (
    FAMILIES,
    OPERATORS,
    SINGLES,
    Family,
    mutations,
    pose,
    up_to,
)
from weighted_mtp.micro_tasks.family import normalise
from weighted_mtp.micro_tasks.packing import PACK, run_packed

NAMES = [family.name for family in SINGLES]


@pytest.fixture(scope="module")
def judge():
    with Sandbox() as sandbox:
        yield sandbox


def some_tasks(family: Family, count: int, seed: int = 0):
    rng = Random(seed)
    return [pose(problem, rng) for problem in islice(family.problems(rng), count)]


# --- the families ----------------------------------------------------------------------------


def test_enough_families_with_room_for_problems():
    assert len(SINGLES) >= 40
    assert len(set(NAMES)) == len(SINGLES)
    for family in SINGLES:
        assert sum(1 for _ in family.problems()) >= 400, family.name
        assert len(family.styles) >= 3
        assert len(set(family.wordings)) >= 4, family.name
        assert len(family.entry_points) >= 2


def test_difficulties_span_the_range_and_most_are_low():
    difficulties = Counter(family.difficulty for family in SINGLES)
    assert set(difficulties) == set(range(1, 12))
    assert sum(difficulties[level] for level in range(1, 6)) >= 40


def test_up_to_takes_what_is_no_harder():
    assert {family.difficulty for family in up_to(3)} == {1, 2, 3}
    assert up_to(11) == FAMILIES


def test_entry_points_tell_families_apart():
    names = Counter(name for family in SINGLES for name in family.entry_points)
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("family", SINGLES, ids=NAMES)
def test_a_family_hangs_together(family):
    for task in some_tasks(family, 12):
        assert 4 <= len(task.tests) <= 10
        assert f"`{task.entry_point}({family.arguments})`" in task.instruction
        assert "$" not in task.instruction
        assert len(set(task.solutions.values())) == len(family.styles)
        expected = [test.rpartition(" == ")[2] for test in task.tests]
        assert len(set(expected)) > 1, "a constant would pass"
        for source in task.solutions.values():
            assert source == normalise(source)
            assert [node.name for node in ast.parse(source).body] == [task.entry_point]
    for wording in family.wordings:
        for name in family.space:
            said = f"${name}" in wording or f"${{{name}}}" in wording
            assert said, f"{wording!r} keeps {name} to itself"


def test_every_style_of_every_family_passes_its_tests(judge):
    labels, programs = [], []
    for family in SINGLES:
        for task in some_tasks(family, 8, seed=1):
            for style, source in task.solutions.items():
                labels.append((task.problem.task_id, style, task.tests))
                programs.append(Program(source, task.tests))
    outcomes = run_packed(judge, programs)
    assert [x for x in zip(labels, outcomes, strict=True) if not x[1].passed] == []


def test_problems_of_a_family_differ_in_meaning():
    """No two parameter choices give one function, as far as many inputs can tell."""
    for family in SINGLES:
        problems = list(islice(family.problems(Random(0)), 30))
        pool = [x for p in problems for x in family.inputs(Random(p.digest), p.params)]
        answers = {
            json.dumps([answer(family, x, problem.params) for x in pool]) for problem in problems
        }
        assert len(answers) == len(problems), family.name


def answer(family: Family, arguments, params):
    try:
        return family.expected(*arguments, **params)
    except IndexError:  # an input of another problem, that this one does not speak of
        return "none"


# --- mutations -------------------------------------------------------------------------------


def test_operators_change_programs_and_leave_them_programs():
    seen = Counter()
    for family in SINGLES:
        (task,) = some_tasks(family, 1)
        for style, source in task.solutions.items():
            for mutation in mutations(style, source):
                seen[mutation.operator] += 1
                changed = mutation.source()
                assert changed == normalise(changed)
    assert set(seen) == set(OPERATORS)
    assert len(seen) >= 8


def test_a_mutation_leaves_the_program_it_came_from():
    source = "def f(x, y):\n    z = x - y\n    return z * 2\n"
    every = list(mutations("x", source))
    before = {ast.dump(mutation.tree) for mutation in every}
    changed = [mutation.source() for mutation in every]
    assert (
        {ast.dump(mutation.tree) for mutation in every} == before == {ast.dump(ast.parse(source))}
    )
    assert source not in changed
    assert "def f(x, y):\n    z = x - y\n    return x * 2\n" in changed


def test_loops_that_might_not_end_are_not_mutated():
    assert list(mutations("x", "def f(n):\n    while n:\n        n -= 1\n")) == []


def test_no_list_grows_under_its_loop():
    source = "def f(xs):\n    ys = [1]\n    for x in xs:\n        ys.append(x)\n    return ys\n"
    for mutation in mutations("x", source):
        assert "for x in ys" not in mutation.source()
        assert "xs.append" not in mutation.source()


# --- packs -----------------------------------------------------------------------------------

TESTS = ("assert f(1) == 2", "assert f(2) == 4", "assert f(0) == 0")
SOLUTIONS = {
    "def f(x):\n    return 2 * x": ("passed", 3),
    "def f(x):\n    return x + 1": ("failed", 1),
    "def f(x):\n    return 2 // x": ("error", 1),
    "def f(x)": ("error", 0),
    "def g(x):\n    return 2 * x": ("error", 0),
}


def outcomes(judge, sources):
    seen = run_packed(judge, [Program(source, TESTS) for source in sources])
    return [(outcome.status, outcome.tests_passed) for outcome in seen]


def test_a_pack_says_of_every_program_how_it_did(judge):
    sources = list(SOLUTIONS) * (2 * PACK // len(SOLUTIONS))
    assert outcomes(judge, sources) == list(SOLUTIONS.values()) * (2 * PACK // len(SOLUTIONS))
    assert outcomes(judge, []) == []


def test_one_program_does_not_take_its_pack_down():
    endless, leaves = "def f(x):\n    while True: pass", "raise SystemExit"
    with Sandbox(timeout=1) as judge:
        seen = outcomes(judge, [*SOLUTIONS, endless, leaves])
    assert seen == [*SOLUTIONS.values(), ("timeout", 0), ("exited", 0)]


def test_programs_of_a_pack_do_not_see_each_other(judge):
    assert outcomes(judge, ["def f(x):\n    return 2 * x\nh = f", "f = h"])[1] == ("error", 0)
