"""What an evaluation leaves on disk: a journal to go on from, and files that other tools read."""

import json
import math
import statistics
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Verdict
from weighted_mtp.evaluation.result_files import (
    Attempt,
    Journal,
    Written,
    evalplus_id,
    harness_results,
    write_evalplus,
)
from weighted_mtp.evaluation.scores import Scores, Tally, check_ks, parse_ks, score, tally

IDENTITY = {"dataset": "toy", "temperature": 0.5}
KNOWN = ["toy/1", "toy/2"]


def attempt(task_id: str = "toy/1", sample: int = 0, status: str = "passed") -> Attempt:
    verdict = Verdict(status == "passed", status, "" if status == "passed" else "why", 0.125)
    written = Written(task_id, sample, "    return 1\r\n\u2028\ud800", -1.5)
    return Attempt.of(written, "def f():\n", verdict)


def fill(folder: Path, count: int = 3) -> list[Attempt]:
    attempts = [attempt(KNOWN[i % 2], i // 2) for i in range(count)]
    with Journal(folder, IDENTITY, KNOWN) as journal:
        for one in attempts:
            journal.append(one)
    return attempts


# --- the journal ---------------------------------------------------------------------------------


def test_attempts_come_back_as_they_were(tmp_path):
    attempts = fill(tmp_path / "new" / "out")
    with Journal(tmp_path / "new" / "out", IDENTITY, KNOWN) as journal:
        assert journal.attempts == attempts
        assert journal.done == {("toy/1", 0), ("toy/2", 0), ("toy/1", 1)}
        journal.append(attempt("toy/2", 1, "failed"))
    with Journal(tmp_path / "new" / "out", IDENTITY, KNOWN) as journal:
        assert len(journal.attempts) == 4


def test_nothing_is_written_before_the_first_attempt(tmp_path):
    with Journal(tmp_path / "out", IDENTITY, KNOWN):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.5, 0.99])
