"""Micro tasks: every label true, every split apart, every byte the same each time."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.data.micro_tasks import (
    FAMILIES,
    OPERATORS,
    SPLITS,
    Family,
    draw_problems,
    generate,
    mutations,
    pose,
)
from weighted_mtp.data.micro_tasks.family import normalise
from weighted_mtp.evaluation.sandbox import Sandbox

FAMILY_NAMES = [family.name for family in FAMILIES]


@pytest.fixture(scope="module")
def judge():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def rows(judge):
    return generate(108, 0, judge, "train", correct_per_problem=2, incorrect_per_problem=2)


def always_passed(programs):
    return [Verdict(True, "passed") for _ in programs]


def always_failed(programs):
    return [Verdict(False, "failed", "assert") for _ in programs]


def some_tasks(family: Family, count: int, seed: int = 0):
    rng = Random(seed)
    problems = rng.sample(list(family.problems()), count)
    return [pose(problem, rng) for problem in problems]


# --- the families ----------------------------------------------------------------------------


def test_enough_families_with_room_for_problems():
    assert len(FAMILIES) >= 16
    assert len(set(FAMILY_NAMES)) == len(FAMILIES)
    for family in FAMILIES:
        assert sum(1 for _ in family.problems()) >= 400, family.name
        assert len(family.styles) >= 3
        assert len(set(family.wordings)) >= 3
        assert len(family.entry_points) >= 2


def test_difficulties_span_the_range():
    assert {family.difficulty for family in FAMILIES} == set(range(1, 12))


def test_entry_points_tell_families_apart():
    names = Counter(name for family in FAMILIES for name in family.entry_points)
    assert max(names.values()) == 1


@pytest.mark.parametrize("family", FAMILIES, ids=FAMILY_NAMES)
def test_a_family_hangs_together(family):
    for task in some_tasks(family, 20):
        assert 4 <= len(task.tests) <= 6
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
            assert f"${name}" in wording, f"{wording!r} keeps {name} to itself"


def test_every_style_of_every_family_passes_its_tests(judge):
    labels, programs = [], []
    for family in FAMILIES:
        for task in some_tasks(family, 8, seed=1):
            for style, source in task.solutions.items():
                labels.append((task.problem.task_id, style, task.tests))
                programs.append(Program(source, task.tests))
    verdicts = judge(programs)
    assert [x for x in zip(labels, verdicts, strict=True) if not x[1].passed] == []


def test_problems_of_a_family_differ_in_meaning():
    """No two parameter choices give one function, as far as many inputs can tell."""
    for family in FAMILIES:
        problems = Random(0).sample(list(family.problems()), 60)
        pool = [x for p in problems for x in family.inputs(Random(p.digest), p.params)]
        answers = {
            json.dumps([family.expected(*x, **problem.params) for x in pool])
            for problem in problems
        }
        assert len(answers) == len(problems), family.name


# --- mutations -------------------------------------------------------------------------------


def test_operators_change_programs_and_leave_them_programs():
    seen = Counter()
    for family in FAMILIES:
        (task,) = some_tasks(family, 1)
        for style, source in task.solutions.items():
            before = source
            for mutation in mutations(style, source):
                seen[mutation.operator] += 1
                assert mutation.source() == normalise(mutation.source())
            assert normalise(source) == before
    assert set(seen) == set(OPERATORS)
    assert len(seen) >= 8


def test_loops_that_might_not_end_are_not_mutated():
    assert list(mutations("x", "def f(n):\n    while n:\n        n -= 1\n")) == []


# --- the rows --------------------------------------------------------------------------------


def test_schema(rows):
    families = {family.name: family for family in FAMILIES}
    for row in rows:
        assert list(row) == [
            "instruction", "input", "output", "task_id", "is_correct", "metadata",
        ]  # fmt: skip
        meta = row["metadata"]
        family = families[meta["family"]]
        assert row["task_id"].startswith(f"micro/{family.name}/")
        assert row["input"] == ""
        assert row["output"].endswith("\n")
        assert f"def {meta['entry_point']}({family.arguments}):" in row["output"]
        assert f"`{meta['entry_point']}(" in row["instruction"]
        assert (meta["source"], meta["has_tests"], meta["split"]) == ("micro", True, "train")
        assert meta["difficulty"] == family.difficulty
        assert meta["style"] in family.styles
        assert ("mutation" in meta) is not row["is_correct"]
        assert all(test.startswith(f"assert {meta['entry_point']}(") for test in meta["tests"])
        assert len((row["instruction"] + row["output"]).encode()) <= 400
        ast.parse(row["output"])
    json.dumps(rows)


def test_labels_are_what_running_says(rows, judge):
    programs = [Program(row["output"], tuple(row["metadata"]["tests"])) for row in rows]
    assert [verdict.passed for verdict in judge(programs)] == [row["is_correct"] for row in rows]


def test_every_problem_has_the_rows_asked_for(rows):
    counts = Counter((row["task_id"], row["is_correct"]) for row in rows)
    assert len(counts) == 216
    assert {counts[key] for key in counts if key[1]} == {2}
    assert {counts[key] for key in counts if not key[1]} == {2}
    assert len({(row["task_id"], row["output"]) for row in rows}) == len(rows)
    assert len({(row["task_id"], row["instruction"]) for row in rows}) == 108


def test_mutations_are_varied_and_formatting_gives_nothing_away(rows):
    operators = Counter(row["metadata"].get("mutation") for row in rows if not row["is_correct"])
    assert len(operators) >= 8
    assert set(operators) <= set(OPERATORS)
    assert all(row["output"] == normalise(row["output"]) for row in rows)


def test_families_take_turns():
    counts = Counter(problem.family.name for problem in draw_problems(540, 3, "test"))
    assert set(counts) == set(FAMILY_NAMES)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_mutants_that_pass_are_dropped():
    """With a judge that passes everything no wrong row can be had, and that is said."""
    with pytest.raises(UserError, match="wrong variants"):
        generate(3, 0, always_passed, incorrect_per_problem=1)


def test_a_right_solution_that_fails_is_a_bug():
    with pytest.raises(RuntimeError, match="is not right"):
        generate(3, 0, always_failed)


# --- splits and determinism ------------------------------------------------------------------


def test_splits_share_no_problem_whatever_the_seed():
    seen = {
        split: {problem.task_id for seed in (0, 1) for problem in draw_problems(900, seed, split)}
        for split in SPLITS
    }
    for first in SPLITS:
        for second in SPLITS:
            assert first == second or not seen[first] & seen[second]


def test_splits_are_about_80_10_10():
    counts = Counter(problem.split for family in FAMILIES for problem in family.problems())
    total = sum(counts.values())
    assert counts["train"] / total == pytest.approx(0.8, abs=0.01)
    assert counts["validation"] / total == pytest.approx(0.1, abs=0.01)


def test_a_problem_is_not_its_name_or_wording():
    problem = draw_problems(1, 0, "train")[0]
    tasks = [pose(problem, Random(seed)) for seed in range(20)]
    assert len({task.entry_point for task in tasks}) > 1
    assert {task.problem.task_id for task in tasks} == {problem.task_id}


def test_problems_are_drawn_once():
    drawn = [problem.task_id for problem in draw_problems(3000, 0, "train")]
    assert len(set(drawn)) == 3000


def test_seeds_differ_and_repeat():
    first, again, other = (generate(60, seed, always_passed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_same_bytes_in_any_process(judge):
    script = (
        "import hashlib, json\n"
        "from weighted_mtp.data.micro_tasks import generate\n"
        "from weighted_mtp.evaluation.sandbox import Sandbox\n"
        "with Sandbox(workers=1) as judge:\n"
        "    rows = generate(20, 5, judge, 'test', 1, 2)\n"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    here = json.dumps(generate(20, 5, judge, "test", 1, 2)).encode()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.strip() == hashlib.sha256(here).hexdigest()


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_problems": -1}, "negative"),
        ({"split": "dev"}, "none of train"),
        ({"correct_per_problem": 4}, "styles"),
        ({"n_problems": 10**6}, "were asked for"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        generate(**({"n_problems": 1, "seed": 0, "judge": always_passed} | arguments))
