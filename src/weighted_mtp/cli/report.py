"""`weighted-mtp report`: write the HTML report of a run and its loss curves as a PNG."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weighted_mtp.analysis.charts import save_png
from weighted_mtp.analysis.html_parts import Table
from weighted_mtp.analysis.html_report import write
from weighted_mtp.analysis.run_comparison import PassRates, compare_runs, unlike
from weighted_mtp.analysis.run_report import loss_curves, run_report
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_file
from weighted_mtp.core.run_records import (
    RunRecords,
    evaluation_settings,
    find_run,
    last,
    read_evaluations,
    read_run,
)
from weighted_mtp.core.types import TokenTrace
from weighted_mtp.evaluation.statistics import bootstrap_interval, paired_difference
from weighted_mtp.pipelines.evaluating.traces import trace_pairs

Attempts = Mapping[str, Sequence[Mapping[str, Any]]]
"""Programs by split or data set, each with `task_id` and `passed`."""


def run(args: argparse.Namespace) -> int:
    """Write report.html and loss.png; print the summary."""
    run_dir = find_run(args.run_dir)
    output = args.output or run_dir / "report.html"
    records = read_run(run_dir)
    check_output_file(output, "--output")
    attempts = {**records.attempts, **read_evaluations(run_dir)}
    beside = _beside(args.against, run_dir, records, attempts) if args.against else None
    picture = _picture(run_dir, output)
    losses = loss_curves(records.stages)
    if losses:
        save_png(losses, picture, f"Run {records.name}")
    rates = {
        name: str(bootstrap_interval([float(one["passed"]) for one in found]))
        for name, found in attempts.items()
        if found
    }
    pairs, notes = _traces(run_dir, args.pairs) if args.pairs > 0 else ([], [])
    report = run_report(records, rates, pairs, notes, args.programs)
    if beside is not None:
        report = replace(report, tables=[beside, *report.tables])
    write(report, output)
    lines = [*report.summary, *((name, value, "") for name, value in report.facts)]
    for name, value, meaning in lines:
        print(f"{name:<{max(len(line[0]) for line in lines)}}  {value:>18}   {meaning}".rstrip())
    if beside is not None:
        print(f"\n{beside.title}")
        for line in (beside.header, *beside.rows):
            print(f"{line[0]:<40} {line[1]:>12} {line[2]:>12}   {line[3]}")
        print(beside.caption)
    print(f"\nreport: {output}")
    return 0


def _beside(other: Path, run_dir: Path, records: RunRecords, attempts: Attempts) -> Table:
    """The run beside another.

    Raises:
        UserError: the other is not a run, or is this one, or nothing can be compared.
    """
    other_dir = find_run(other)
    if other_dir.resolve() == run_dir.resolve():
        raise UserError(f"--against {other}: is the same run; name another one")
    against = read_run(other_dir)
    rates = _paired(attempts, {**against.attempts, **read_evaluations(other_dir)})
    held_out = [last(run.stages["main"], "validation") for run in (records, against)]
    asked = {
        each.data: unlike(*(evaluation_settings(at, each.data) for at in (run_dir, other_dir)))
        for each in rates
    }
    table = compare_runs(against.name, rates, held_out, {k: v for k, v in asked.items() if v})
    if not table.rows:
        raise UserError(
            f"--against {other}: the runs have nothing in common to compare; evaluate both on the "
            "same problems (weighted-mtp evaluate)"
        )
    return table


def _paired(mine: Attempts, theirs: Attempts) -> list[PassRates]:
    """pass@1 on the problems both runs have programs for; several of one problem are averaged."""
    found = []
    for data, attempts in mine.items():
        shares = [_shares(each) for each in (attempts, theirs.get(data, ()))]
        common = [task for task in shares[0] if task in shares[1]]
        if common:
            a, b = ([share[task] for task in common] for share in shares)
            difference = paired_difference(a, b)._asdict()
            n = len(common)
            found.append(PassRates(data, n, sum(a) / n, sum(b) / n, difference))
    return found


def _shares(attempts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The share of the programs that passed, by problem."""
    found: dict[str, list[bool]] = {}
    for attempt in attempts:
        if attempt["task_id"]:
            found.setdefault(attempt["task_id"], []).append(attempt["passed"])
    return {task: sum(passed) / len(passed) for task, passed in found.items()}


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
