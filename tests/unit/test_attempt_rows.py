"""Judged programs as rows: counted by hand, and the commands from evaluation to training."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from tests.helpers import ROOT

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.datasets import read_jsonl
from weighted_mtp.evaluation.attempt_rows import Selection, attempt_rows, results_directory


def results(folder, attempts, problems=("a", "b", "c")):
    """A results directory; attempts are (task_id, program, status)."""
    folder.mkdir()
    lines = [
        {
            "task_id": t,
            "sample": i,
            "completion": p,
            "solution": p,
            "status": s,
            "logprob": -float(i),
        }
        for i, (t, p, s) in enumerate(attempts)
    ]
    (folder / "attempts.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    tasks = [{"task_id": t, "instruction": f"do {t}", "input": ""} for t in problems]
    (folder / "problems.jsonl").write_text("".join(json.dumps(x) + "\n" for x in tasks))
    return folder


ATTEMPTS = [
    *(("a", f"right {i}", "passed") for i in range(5)),
    *(("a", f"wrong {i}", "failed") for i in range(3)),
    ("a", "right 0", "passed"),  # twice
    *(("b", f"wrong {i}", "error") for i in range(6)),
    ("b", "", "too_long"),
    ("c", "right", "passed"),
    ("unknown", "x", "passed"),
]


@pytest.mark.parametrize(
    ("selection", "a", "b", "c"),
    [
        (Selection(), (3, 3), (0, 4), (1, 0)),
        (Selection(per_problem=2), (2, 2), (0, 2), (1, 0)),
        (Selection(per_problem=99), (3, 3), (0, 6), (1, 0)),
        (Selection(mixed=True), (3, 3), (0, 0), (0, 0)),
    ],
)
def test_rows_are_balanced_by_problem(selection, a, b, c, tmp_path):
    found = attempt_rows([results(tmp_path / "r", ATTEMPTS)], selection)
    counts = Counter((row["task_id"], row["is_correct"]) for row in found.rows)
    for task, wanted in (("a", a), ("b", b), ("c", c)):
        assert (counts[task, True], counts[task, False]) == wanted
    assert (found.duplicates, found.unwritten) == (1, 2)
    total = len(found.rows) + found.surplus + found.duplicates + found.unwritten
    assert total + (7 if selection.mixed else 0) == len(ATTEMPTS)
    assert len({(row["task_id"], row["output"]) for row in found.rows}) == len(found.rows)
    row = next(row for row in found.rows if row["task_id"] == ("a" if selection.mixed else "c"))
    assert row["instruction"] == f"do {row['task_id']}"
    assert row["metadata"]["logprob"] <= 0


def test_the_order_of_judging_does_not_matter(tmp_path):
    one = attempt_rows([results(tmp_path / "one", ATTEMPTS[:8])], Selection(per_problem=2))
    other = attempt_rows([results(tmp_path / "two", ATTEMPTS[7::-1])], Selection(per_problem=2))
    texts = [[(row["output"], row["is_correct"]) for row in found.rows] for found in (one, other)]
    assert texts[0] == texts[1]
    seeds = {
        tuple(row["output"] for row in attempt_rows([tmp_path / "one"], Selection(2, seed=s)).rows)
        for s in range(5)
    }
    assert len(seeds) > 1


def test_what_is_no_evaluation(tmp_path):
    with pytest.raises(UserError, match="not the results of an evaluation"):
        results_directory(tmp_path)
    (tmp_path / "attempts.jsonl").touch()
    with pytest.raises(UserError, match="has not ended"):
        results_directory(tmp_path)


def test_from_the_command_line(tmp_path, capsys):
    folder = results(tmp_path / "micro-train.evaluation", ATTEMPTS)
    out = tmp_path / "rows.jsonl"
    named = str(tmp_path / "micro-train.jsonl")
    assert main(["prepare", "attempts", "--evaluation", named, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "11 rows (4 correct, 7 incorrect) of 3 problems" in said
    assert "1 duplicates" in said
    assert len(read_jsonl(out)) == 11
    again = ["prepare", "attempts", "--evaluation", str(folder), "--out", str(out)]
    assert main(again) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*again, "--overwrite", "--per-problem", "0"]) == 2
    assert main(["prepare", "attempts", "--evaluation", str(tmp_path), "--out", named]) == 2
    assert "not the results of an evaluation" in capsys.readouterr().err


@pytest.mark.slow
def test_expert_iteration_goes_round(tmp_path):
    """The example on a model that knows little: it writes, judges, and reports each round."""
    start = tmp_path / "start"
    changes = ["training.steps=30", "data.micro.n_problems=40", "data.micro.n_validation=4"]
    words = [word for change in changes for word in ("--set", change)]
    command = ["train", "--recipe", "baseline", "--preset", "micro", "--output-dir", str(start)]
    assert main([*command, *words]) == 0
    sizes = {"rounds": 1, "problems": 8, "test-problems": 6, "samples": 2, "steps": 2}
    options = [word for name, n in sizes.items() for word in (f"--{name}", str(n))]
    code = (
        "import runpy, sys, weighted_mtp.evaluation.attempt_rows as a;"
        "real = a._row;"
        "a._row = lambda *x: {**real(*x), 'is_correct': True};"  # it solves nothing yet
        f"sys.argv[1:] = {[str(start), '--out', str(tmp_path / 'out'), *options]!r};"
        f"runpy.run_path({str(ROOT / 'examples' / 'expert_iteration.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "round 0: pass@1" in done.stdout
    assert "round 1: pass@1" in done.stdout.splitlines()[-1]
