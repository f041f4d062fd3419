"""Compositions: pairs of known operations, a third of them never met before the test."""

from collections import Counter
from itertools import islice
from random import Random

import pytest

from weighted_mtp.core.types import Program
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import (
    COMPOSITIONS,
    SINGLES,
    SPLITS,
    draw_problems,
    generate,
    pose,
    up_to,
)
from weighted_mtp.micro_tasks.compositions import PARTS, is_held_out
from weighted_mtp.micro_tasks.family import normalise
from weighted_mtp.micro_tasks.packing import run_packed

ORDINARY = [family for family in COMPOSITIONS if not family.held_out]
HELD_OUT = [family for family in COMPOSITIONS if family.held_out]
SINGLE = {family.name: family for family in SINGLES}


@pytest.fixture(scope="module")
def judge():
    with Sandbox() as sandbox:
        yield sandbox


def pairs(families):
    return {frozenset(family.parts) for family in families}


def test_there_are_many_and_three_in_ten_pairs_are_held_out():
    assert len({family.name for family in COMPOSITIONS}) == len(COMPOSITIONS) > 300
    share = len(pairs(HELD_OUT)) / len(pairs(COMPOSITIONS))
    assert share == pytest.approx(0.3, abs=0.05)
    for family in COMPOSITIONS:
        assert len(family.styles) == 3
        assert len(set(family.wordings)) >= 4


def test_a_held_out_pair_meets_in_no_other_split():
    """In neither order and in no shape."""
    assert not pairs(HELD_OUT) & pairs(ORDINARY)
    for split in SPLITS[:3]:
        drawn = draw_problems(60, 0, split, COMPOSITIONS)
        assert not any(is_held_out(*problem.family.parts) for problem in drawn)
    drawn = draw_problems(500, 0, "compositions")
    assert all(is_held_out(*problem.family.parts) for problem in drawn)


def test_every_part_of_a_held_out_pair_is_met_in_training_alone_and_composed():
    alone = {problem.family.name for problem in draw_problems(4000, 0, "train", SINGLES)}
    composed = {name for family in ORDINARY for name in family.parts}
    for family in HELD_OUT:
        assert set(family.parts) <= alone
        assert set(family.parts) <= composed
    for level in range(2, 12):
        known = {family.name for family in up_to(level) if not family.parts}
        assert all(set(family.parts) <= known for family in up_to(level))


def test_a_part_is_its_family_with_fewer_constants():
    for part in PARTS:
        assert set(part.space) == set(part.family.space), part.name
        for name, values in part.space.items():
            assert set(values) <= set(part.family.space[name]), (part.name, name)


def some_problems(family, count):
    return list(islice(family.problems(Random(1)), count))


def test_the_held_out_shapes_are_known_ones():
    assert {family.group for family in HELD_OUT} == {family.group for family in ORDINARY}


def test_every_family_hangs_together():
    for family in COMPOSITIONS:
        for problem in some_problems(family, 3):
            task = pose(problem, Random(problem.digest))
            assert 4 <= len(task.tests) <= 6, family.name
            assert len({test.rpartition(" == ")[2] for test in task.tests}) > 1, task
            assert len(set(task.solutions.values())) == 3, family.name
            assert "$" not in task.instruction
            for source in task.solutions.values():
                assert source == normalise(source)
                assert len((task.instruction + source).encode()) <= 400
        for wording in family.wordings:
            for name, values in family.space.items():
                assert len(values) == 1 or f"${name}" in wording, f"{wording!r} keeps {name}"


def test_every_style_passes_its_tests(judge):
    labels, programs = [], []
    for family in COMPOSITIONS:
        for problem in some_problems(family, 2):
            task = pose(problem, Random(problem.digest))
            for style, source in task.solutions.items():
                labels.append((family.name, style, source, task.tests))
                programs.append(Program(source, task.tests))
    outcomes = run_packed(judge, programs)
    assert [x for x in zip(labels, outcomes, strict=True) if not x[1].passed] == []


def test_every_constant_matters():
    """For each there is a problem that another value makes another problem."""
    idle = []
    for family in COMPOSITIONS:
        matters = set()
        for problem in some_problems(family, 4):
            here = family.behaviour(**problem.params)
            for name, values in family.space.items():
                if name not in matters:
                    some = Random(2).sample(values, min(5, len(values)))
                    others = (family.behaviour(**{**problem.params, name: v}) for v in some)
                    matters |= {name} if any(other != here for other in others) else set()
        constants = {name for name, values in family.space.items() if len(values) > 1}
        idle += [(family.name, name) for name in sorted(constants - matters)]
    assert idle == []


def test_problems_that_do_the_same_are_one():
    family = next(f for f in COMPOSITIONS if f.name == "chain_numbers/average+round_down")
    by_id = {}
    for problem in family.problems():
        by_id.setdefault(problem.task_id, []).append(problem)
    behaviours = {repr(some[0].family.behaviour(**some[0].params)) for some in by_id.values()}
    assert len(behaviours) == len(by_id)
    assert len({problem.split for problem in by_id[next(iter(by_id))]}) == 1


def test_groups_take_turns_as_one_family():
    counts = Counter(problem.family.label for problem in draw_problems(1000, 0, "compositions"))
    assert len(counts) == 5
    assert max(counts.values()) - min(counts.values()) <= 1


def test_rows_of_the_split(judge):
    rows = generate(120, 0, judge, "compositions", 1, 1, families=up_to(5))
    assert len({row["task_id"] for row in rows}) == 120
    programs = [Program(row["output"], tuple(row["metadata"]["tests"])) for row in rows]
    verdicts = judge(programs)
    for row, verdict in zip(rows, verdicts, strict=True):
        meta = row["metadata"]
        assert row["is_correct"] == verdict.passed
        assert meta["split"] == "compositions"
        assert is_held_out(*meta["parts"])
        assert all(SINGLE[name].difficulty < meta["difficulty"] <= 5 for name in meta["parts"])


def test_ordinary_rows_hold_compositions_of_other_pairs(judge):
    rows = generate(300, 0, judge, "train")
    composed = [row["metadata"]["parts"] for row in rows if "parts" in row["metadata"]]
    assert len(composed) >= 15
    assert not any(is_held_out(*parts) for parts in composed)
