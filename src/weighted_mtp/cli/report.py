"""`weighted-mtp report`: write the HTML report of a run and its loss curves as a PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

from weighted_mtp.analysis.charts import save_png
from weighted_mtp.analysis.html_report import write
from weighted_mtp.analysis.run_report import loss_curves, run_report
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_file
from weighted_mtp.core.run_records import find_run, read_evaluations, read_run
from weighted_mtp.core.types import TokenTrace
from weighted_mtp.evaluation.statistics import bootstrap_interval
from weighted_mtp.pipelines.evaluating.traces import trace_pairs


def run(args: argparse.Namespace) -> int:
    """Write report.html and loss.png; print the summary."""
    run_dir = find_run(args.run_dir)
    output = args.output or run_dir / "report.html"
    records = read_run(run_dir)
    check_output_file(output, "--output")
    picture = _picture(run_dir, output)
    losses = loss_curves(records.stages)
    if losses:
        save_png(losses, picture, f"Run {records.name}")
    passed = {
        split: [attempt["passed"] for attempt in found] for split, found in records.attempts.items()
    } | read_evaluations(run_dir)
    rates = {
        name: str(bootstrap_interval([float(one) for one in found]))
        for name, found in passed.items()
        if found
    }
    pairs, notes = _traces(run_dir, args.pairs) if args.pairs > 0 else ([], [])
    report = run_report(records, rates, pairs, notes, args.programs)
    write(report, output)
    lines = [*report.summary, *((name, value, "") for name, value in report.facts)]
    for name, value, meaning in lines:
        print(f"{name:<{max(len(line[0]) for line in lines)}}  {value:>18}   {meaning}".rstrip())
    print(f"\nreport: {output}")
    return 0


def _picture(run_dir: Path, output: Path) -> Path:
    """Return where loss.png goes: into the run, or next to the page if the run is read-only."""
    picture = run_dir / "loss.png"
    if output.parent != run_dir:
        try:
            check_output_file(picture, "--output")
            return picture
        except UserError:
            picture = output.with_name("loss.png")
    check_output_file(picture, "--output")
    return picture


def _traces(run_dir: Path, count: int) -> tuple[list[tuple[TokenTrace, TokenTrace]], list[str]]:
    """Return pairs of programs; none, with a note that says why, if they cannot be read (no
    checkpoint yet, the data is gone, …)."""
    try:
        return trace_pairs(run_dir, count), []
    except UserError as error:
        return [], [f"No programs to show token by token: {error}"]
