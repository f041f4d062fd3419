"""`weighted-mtp report`: a run as one HTML page, its loss curves as a picture, a table in words."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weighted_mtp.analysis.html_report import Curve, ProgramCard, Report, Table, write
from weighted_mtp.analysis.html_style import figure
from weighted_mtp.analysis.plots import plot_losses
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_file, given_path
from weighted_mtp.core.input_files import read_json_lines
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.types import TokenTrace
from weighted_mtp.evaluation.statistics import bootstrap_interval
from weighted_mtp.pipelines.evaluating.traces import trace_pairs
from weighted_mtp.pipelines.metrics_utils import (
    curve,
    head_figures,
    heads_curve,
    number,
    read_metrics,
)

log = get_logger(__name__)

Records = Sequence[dict[str, Any]]
METRICS = ("metrics.jsonl", "critic/metrics.jsonl")
"""Of a run, and of its first stage."""
ATTEMPT = ("task_id", "instruction", "completion", "status", "detail")
SPLITS = {
    "test": "new problems of the kinds it was trained on",
    "compositions": "two known operations put together in a way it never saw",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `report`."""
    parser.add_argument("run_dir", type=given_path, help="a run directory, or a checkpoint in it")
    parser.add_argument("--output", type=given_path, help="HTML to write (default RUN/report.html)")
    parser.add_argument(
        "--pairs", type=int, default=4, help="right and wrong programs to look into"
    )
    parser.add_argument("--programs", type=int, default=6, help="generated programs to show")


def run(args: argparse.Namespace) -> int:
    """Write report.html and loss.png; print the summary."""
    run_dir = _run_of(args.run_dir)
    output = args.output or run_dir / "report.html"
    stages = read_stages(run_dir)
    check_output_file(output, "--output")
    picture = _picture(run_dir, output)
    records = stages["main"]
    name = run_dir.resolve().name
    train = heads_curve(records, "train", "head_loss")
    if train[0]:
        plot_losses(
            train,
            heads_curve(records, "validation", "head_loss"),
            heads_curve(records, "validation", "head_accuracy"),
            picture,
            f"{name}: {train[0][-1]} steps",
        )
    attempts = {split: read_attempts(run_dir, split) for split in SPLITS}
    summary = summarise(stages, attempts)
    config = run_dir / "config.yaml"
    pairs, notes = _traces(run_dir, args.pairs) if args.pairs > 0 else ([], [])
    report = Report(
        title=f"Run {name}",
        summary=summary,
        curves=curves(stages),
        pairs=pairs,
        tables=[
            *heads(_last(records, "validation")),
            *(families(split, found) for split, found in attempts.items() if found),
        ],
        programs=[card(attempt) for attempt in pick(attempts["test"], args.programs)],
        settings=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        notes=notes,
    )
    write(report, output)
    width = max((len(name) for name, _, _ in summary), default=0)
    for what, value, meaning in summary:
        print(f"{what:<{width}}  {value:>18}   {meaning}")
    print(f"\nreport: {output}")
    return 0


def _picture(run_dir: Path, output: Path) -> Path:
    """Where loss.png goes: into the run, or beside the page if the run cannot be written to."""
    picture = run_dir / "loss.png"
    if output.parent != run_dir:
        try:
            check_output_file(picture, "--output")
            return picture
        except UserError:
            picture = output.with_name("loss.png")
    check_output_file(picture, "--output")
    return picture


def _run_of(path: Path) -> Path:
    """The run that is meant: the directory itself, or that of a checkpoint or model in a run."""
    for place in (path, *path.resolve().parents[:3]):
        if any((place / name).exists() for name in METRICS):
            return place
    return path


def _traces(run_dir: Path, count: int) -> tuple[list[tuple[TokenTrace, TokenTrace]], list[str]]:
    """Pairs of programs to look into; none, and a note that says why, if they cannot be read (the
    run was stopped before its first checkpoint, its data is gone, …)."""
    try:
        return trace_pairs(run_dir, count), []
    except UserError as error:
        return [], [f"No programs to look into token by token: {error}"]


