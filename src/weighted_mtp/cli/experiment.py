"""`weighted-mtp experiment`: compare objectives and controls under one budget, by a plan."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weighted_mtp.analysis.experiment_picture import plot
from weighted_mtp.analysis.experiment_table import (
    arm_table,
    comparison_table,
    outcome,
    replace_section,
    seeds_told,
)
from weighted_mtp.cli import experiment_study
from weighted_mtp.cli.arguments.experiment import DEFAULT
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import command_line, set_options
from weighted_mtp.pipelines.experiments.arms import DESIGNS
from weighted_mtp.pipelines.experiments.request import ExperimentRequest
from weighted_mtp.pipelines.experiments.run import run_experiment
from weighted_mtp.pipelines.experiments.studies import STUDIES

COUNTS = ("seeds", "choice_seeds", "steps", "base_steps", "n_test", "n_validation", "jobs")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then write text, tables and picture."""
    if args.name in STUDIES:
        return experiment_study.run(args)
    args.regime = args.regime or DESIGNS[args.name].regimes[0]
    request = request_of(args)
    title = f"experiment {args.name}, {args.regime}"
    name = f"experiment-{args.name}-{args.regime}"
    picture = experiment_study.checked_picture(args.results, name, request.directory)
    results = run_experiment(request)
    plot(results, picture, f"{title}: {seeds_told(results)}")
    link = os.path.relpath(picture, args.results.parent)
    text = section(results, link, _command(args, request))
    replace_section(args.results, title, text)
    experiment_study.print_results(text, args.results, picture, request.directory)
    return 0


def request_of(args: argparse.Namespace) -> ExperimentRequest:
    """The request of a command line.

    Raises:
        UserError: a number is out of range.
    """
    for name in ("preset", "n_problems", *COUNTS):
        if getattr(args, name) is None:
            setattr(args, name, getattr(DEFAULT, name))
    experiment_study.check_counts(args, COUNTS)
    if not 0 <= args.n_problems <= args.n_test:
        raise UserError("--n-problems must lie between 0 and --n-test")
    if args.flipped is not None and not 0 <= args.flipped < 0.5:
        raise UserError("--flipped must be at least 0 and below 0.5")
    directory = args.output_dir or Path("runs") / f"experiment-{args.name}-{args.regime}"
    return ExperimentRequest(
        directory=directory.absolute(),
        name=args.name,
        regime=args.regime,
        preset=args.preset,
        flipped=args.flipped,
        arms=tuple(filter(None, args.arms.split(","))),
        base_rows=args.base_rows,
        base_limit=args.base_limit,
        settings=tuple(args.overrides),
        n_problems=args.n_problems,
        **{name: getattr(args, name) for name in COUNTS},
    )


def section(results: Mapping[str, Any], picture: str, command: str) -> str:
    """The section of the results file."""
    plan, choice = results["plan"], results["choice"]
    rows, request = plan["rows"], plan["request"]
    excluded = ", ".join(map(str, results["excluded"])) or "none"
    losses = [base["loss"] for base in results["base"].values()]
    known = [loss for loss in losses if loss is not None]
    replaced = rows["replaced"]
    noise = (
        f", {replaced:.0%} of whose tokens are replaced (a third is kept clean for the reference)"
    )
    noise = noise if replaced else ""
    flipped = f", {rows['flipped']:.0%} of the labels flipped" if rows["flipped"] else ""
    broad, rule = plan["broad_rows"], plan["exclusion"]
    learnt = f"{broad['right']} right and {broad['wrong']} wrong programs of other problems"
    learnt = "these rows" if rows["base_rows"] == "regime" else learnt
    return f"""
{outcome(results)}

![loss of every arm]({picture})

{arm_table(results)}

{comparison_table(results)}

- Rows of each seed: {rows["right"]} right and {rows["wrong"]} wrong programs of {rows["problems"]}
  problems{flipped}{noise}. Base: {request["base_steps"]} steps from scratch on {learnt};
  every arm: {request["steps"]} more.
- Loss of head 1 on the right programs of {request["n_test"]} test problems, nats per token, lower
  is better; brackets are 95 % t-intervals over {seeds_told(results)}. Share of headroom:
  (uniform − arm) / (uniform − oracle), interval from resampled seeds. Seeds × programs: bootstrap
  over both. pass@1: {request["n_problems"]} test problems, greedy, differences in points.
- The bold contrast was written to plan.json on {plan["written"]}, before any training; its p is not
  corrected, the others are (Holm).
{_choice(plan, choice)}- {rule[0].upper()}{rule[1:]}. Excluded: {excluded}. Bases:
  {min(known, default=float("nan")):.3f} to {max(known, default=float("nan")):.3f} nats.
- {results["core_minutes"]:.0f} core-minutes, generating the data excepted. Written by `{command}`.
"""


def _choice(plan: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    if plan["choice"] is None:
        return ""
    means = ", ".join(f"{name}: {loss:.4f}" for name, loss in choice["means"].items())
    return (
        f"- λ, β of `{plan['choice']['arm']}`: **{choice['chosen']}**, lowest of the validation "
        f"losses of {len(plan['choice_seeds'])}\n  seeds of their own ({means}).\n"
    )


def _command(args: argparse.Namespace, request: ExperimentRequest) -> str:
    words: list[object] = ["weighted-mtp", "experiment", args.name, "--regime", args.regime]
    for name in ("preset", "n_problems", "base_rows", "base_limit", "flipped", *COUNTS):
        value = getattr(request, name)
        if name != "jobs" and value != getattr(DEFAULT, name):
            words += [f"--{name.replace('_', '-')}", value]
    if request.arms:
        words += ["--arms", ",".join(request.arms)]
    return command_line(*words, *set_options(request.settings))
