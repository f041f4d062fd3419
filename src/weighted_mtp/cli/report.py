"""`weighted-mtp report`: a run as one HTML page, its loss curves as a picture, a table in words."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weighted_mtp.analysis.html_report import Curve, ProgramCard, Report, Table, TokenTrace, write
from weighted_mtp.analysis.html_style import figure
from weighted_mtp.analysis.plots import plot_losses
from weighted_mtp.core.errors import UserError
from weighted_mtp.evaluation.statistics import bootstrap_interval
from weighted_mtp.pipelines.metrics_utils import curve, read_metrics, shown
from weighted_mtp.pipelines.traces import trace_pairs

Records = Sequence[dict[str, Any]]
SPLITS = {
    "test": "new problems of the kinds it was trained on",
    "compositions": "two known operations put together in a way it never saw",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `report`."""
    parser.add_argument("run_dir", type=Path, help="a run directory")
    parser.add_argument("--output", type=Path, help="HTML to write (default RUN/report.html)")
    parser.add_argument(
        "--pairs", type=int, default=4, help="right and wrong programs to look into"
    )
    parser.add_argument("--programs", type=int, default=6, help="generated programs to show")


def run(args: argparse.Namespace) -> int:
    """Write RUN/report.html and RUN/loss.png; print the summary."""
    stages = read_stages(args.run_dir)
    records = stages["main"]
    train = curve(records, "train", "head_loss")
    if train[0]:
        plot_losses(
            train,
            curve(records, "validation", "head_loss"),
            curve(records, "validation", "head_accuracy"),
            args.run_dir / "loss.png",
            f"{args.run_dir.name}: {train[0][-1]} steps",
        )
    attempts = {split: read_attempts(args.run_dir, split) for split in SPLITS}
    summary = summarise(stages, attempts)
    output = args.output or args.run_dir / "report.html"
    config = args.run_dir / "config.yaml"
    pairs = trace_pairs(args.run_dir, args.pairs) if args.pairs > 0 else []
    report = Report(
        title=f"Run {args.run_dir.name}",
        summary=summary,
        curves=curves(stages),
        pairs=[(TokenTrace(**asdict(a)), TokenTrace(**asdict(b))) for a, b in pairs],
        tables=[
            *heads(_last(records, "validation")),
            *(families(split, found) for split, found in attempts.items() if found),
        ],
        programs=[card(attempt) for attempt in pick(attempts["test"], args.programs)],
        settings=config.read_text(encoding="utf-8") if config.exists() else "",
    )
    write(report, output)
    width = max(len(name) for name, _, _ in summary)
    for name, value, meaning in summary:
        print(f"{name:<{width}}  {value:>18}   {meaning}")
    print(f"\nreport: {output}")
    return 0


def read_stages(run_dir: Path) -> dict[str, Records]:
    """Metrics of the main stage and, where there was one, of the critic before it.

    Raises:
        UserError: `run_dir` is no run, or has trained no step.
    """
    metrics = run_dir / "metrics.jsonl"
    if not metrics.exists():
        raise UserError(f"{metrics}: no such file; give the directory of a training run")
    stages: dict[str, Records] = {"main": read_metrics(metrics)}
    if not any(r["kind"] == "train" for r in stages["main"]):
        raise UserError(f"{metrics}: holds no training step yet")
    critic = run_dir / "critic" / "metrics.jsonl"
    if critic.exists():
        stages = {"critic": read_metrics(critic), **stages}
    return stages