def read_stages(run_dir: Path) -> dict[str, Records]:
    """Metrics of the main stage and, where there was one, of the critic before it; that stage's
    alone if the run has not come further.

    Raises:
        UserError: `run_dir` is not a run, or has trained no step.
    """
    found: dict[str, Records] = {}
    for stage, name in zip(("main", "critic"), METRICS, strict=True):
        path = run_dir / name
        records = read_metrics(path) if path.is_file() else []
        if any(r["kind"] == "train" for r in records):
            found[stage] = records
    if not found:
        metrics = run_dir / METRICS[0]
        if not metrics.exists():
            raise UserError(f"{metrics}: no such file; give the directory of a training run")
        raise UserError(f"{metrics}: contains no training step yet; train first")
    return found if "main" in found else {"main": found["critic"]}


def read_attempts(run_dir: Path, split: str) -> list[dict[str, Any]]:
    """Programs of `weighted-mtp evaluate`, none if it was not run; a line that is not one (cut
    short by a kill or a full disk) is passed over."""
    path = run_dir / "evaluation" / f"micro-{split}.jsonl"
    if not path.is_file():
        return []
    records, others = read_json_lines(path)
    attempts = []
    for record in records:
        if isinstance(record.get("passed"), bool):
            attempts.append({**record, **{key: str(record.get(key, "")) for key in ATTEMPT}})
    others += len(records) - len(attempts)
    if others:
        log.warning("%s: %d lines are not results", path, others)
    return attempts


