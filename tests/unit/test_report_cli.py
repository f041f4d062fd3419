"""`weighted-mtp report` writes its page for every run that trained a step, however it ended."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.integration import helpers_training
from tests.integration.helpers_training import train

from weighted_mtp import __version__
from weighted_mtp.analysis.run_report import MISSING, curves, facts
from weighted_mtp.cli.main import main
from weighted_mtp.core.run_records import read_stages

rows_file = helpers_training.rows_file

STEP = {"kind": "train", "step": 1, "head_loss": [2.0, 3.0], "loss": 2.5}
HELD_OUT = {
    "kind": "validation",
    "step": 1,
    "head_loss": [2.0, 3.0],
    "head_accuracy": [0.5, 0.25],
    "head_confidence": [0.4, 0.2],
    "head_calibration_error": [0.1, 0.05],
    "head_acceptance": [1.0, 0.3],
    "head_acceptance_sampled": [1.0, 0.2],
    "tokens_per_forward": 1.3,
    "tokens_per_forward_sampled": 1.2,
}
ATTEMPT = {
    "task_id": "micro/sum/1",
    "instruction": "add",
    "completion": "return 1",
    "passed": True,
    "status": "passed",
    "detail": "",
}


def report(run_dir: Path, *words: str) -> str:
    """The page."""
    assert main(["report", str(run_dir), *words]) == 0
    return (run_dir / "report.html").read_text(encoding="utf-8")


def metrics(folder: Path, *records: dict | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def one_step(tmp_path_factory, rows_file) -> Path:
    """A run of one step without validation data, as it came off the trainer."""
    run_dir = tmp_path_factory.mktemp("runs") / "one $x$ step"
    assert train(run_dir, rows_file, training__steps=1) == 0
    return run_dir


def test_one_step_without_validation_data(one_step, capsys):
    assert "Training loss" in report(one_step)
    assert (one_step / "loss.png").stat().st_size > 1000
    assert "report.html" in capsys.readouterr().out


def test_a_run_says_how_it_was_made(one_step, capsys):
    page = report(one_step)
    shown = dict(facts(read_stages(one_step)))
    assert shown["weighted-mtp"] == __version__
    assert shown["started"].startswith("20")
    assert shown["started"].endswith(" UTC")
    assert shown["device"].startswith("CPU (")
    assert "(h:min:s)" in shown["duration"]
    assert "tokens/s" in shown["throughput"]
    assert "GiB" in shown["peak memory"]
    assert shown["commit"] == MISSING or len(shown["commit"]) >= 7
    out = capsys.readouterr().out
    for name, value in shown.items():
        assert name in page
        assert value in page
        assert value in out
    titles = [chart.title for chart in curves(read_stages(one_step))]
    assert titles[-3:] == ["Learning rate", "Gradient norm", "Throughput"]


def test_an_old_run_says_what_it_did_not_record(tmp_path):
    run_dir = metrics(tmp_path / "run", STEP, HELD_OUT)
    assert set(dict(facts(read_stages(run_dir))).values()) == {MISSING}
    assert MISSING in report(run_dir)


def test_the_duration_of_a_resumed_run_counts_every_session(tmp_path):
    started = {"kind": "run", "step": 0, "started": "2026-01-02T03:04:05+00:00", "elapsed": 1.0}
    session = [started, {**STEP, "elapsed": 1800.0}, {**STEP, "step": 2, "elapsed": 3600.0}]
    resumed = [{**started, "step": 2, "started": "2026-02-02T00:00:00+00:00"}]
    resumed += [{**STEP, "step": 3, "elapsed": 65.0}]
    shown = dict(facts(read_stages(metrics(tmp_path / "run", *session, *resumed))))
    assert shown["duration"].startswith("1:01:05")
    assert shown["started"] == "2026-01-02 03:04:05 UTC"


def test_a_single_validation_shows_its_values(tmp_path):
    page = report(metrics(tmp_path / "run", STEP, HELD_OUT))
    assert "head 1: 0.500" in page
    assert "head 2: 0.250" in page


def test_a_checkpoint_stands_for_its_run(one_step):
    checkpoint = next((one_step / "checkpoints").iterdir())
    for place in (checkpoint, checkpoint / "model"):
        (one_step / "report.html").unlink(missing_ok=True)
        assert main(["report", str(place)]) == 0
        assert (one_step / "report.html").exists()


RECORDS = {
    "figures that are null": (
        STEP,
        {
            **HELD_OUT,
            **dict.fromkeys(HELD_OUT, None),
            "kind": "validation",
            "step": 1,
            "right_preferred": None,
            "auc_at_50": None,
        },
    ),
    "heads that are null": (
        STEP,
        {**HELD_OUT, "head_loss": [None, 2.0], "head_accuracy": [None] * 2},
    ),
    "a class that is absent": (
        {**STEP, "weight_correct": {"mean": None}, "weight_incorrect": None},
    ),
    "a critic alone": (
        {"kind": "train", "step": 1, "value_loss": 0.2},
        {"kind": "validation", "step": 1, "value_loss": 0.2, "auc_at_50": 0.5, "auc_at_100": None},
    ),
    "heads that come later": (STEP, {**STEP, "step": 2, "head_loss": [1.0, 2.0, 3.0]}),
    "nothing finite": ({**STEP, "head_loss": [None, None]},),
    "acceptance alone": (STEP, {"kind": "validation", "step": 1, "head_acceptance": [1.0, 0.5]}),
    "a line cut short": (STEP, '{"kind": "train", "step": 2, "head_lo'),
    "lines that are not records": (STEP, "[" * 100_000, "3", '{"kind": 1, "step": []}', "\x00\x00"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_figures_that_are_missing(case, tmp_path, capsys):
    page = report(metrics(tmp_path / "run", *RECORDS[case]))
    assert "<title>Run run</title>" in page
    assert "nan" not in capsys.readouterr().out


def test_bytes_that_are_no_text(tmp_path):
    run_dir = metrics(tmp_path / "run", STEP, HELD_OUT)
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "st\xff\xfe\x80')
    assert "50.0%" in report(run_dir)


def test_stopped_in_the_first_stage(tmp_path):
    metrics(tmp_path / "run" / "critic", {"kind": "train", "step": 1, "value_loss": 0.2})
    report(tmp_path / "run")


def test_stopped_before_the_first_checkpoint(one_step, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("metrics.jsonl", "config.yaml"):
        shutil.copy(one_step / name, run_dir)
    assert "no complete checkpoint yet" in report(run_dir)


def test_results_that_were_cut_short(tmp_path):
    run_dir = metrics(tmp_path / "run", STEP, HELD_OUT)
    (run_dir / "evaluation").mkdir()
    lines = [json.dumps(ATTEMPT), json.dumps({"passed": False}), '{"task_id": "mic', "[]"]
    (run_dir / "evaluation" / "micro-test.jsonl").write_text("\n".join(lines))
    assert "50.0 %" in report(run_dir) or "50.0%" in report(run_dir)


@pytest.mark.parametrize("records", [(), (HELD_OUT,), ("",)])
def test_a_run_without_a_step_is_one_line(records, tmp_path, capsys):
    assert main(["report", str(metrics(tmp_path / "run", *records))]) == 2
    assert "no training step yet" in capsys.readouterr().err


def test_a_run_that_cannot_be_written_to_has_its_picture_beside_the_page(tmp_path):
    run_dir = metrics(tmp_path / "run", STEP)
    (run_dir / "loss.png").mkdir()
    assert main(["report", str(run_dir), "--output", str(tmp_path / "out" / "page.html")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"page.html", "loss.png"}
    assert {p.name for p in run_dir.iterdir()} == {"metrics.jsonl", "loss.png"}
    assert main(["report", str(run_dir)]) == 2


def test_every_data_set_it_was_evaluated_on_is_told(tmp_path, capsys):
    run_dir = metrics(tmp_path / "run", STEP, HELD_OUT)
    statuses = {"mbpp": ["passed", "failed", "timeout", "passed"], "micro-test.evaluation": ["x"]}
    for name, found in statuses.items():
        folder = run_dir / "evaluation" / name
        folder.mkdir(parents=True)
        lines = [json.dumps({"task_id": f"{i}", "status": s}) for i, s in enumerate(found)]
        (folder / "attempts.jsonl").write_text("\n".join([*lines, '{"task_id": "cut o']))
    page = report(run_dir)
    said = capsys.readouterr().out
    assert "pass@1, mbpp" in page
    assert "pass@1, mbpp" in said
    assert "50.0 %" in said
    assert "micro-test" not in said


def evaluated(folder: Path, passed: dict[str, list[bool]], tokens: int = 7, loss: float = 2.0):
    """A run with programs of micro problems, as `evaluate` writes them."""
    record = {**HELD_OUT, "tokens": tokens, "head_loss": [loss, 3.0]}
    run_dir = metrics(folder, STEP, record)
    lines = [
        json.dumps({**ATTEMPT, "task_id": task, "passed": one})
        for task, found in passed.items()
        for one in found
    ]
    (run_dir / "evaluation").mkdir()
    (run_dir / "evaluation" / "micro-test.jsonl").write_text("\n".join(lines) + "\n")
    return run_dir


def test_a_run_beside_another_is_paired_by_problem(tmp_path, capsys):
    """Whatever the order, the number of programs of a problem, and problems only one was asked."""
    tasks = [f"micro/sum/{i}" for i in range(40)]
    mine = evaluated(
        tmp_path / "weighted", {task: [i % 4 > 0] for i, task in enumerate(tasks)}, loss=1.75
    )
    theirs = evaluated(
        tmp_path / "uniform",
        {task: [i % 4 > 1, i % 4 > 2] for i, task in reversed([*enumerate(tasks)])}
        | {"micro/sum/other": [True]},
    )
    page = report(mine, "--against", str(theirs))
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("pass@1, test, 40 problems"))
    # Of each four problems: 0, 1, 1, 1 against 0, 0, ½, 1.
    mean, low, high = (float(x) for x in re.findall(r"[+][\d.]+", line))
    assert re.findall(r"[\d.]+ %", line) == ["75.0 %", "37.5 %"]
    assert mean == 37.5
    scores = np.array([[0, 1, 0.5, 0][i % 4] for i in range(40)])
    error = 196 * scores.std() / 40**0.5  # of the mean, in points
    assert low == pytest.approx(37.5 - error, abs=1.5)
    assert high == pytest.approx(37.5 + error, abs=1.5)
    assert "−0.250 nats" in said
    assert "Beside uniform" in page


def test_programs_of_a_benchmark_are_paired_too(tmp_path, capsys):
    """Several of a problem; settings that differ are told, the number of drafts is not."""
    runs = []
    for name, statuses, temperature in (
        ("weighted", {"a": ["passed", "passed"], "b": ["failed", "passed"]}, 0.0),
        ("uniform", {"b": ["timeout"], "a": ["passed"], "": ["passed"]}, 0.8),
    ):
        runs.append(metrics(tmp_path / name, STEP))
        folder = runs[-1] / "evaluation" / "humaneval"
        folder.mkdir(parents=True)
        lines = [
            json.dumps({"task_id": task, "status": one})
            for task, found in statuses.items()
            for one in found
        ]
        (folder / "attempts.jsonl").write_text("\n".join(lines))
        sampling = {"temperature": temperature, "speculation": {"k": len(name)}}
        (folder / "config.json").write_text(json.dumps({"sampling": sampling, "n_samples": 2}))
    report(runs[0], "--against", str(runs[1]))
    said = capsys.readouterr().out.partition("Beside uniform")[2]
    line = next(line for line in said.splitlines() if "humaneval, 2 problems" in line)
    assert "75.0 %" in line
    assert "50.0 %" in line
    assert "+25.0" in line
    assert "temperature 0.0 against 0.8" in said
    assert "k 8" not in said


def test_a_run_is_not_compared_with_itself(tmp_path, capsys):
    mine = evaluated(tmp_path / "weighted", {"micro/sum/1": [True]})
    assert main(["report", str(mine), "--against", str(mine)]) == 2
    assert "same run" in capsys.readouterr().err


def test_held_out_figures_of_other_text_are_not_compared(tmp_path, capsys):
    mine = evaluated(tmp_path / "weighted", {"micro/sum/1": [True]}, tokens=7)
    theirs = evaluated(tmp_path / "uniform", {"micro/sum/1": [False]}, tokens=8)
    report(mine, "--against", str(theirs))
    beside = capsys.readouterr().out.partition("Beside uniform")[2]
    assert "+100.0" in beside
    assert "nats" not in beside


def test_runs_with_nothing_in_common_are_not_compared(tmp_path, capsys):
    mine = evaluated(tmp_path / "weighted", {"micro/sum/1": [True]}, tokens=7)
    theirs = evaluated(tmp_path / "uniform", {"micro/sum/2": [True]}, tokens=8)
    assert main(["report", str(mine), "--against", str(theirs)]) == 2
    assert "evaluate both on the same problems" in capsys.readouterr().err
    assert not (mine / "report.html").exists()
    assert main(["report", str(mine), "--against", str(tmp_path)]) == 2
