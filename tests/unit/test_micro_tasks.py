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
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import (
    FAMILIES,
    OPERATORS,
    SINGLES,
    SPLITS,
    draw_problems,
    generate,
    pose,
)
from weighted_mtp.micro_tasks.family import normalise

LABELS = {family.label for family in FAMILIES if not family.held_out}
SMALL = next(family for family in SINGLES if family.name == "distance")
PROBLEMS = 2 * len(LABELS)


@pytest.fixture(scope="module")
def judge():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def rows(judge):
    return generate(PROBLEMS, 0, judge, "train", correct_per_problem=2, incorrect_per_problem=2)


def always_passed(programs):
    return [Verdict(True, "passed") for _ in programs]


def always_failed(programs):
    return [Verdict(False, "failed", "assert") for _ in programs]


# --- the rows --------------------------------------------------------------------------------


def test_schema(rows):
    families = {family.label: family for family in FAMILIES}
    difficulties = {(family.label, family.difficulty) for family in FAMILIES}
    styles = {(family.label, style) for family in FAMILIES for style in family.styles}
    for row in rows:
        assert list(row) == [
            "instruction", "input", "output", "task_id", "is_correct", "metadata",
        ]  # fmt: skip
        meta = row["metadata"]
        family = families[meta["family"]]
        assert row["task_id"].startswith(f"micro/{family.label}/")
        assert row["input"] == ""
        assert row["output"].endswith("\n")
        assert f"def {meta['entry_point']}({family.arguments}):" in row["output"]
        assert f"`{meta['entry_point']}(" in row["instruction"]
        assert (meta["source"], meta["has_tests"], meta["split"]) == ("micro", True, "train")
        assert (family.label, meta["difficulty"]) in difficulties
        assert (family.label, meta["style"]) in styles
        assert ("parts" in meta) is bool(family.parts)
        assert ("mutation" in meta) is ("tests_passed" in meta) is not row["is_correct"]
        assert all(test.startswith(f"assert {meta['entry_point']}(") for test in meta["tests"])
        assert len((row["instruction"] + row["output"]).encode()) <= 400
        ast.parse(row["output"])
    json.dumps(rows)


def test_labels_are_what_running_says(rows, judge):
    programs = [Program(row["output"], tuple(row["metadata"]["tests"])) for row in rows]
    assert [verdict.passed for verdict in judge(programs)] == [row["is_correct"] for row in rows]


def test_every_problem_has_the_rows_asked_for(rows):
    counts = Counter((row["task_id"], row["is_correct"]) for row in rows)
    assert len(counts) == 2 * PROBLEMS
    assert {counts[key] for key in counts if key[1]} == {2}
    assert {counts[key] for key in counts if not key[1]} == {2}
    assert len({(row["task_id"], row["output"]) for row in rows}) == len(rows)
    assert len({(row["task_id"], row["instruction"]) for row in rows}) == PROBLEMS


def test_mutations_are_varied_and_formatting_gives_nothing_away(rows):
    operators = Counter(row["metadata"].get("mutation") for row in rows if not row["is_correct"])
    assert len(operators) >= 8
    assert set(operators) <= set(OPERATORS)
    assert max(operators.values()) < 0.5 * operators.total()
    assert all(row["output"] == normalise(row["output"]) for row in rows)


def test_most_wrong_solutions_are_near_misses(rows):
    near = [row["metadata"]["tests_passed"] > 0 for row in rows if not row["is_correct"]]
    assert sum(near) >= 0.9 * len(near)


def test_families_take_turns():
    counts = Counter(p.family.label for p in draw_problems(5 * len(LABELS), 3, "test"))
    assert set(counts) == LABELS
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
        split: {problem.task_id for seed in (0, 1) for problem in draw_problems(400, seed, split)}
        for split in SPLITS
    }
    for first in SPLITS:
        for second in SPLITS:
            assert first == second or not seen[first] & seen[second]


def test_splits_are_about_80_10_10():
    counts = Counter(problem.split for family in SINGLES for problem in family.problems())
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
        "from weighted_mtp.micro_tasks import generate\n"
        "from weighted_mtp.evaluation.sandbox.host import Sandbox\n"
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
        ({"n_problems": 10**8}, "fewer than"),
        ({"n_problems": 99, "split": "test", "families": [SMALL]}, "holds .. problems, not 99"),
        ({"n_problems": 1, "split": "compositions", "families": SINGLES}, "fewer than"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        generate(**({"n_problems": 1, "seed": 0, "judge": always_passed} | arguments))
