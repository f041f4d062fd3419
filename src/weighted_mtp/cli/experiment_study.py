"""`weighted-mtp experiment star-graph` and its like: studies of small tasks, from scratch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weighted_mtp.analysis.experiment_table import replace_section, seeds_told
from weighted_mtp.analysis.study_picture import plot_study
from weighted_mtp.analysis.study_table import (
    claim_table,
    line_table,
    study_arm_table,
    study_outcome,
)
from weighted_mtp.cli.arguments.experiment import NOT_FOR_STUDIES
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import (
    check_output_directory,
    check_output_file,
    command_line,
    set_options,
)
from weighted_mtp.pipelines.experiments.studies import STUDIES
from weighted_mtp.pipelines.experiments.study import StudyRequest
from weighted_mtp.pipelines.experiments.study_run import run_study

COUNTS = ("seeds", "steps", "n_test", "jobs")
DEFAULT_SEEDS = StudyRequest.seeds


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then write text, tables and picture."""
    request = request_of(args)
    picture = checked_picture(args.results, f"experiment-{args.name}", request.directory)
    results = run_study(request)
    title = f"experiment {args.name}"
    plot_study(results, picture, f"{title}: {seeds_told(results)}")
    text = section(results, os.path.relpath(picture, args.results.parent), _command(request))
    replace_section(args.results, title, text)
    print_results(text, args.results, picture, request.directory)
    return 0


def checked_picture(results: Path, name: str, directory: Path) -> Path:
    """The picture that belongs to a file of results; nothing is run before all can be written.

    Raises:
        UserError: the results, the picture, or the directory of the run cannot be.
    """
    picture = results.parent / "figures" / f"{name}.png"
    check_output_file(results, "--results")
    check_output_file(picture, "--results")
    check_output_directory(directory, "--output-dir")
    return picture


def print_results(text: str, results: Path, picture: Path, directory: Path) -> None:
    """Print what was written, and where."""
    print(text)
    print(f"text and picture: {results}, {picture}; all figures: {directory}")


def check_counts(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Refuse numbers below 1 among those that were given.

    Raises:
        UserError: which.
    """
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")


def request_of(args: argparse.Namespace) -> StudyRequest:
    """The request of a command line.

    Raises:
        UserError: a number is out of range, or an option of the other experiments was given.
    """
    check_counts(args, COUNTS)
    for name in NOT_FOR_STUDIES:
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} has no effect on {args.name}, whose arms all start "
                "from scratch; leave it out"
            )
    directory = args.output_dir or Path("runs") / f"experiment-{args.name}"
    return StudyRequest(
        directory=directory.absolute(),
        study=STUDIES[args.name],
        seeds=args.seeds or DEFAULT_SEEDS,
        arms=tuple(filter(None, args.arms.split(","))),
        steps=args.steps,
        n_test=args.n_test,
        jobs=args.jobs,
        settings=tuple(args.overrides),
    )


def section(results: Mapping[str, Any], picture: str, command: str) -> str:
    """The section of the results file."""
    plan = results["plan"]
    request, lines = plan["request"], line_table(results)
    return f"""
{study_outcome(results)}

![accuracy of every arm, and what was published]({picture})

{study_arm_table(results)}

{lines}{chr(10) * 2 if lines else ""}{claim_table(results)}

- {plan["about"]}; {request["n_test"]} of each kind, the same for all.
- Every arm from scratch, {request["steps"]} steps with a WSD schedule on fresh puzzles, those of a
  seed the same for all arms; brackets are 95 % t-intervals over {seeds_told(results)}.
  Chance is {100 * results["chance"]:.0f} %.
- The bold contrast was written to plan.json on {plan["written"]}, before any training; its p is not
  corrected, the others are (Holm). "Sign here" is undecided where the uncorrected interval holds 0.
- {results["core_minutes"]:.0f} core-minutes. Written by `{command}`.
"""


def _command(request: StudyRequest) -> str:
    words: list[object] = ["weighted-mtp", "experiment", request.study.name]
    for name, default in (("seeds", DEFAULT_SEEDS), ("steps", None), ("n_test", None)):
        value = getattr(request, name)
        if value not in (default, getattr(request.study, name, None)):
            words += [f"--{name.replace('_', '-')}", value]
    if request.arms:
        words += ["--arms", ",".join(request.arms)]
    return command_line(*words, *set_options(request.settings))
