"""`weighted-mtp experiment`: compare objectives and controls under one budget."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from weighted_mtp.analysis.experiment_table import (
    Line,
    comparison_table,
    markdown_table,
    plot,
    replace_section,
)
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import (
    check_output_directory,
    check_output_file,
    command_line,
    given_path,
)
from weighted_mtp.evaluation.statistics import Interval, hierarchical_bootstrap, paired_difference
from weighted_mtp.pipelines.evaluating.experiment import (
    ARMS,
    COMPARISONS,
    SPLITS,
    ArmResult,
    ExperimentRequest,
    run_experiment,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `experiment`."""
    parser.add_argument(
        "name", choices=["wmtp"], help="wmtp: all token weightings and their controls"
    )
    parser.add_argument("--preset", default="micro", help="scale of all runs (default micro)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default 3)")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated (default: all)")
    parser.add_argument("--steps", type=int, default=150, help="steps of every arm (default 150)")
    parser.add_argument(
        "--base-steps", type=int, default=500, help="steps of the common start (default 500)"
    )
    parser.add_argument(
        "--n-problems", type=int, default=200, help="held-out problems of each split (default 200)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs in parallel (default 1)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one option of every recipe; repeatable (weighted-mtp options lists them)",
    )
    parser.add_argument(
        "--output-dir",
        type=given_path,
        help="directory of the runs (default runs/experiment-NAME-PRESET)",
    )
    parser.add_argument("--against", help="arm to compare with (default uniform, or baseline)")
    parser.add_argument(
        "--results",
        type=given_path,
        default=Path("docs/RESULTS.md"),
        help="Markdown file that receives the table (default docs/RESULTS.md)",
    )


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then write tables and picture."""
    for name in ("seeds", "steps", "base_steps", "n_problems", "jobs"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    directory = args.output_dir or Path("runs") / f"experiment-{args.name}-{args.preset}"
    arms = tuple(args.arms.split(","))
    request = ExperimentRequest(
        directory.absolute(),
        args.preset,
        args.seeds,
        arms,
        args.steps,
        args.base_steps,
        args.n_problems,
        args.jobs,
        tuple(args.overrides),
    )
    against = args.against or ("uniform" if "uniform" in arms else "baseline")
    if against not in arms:
        raise UserError(f"--against {against}: not one of the arms {', '.join(arms)}")
    check_output_file(args.results, "--results")
    check_output_file(_picture(args), "--results")
    check_output_directory(directory, "--output-dir")
    results = run_experiment(request)
    write(args, request, results, against)
    return 0


def summarise(results: Sequence[ArmResult], against: str) -> list[Line]:
    """Return a line for each arm, best first. Intervals resample seeds and problems together."""
    by_arm = group(results)
    tables = {arm: {s: table(part, s) for s in SPLITS} for arm, part in by_arm.items()}
    lines = []
    for arm, part in by_arm.items():
        first = tables[arm][SPLITS[0]]
        difference = None
        if arm != against:
            other = tables[against][SPLITS[0]]
            difference = paired_difference(first, other, same_problems=True)
        lines.append(
            Line(
                arm,
                ARMS[arm].about,
                {
                    split: hierarchical_bootstrap(scores, same_problems=True)
                    for split, scores in tables[arm].items()
                },
                difference,
                tuple(first.mean(axis=1)),
                tuple(result.right_preferred for result in part),
                _mean_known([result.head_loss[0] for result in part if result.head_loss]),
                int(np.mean([result.tokens for result in part])),
            )
        )
    return sorted(lines, key=lambda line: -line.scores[SPLITS[0]][0])


def compare(
    results: Sequence[ArmResult],
) -> list[tuple[str, str, str, list[Interval]]]:
    """Return paired differences between the arms in `COMPARISONS`, on every split."""
    by_arm = group(results)
    return [
        (
            arm,
            other,
            shows,
            [
                paired_difference(
                    table(by_arm[arm], split), table(by_arm[other], split), same_problems=True
                )
                for split in SPLITS
            ],
        )
        for arm, other, shows in COMPARISONS
        if arm in by_arm and other in by_arm
    ]


def group(results: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """Group results by arm, in the order of seeds."""
    by_arm: dict[str, list[ArmResult]] = {}
    for result in sorted(results, key=lambda result: result.seed):
        by_arm.setdefault(result.arm, []).append(result)
    return by_arm


def table(results: Sequence[ArmResult], split: str) -> np.ndarray:
    """Return `[seeds, problems]` 0 or 1; every seed has the same problems."""
    problems = sorted(results[0].passed[split])
    return np.array([[float(r.passed[split][p]) for p in problems] for r in results])


def _mean_known(values: Sequence[float]) -> float:
    """Average those that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _picture(args: argparse.Namespace) -> Path:
    return Path(args.results).parent / "figures" / f"experiment-{args.name}-{args.preset}.png"


def write(
    args: argparse.Namespace, request: ExperimentRequest, results: Sequence[ArmResult], against: str
) -> None:
    """Write a section of the results file and its picture, and print the tables."""
    lines = summarise(results, against)
    title = f"experiment {args.name}, preset {args.preset}"
    picture = _picture(args)
    plot(lines, SPLITS, picture, f"{title}: {request.seeds} seeds, {request.n_problems} problems")
    ranked = markdown_table(lines, SPLITS, against)
    compared = comparison_table(compare(results), SPLITS)
    command = command_line(
        *("weighted-mtp", "experiment", args.name, "--preset", args.preset),
        *("--seeds", request.seeds, "--arms", ",".join(request.arms), "--steps", request.steps),
        *("--base-steps", request.base_steps, "--n-problems", request.n_problems),
        *(word for setting in request.settings for word in ("--set", setting)),
    )
    text = f"""
{ranked}

![pass@1 of every arm]({os.path.relpath(picture, args.results.parent)})

{compared}

Written by `{command}`.

- {request.seeds} seeds; {request.n_problems} greedy programs for each split and seed. Brackets are
  95 % percentile bootstrap intervals over seeds and problems together; differences are paired, in
  percentage points (in the first table on the test split). With few seeds such intervals are too
  narrow, because the variance between seeds is poorly estimated.
- "Right preferred": of held-out pairs of a right and a wrong program of one problem, the share
  whose right one the model finds likelier (mean, lowest and highest seed; 50 % is chance).
- Every arm starts from its seed's base ({request.base_steps} steps on right and wrong programs
  alike, with a critic) and trains for {request.steps} steps of the same number of rows. Arms on
  correct programs draw them from half of the rows.
- Beyond that budget: `verifiable`, `value_only`, `random_matched` and `shuffled` also train the
  value head (its gradient reaches the trunk if `objective.value.gradient_to_trunk` is set), and
  `rho1` uses the finished `baseline` arm as its reference model. `value_only` is `verifiable` with
  every weight 1.
"""
    replace_section(args.results, title, text)
    print(ranked)
    print(f"\n{compared}\n\ntables and picture: {args.results}, {picture}")