def test_a_line_cut_short_is_judged_again(kept, tmp_path):
    attempts = fill(tmp_path)
    path = tmp_path / "attempts.jsonl"
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[: int(kept * len(last))])
    with Journal(tmp_path, IDENTITY, KNOWN) as journal:
        assert journal.attempts == attempts[:2]
        journal.append(attempts[2])
    with Journal(tmp_path, IDENTITY, KNOWN) as journal:
        assert journal.attempts == attempts


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 2: broken"),
        (b"", "line 2: broken"),
        (b"[]", "line 2: broken"),
        (b"\xff\xfe", "line 2: broken"),
        (b'{"task_id": "toy/1"}', "line 2: broken .*sample"),
        (json.dumps({**attempt().__dict__, "seconds": "1"}).encode(), "seconds is '1'"),
        (json.dumps({**attempt().__dict__, "sample": True}).encode(), "sample is True"),
        (json.dumps({**attempt().__dict__, "task_id": "toy/9"}).encode(), "no problem 'toy/9'"),
        (json.dumps(attempt().__dict__).encode(), "toy/1 0 is given twice"),
    ],
)
def test_a_broken_journal_names_its_line(line, words, tmp_path):
    fill(tmp_path, 1)
    path = tmp_path / "attempts.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=words) as caught:
        Journal(tmp_path, IDENTITY, KNOWN)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    with Journal(tmp_path, IDENTITY, KNOWN, overwrite=True) as journal:
        journal.append(attempt("toy/2"))
    with Journal(tmp_path, IDENTITY, KNOWN) as journal:
        assert [one.task_id for one in journal.attempts] == ["toy/2"]


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_a_broken_config(content, tmp_path):
    fill(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: broken .*--overwrite"):
        Journal(tmp_path, IDENTITY, KNOWN)


def test_another_evaluation_does_not_go_on_here(tmp_path):
    fill(tmp_path)
    with pytest.raises(UserError, match=r"another temperature \(temperature: 0.5, now 0.7\)"):
        Journal(tmp_path, {**IDENTITY, "temperature": 0.7}, KNOWN)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is not a directory"):
        Journal(tmp_path / "out", IDENTITY, KNOWN)


# --- figures -------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=6), min_size=1, max_size=4),
    st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_pass_at_k_is_the_mean_over_all_choices_of_k(problems, k):
    counts = tally((f"p{i}", right) for i, rights in enumerate(problems) for right in rights)
    found = score(counts, [k])
    plain = [statistics.mean(any(c) for c in combinations(rights, k)) for rights in problems]
    assert math.isclose(found.pass_at[k].mean, statistics.mean(plain), abs_tol=1e-12)
    if len(plain) == 1:
        assert found.standard_error[k] is None
    else:
        error = statistics.stdev(plain) / math.sqrt(len(plain))
        assert math.isclose(found.standard_error[k], error, abs_tol=1e-9)


def test_what_is_not_known_is_null():
    """One problem has no standard error, and no problem no pass@1."""
    found = harness_results("mbpp", score({"a": Tally(2, 1)}, [1]), {}, 1, 0.0)
    assert found["results"]["mbpp"]["pass_at_1_stderr,none"] is None
    assert Scores({}, {}, {}, {}).pass_at_1 is None


def test_interval_is_over_problems():
    found = score({f"p{i}": Tally(2, 2 * (i % 2)) for i in range(40)}, [1, 2])
    assert found.pass_at[1] == found.pass_at[2]
    assert 0.3 < found.pass_at[1].low < 0.5 < found.pass_at[1].high < 0.7


@pytest.mark.parametrize("text", ["0", "-1", "a", "", "1,,2", "1.5", "3", "1,10"])
def test_k_that_cannot_be(text):
    with pytest.raises(UserError, match="--k"):
        parse_ks(text, 2)


def test_k():
    assert parse_ks("10, 1,10", 10) == (1, 10)
    assert [parse_ks(None, n) for n in (1, 99, 100)] == [(1,), (1, 10), (1, 10, 100)]
    with pytest.raises(UserError, match="needs as many samples of every problem, there are 2"):
        check_ks([1, 3], 2)


# --- files of other tools ------------------------------------------------------------------------


def test_evalplus_files(tmp_path):
    attempts = [
        Attempt("mbpp/11", 0, "c", "s", "passed", "", 0.1),
        Attempt("mbpp/11", 1, "c", "t", "timeout", "", 0.1),
        Attempt("HumanEval/0", 0, "c", "u", "error", "", 0.1),
    ]
    write_evalplus(tmp_path, attempts, "digest", "2024-01-02 03:04")
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert lines[0] == {"task_id": "Mbpp/11", "solution": "s"}
    assert [line["solution"] for line in lines] == ["s", "t", "u"]
    found = json.loads((tmp_path / "samples_eval_results.json").read_text())
    assert (found["date"], found["hash"]) == ("2024-01-02 03:04", "digest")
    assert [one["base_status"] for one in found["eval"]["Mbpp/11"]] == ["pass", "timeout"]
    assert found["eval"]["HumanEval/0"] == [
        {
            "task_id": "HumanEval/0",
            "solution": "u",
            "base_status": "fail",
            "plus_status": None,
            "base_fail_tests": [],
            "plus_fail_tests": [],
        }
    ]
    assert evalplus_id("codecontests/mbpp/1") == "codecontests/mbpp/1"


@pytest.mark.parametrize(
    ("dataset", "name", "filtered"),
    [("humaneval", "pass@{}", "create_test"), ("mbpp", "pass_at_{}", "none")],
)
def test_harness_results(dataset, name, filtered):
    scores = score({"a": Tally(10, 10), "b": Tally(10, 0)}, [1, 10], ["passed", "failed"])
    found = harness_results(dataset, scores, {"prompt": "3-shot", "model": "m"}, 3, 1.5)
    figures = found["results"][dataset]
    for k in (1, 10):
        assert figures[f"{name.format(k)},{filtered}"] == 0.5
        assert figures[f"{name.format(k)}_stderr,{filtered}"] == pytest.approx(0.5)
    assert found["n-samples"][dataset] == {"original": 3, "effective": 2}
    assert found["n-shot"] == {dataset: 3}
    assert found["config"]["limit"] == 2
    assert found["weighted_mtp"]["pass@k"]["10"]["low"] == 0.0
    assert found["weighted_mtp"]["statuses"] == {"passed": 1, "failed": 1}
    json.dumps(found, allow_nan=False)