def summarise(
    stages: Mapping[str, Records], attempts: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[tuple[str, str, str]]:
    """(what, figure, what it means)."""
    lines = []
    for split, found in attempts.items():
        if found:
            scores = [float(attempt["passed"]) for attempt in found]
            mean = bootstrap_interval(scores)
            lines.append(
                (f"pass@1, {split}", str(mean), f"programs that run right: {SPLITS[split]}")
            )
    held_out = _last(stages["main"], "validation")
    accuracy, loss = head_figures(held_out, "head_accuracy"), head_figures(held_out, "head_loss")
    if accuracy and loss:
        right, nats = _percent(accuracy[0]), _decimals(loss[0], 3)
        lines.append(("next token right", right, "on held-out correct programs"))
        lines.append(("loss of head 1", f"{nats} nats", "the same, as cross-entropy a token"))
    acceptance = head_figures(held_out, "head_acceptance")
    if len(acceptance) > 1:
        gained = f"{_decimals(held_out.get('tokens_per_forward'))} of {len(acceptance)}"
        meaning = "that greedy decoding gains on such text, with the heads' drafts to check"
        lines.append(("tokens a forward", gained, meaning))
    if "right_preferred" in held_out:
        meaning = "of a right and a wrong program of one problem, it finds the right one likelier"
        lines.append(("right preferred", _percent(held_out["right_preferred"]), meaning))
    judged = _last(stages["critic"], "validation") if "critic" in stages else held_out
    for at, words in (("50", "half a program"), ("100", "a whole program")):
        if f"auc_at_{at}" in judged:
            meaning = f"how surely the critic, after {words}, ranks a right one above a wrong one"
            lines.append((f"critic's AUC at {at} %", _decimals(judged[f"auc_at_{at}"]), meaning))
    for group, words in (("correct", "right"), ("incorrect", "wrong")):
        means = [_mean(stats) for stats in curve(stages["main"], "train", f"weight_{group}")[1]]
        if means:  # the last batch may have had no such program
            known = [mean for mean in means if not math.isnan(mean)]
            weight = _decimals(known[-1] if known else math.nan)
            meaning = f"how much a token of a {words} program counts, on average (1: as usual)"
            lines.append((f"weight, {words}", weight, meaning))
    return lines


def curves(stages: Mapping[str, Records]) -> list[Curve]:
    """Losses of every head, the critic's AUC, the weights; for each stage that has them."""
    charts = []
    for stage, records in stages.items():
        title = "" if len(stages) == 1 else f", {stage} stage"
        steps, losses = heads_curve(records, "train", "head_loss")
        if steps:
            series = {
                f"head {k + 1}": (steps, [x[k] if k < len(x) else math.nan for x in losses])
                for k in range(max(map(len, losses)))
            }
            caption = "Head k predicts the token k places ahead; lower is better."
            charts.append(
                Curve(f"Training loss{title}", "step", "nats a token", series, True, caption)
            )
        series = {
            f"after {at} % of the program": (steps, [number(value) for value in values])
            for at in (25, 50, 75, 100)
            for steps, values in (curve(records, "validation", f"auc_at_{at}"),)
        }
        series = {name: points for name, points in series.items() if points[0]}
        if series:
            caption = "How well the critic tells right programs from wrong ones: 0.5 is guessing."
            charts.append(
                Curve(f"Critic on held-out problems{title}", "step", "AUC", series, False, caption)
            )
        series = {}
        for group, words in (("correct", "right programs"), ("incorrect", "wrong programs")):
            steps, stats = curve(records, "train", f"weight_{group}")
            if steps:
                series[words] = (steps, [_mean(s) for s in stats])
        if series:
            caption = "Above 1 a token counts more than usual, below 1 less."
            charts.append(
                Curve(f"Mean token weight{title}", "step", "weight", series, False, caption)
            )
    return charts


def heads(held_out: Mapping[str, Any]) -> list[Table]:
    """Quality of each head on held-out text, in one table; none if it was not measured."""
    count = len(head_figures(held_out, "head_acceptance"))
    if not count:
        return []
    figures = {
        "loss (nats)": "head_loss",
        "accuracy": "head_accuracy",
        "confidence": "head_confidence",
        "calibration error": "head_calibration_error",
        "drafts kept, greedy": "head_acceptance",
        "drafts kept, sampled": "head_acceptance_sampled",
    }
    columns = {}
    for name, key in figures.items():
        values = [*head_figures(held_out, key), *[math.nan] * count][:count]
        columns[name] = [figure(x) if key == "head_loss" else _percent(x) for x in values]
    caption = (
        "Head k predicts the token k places ahead. Confidence: the chance it gives its best token, "
        "on average; calibration error: how far that is from how often it is right. Drafts kept: "
        "how often head 1, which has then read the tokens between, would write the same (greedy) "
        "or keep what was drawn (sampled, temperature 1); head 1 drafts nothing. A draft is of use "
        "if those before it were kept, and so a forward pass gains "
        f"{_decimals(held_out.get('tokens_per_forward'))} tokens greedy, "
        f"{_decimals(held_out.get('tokens_per_forward_sampled'))} sampled."
    )
    if count == 1:  # nothing to draft with
        del columns["drafts kept, greedy"], columns["drafts kept, sampled"]
        caption = caption.partition(" Drafts kept")[0]
    rows = [(f"head {k}", *cells) for k, cells in enumerate(zip(*columns.values(), strict=True), 1)]
    return [Table("Each head on held-out text", ("", *columns), rows, caption)]


def families(split: str, attempts: Sequence[Mapping[str, Any]]) -> Table:
    """pass@1 by family of problems."""
    scores: dict[str, list[float]] = {}
    for attempt in attempts:
        family = attempt["task_id"].split("/")[1] if "/" in attempt["task_id"] else "all"
        scores.setdefault(family, []).append(float(attempt["passed"]))
    rows = [
        (family, f"{sum(s) / len(s):.0%}", str(len(s)))
        for family, s in sorted(scores.items(), key=lambda item: -sum(item[1]) / len(item[1]))
    ]
    return Table(f"pass@1 by kind of problem: {split}", ("kind", "pass@1", "programs"), rows)


def pick(attempts: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Some that pass and some that do not, in turn."""
    right = [a for a in attempts if a["passed"]][: (count + 1) // 2]
    wrong = [a for a in attempts if not a["passed"]]
    return [*right, *wrong[: count - len(right)]]


def card(attempt: Mapping[str, Any]) -> ProgramCard:
    """A generated program and its verdict."""
    failed = f"{attempt['status']}: {attempt['detail']}"
    verdict = "passes its tests" if attempt["passed"] else failed
    return ProgramCard(attempt["instruction"], attempt["completion"], verdict, attempt["passed"])


def _percent(share: Any) -> str:
    return "–" if math.isnan(number(share)) else f"{share:.1%}"


def _decimals(value: Any, places: int = 2) -> str:
    return "–" if math.isnan(number(value)) else f"{value:.{places}f}"


def _mean(statistics: Any) -> float:
    return number(statistics.get("mean")) if isinstance(statistics, dict) else math.nan


def _last(records: Records, kind: str) -> dict[str, Any]:
    found = [r for r in records if r["kind"] == kind]
    return found[-1] if found else {}