def read_attempts(run_dir: Path, split: str) -> list[dict[str, Any]]:
    """Programs of `weighted-mtp evaluate`, none if it was not run."""
    path = run_dir / "evaluation" / f"micro-{split}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
    if "head_loss" in held_out:
        accuracy, loss = held_out["head_accuracy"][0], held_out["head_loss"][0]
        lines.append(("next token right", shown(accuracy, ".1%"), "on held-out correct programs"))
        nats = f"{shown(loss, '.3f')} nats"
        lines.append(("loss of head 1", nats, "the same, as cross-entropy a token"))
    if len(held_out.get("head_acceptance", ())) > 1:
        gained = shown(held_out["tokens_per_forward"], ".2f")
        gained += f" of {len(held_out['head_acceptance'])}"
        meaning = "that greedy decoding gains on such text, with the heads' drafts to check"
        lines.append(("tokens a forward", gained, meaning))
    if "right_preferred" in held_out:
        meaning = "of a right and a wrong program of one problem, it finds the right one likelier"
        lines.append(("right preferred", shown(held_out["right_preferred"], ".1%"), meaning))
    judged = _last(stages["critic"], "validation") if "critic" in stages else held_out
    for at, words in (("50", "half a program"), ("100", "a whole program")):
        if f"auc_at_{at}" in judged:
            meaning = f"how surely the critic, after {words}, ranks a right one above a wrong one"
            lines.append((f"critic's AUC at {at} %", shown(judged[f"auc_at_{at}"], ".2f"), meaning))
    for group, words in (("correct", "right"), ("incorrect", "wrong")):
        means = [stats["mean"] for stats in curve(stages["main"], "train", f"weight_{group}")[1]]
        if means:  # the last batch may have had no such program
            known = [mean for mean in means if not math.isnan(mean)]
            weight = shown(known[-1] if known else None, ".2f")
            meaning = f"how much a token of a {words} program counts, on average (1: as usual)"
            lines.append((f"weight, {words}", weight, meaning))
    return lines


def curves(stages: Mapping[str, Records]) -> list[Curve]:
    """Losses of every head, the critic's AUC, the weights; for each stage that has them."""
    charts = []
    for stage, records in stages.items():
        title = "" if len(stages) == 1 else f", {stage} stage"
        steps, losses = curve(records, "train", "head_loss")
        if steps:
            series = {
                f"head {k + 1}": (steps, [line[k] for line in losses])
                for k in range(len(losses[0]))
            }
            caption = "Head k predicts the token k places ahead; lower is better."
            charts.append(
                Curve(f"Training loss{title}", "step", "nats a token", series, True, caption)
            )
        series = {
            f"after {at} % of the program": curve(records, "validation", f"auc_at_{at}")
            for at in (25, 50, 75, 100)
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
                series[words] = (steps, [s["mean"] for s in stats])
        if series:
            caption = "Above 1 a token counts more than usual, below 1 less."
            charts.append(
                Curve(f"Mean token weight{title}", "step", "weight", series, False, caption)
            )
    return charts


def heads(held_out: Mapping[str, Any]) -> list[Table]:
    """Quality of each head on held-out text, in one table; none if it was not measured."""
    if "head_acceptance" not in held_out:
        return []
    columns = {
        "loss (nats)": [figure(x) for x in held_out["head_loss"]],
        "accuracy": [shown(x, ".1%") for x in held_out["head_accuracy"]],
        "confidence": [shown(x, ".1%") for x in held_out["head_confidence"]],
        "calibration error": [shown(x, ".1%") for x in held_out["head_calibration_error"]],
        "drafts kept, greedy": [shown(x, ".1%") for x in held_out["head_acceptance"]],
        "drafts kept, sampled": [shown(x, ".1%") for x in held_out["head_acceptance_sampled"]],
    }
    caption = (
        "Head k predicts the token k places ahead. Confidence: the chance it gives its best token, "
        "on average; calibration error: how far that is from how often it is right. Drafts kept: "
        "how often head 1, which has then read the tokens between, would write the same (greedy) "
        "or keep what was drawn (sampled, temperature 1); head 1 drafts nothing. A draft is of use "
        "if those before it were kept, and so a forward pass gains "
        f"{shown(held_out['tokens_per_forward'], '.2f')} tokens greedy, "
        f"{shown(held_out['tokens_per_forward_sampled'], '.2f')} sampled."
    )
    if len(held_out["head_acceptance"]) == 1:  # nothing to draft with
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


def _last(records: Records, kind: str) -> dict[str, Any]:
    found = [r for r in records if r["kind"] == kind]
    return found[-1] if found else {}
