"""`weighted-mtp prepare`: write data sets, one sub-command each (the table `RUN`)."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from weighted_mtp.cli.prepare_sources import run_source
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_file
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import Row
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.data.prepare.sources import SOURCES
from weighted_mtp.evaluation.attempt_rows import (
    AttemptRows,
    Selection,
    attempt_rows,
    results_directory,
)
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import generate, up_to


def run(args: argparse.Namespace) -> int:
    """Run the sub-command."""
    return RUN[args.kind](args)


def run_micro(args: argparse.Namespace) -> int:
    """Generate problems, run every solution, write the rows."""
    for option, least in (("n", 1), ("correct", 0), ("incorrect", 0)):
        if getattr(args, option) < least:
            raise UserError(f"--{option} must be at least {least}")
    if args.correct + args.incorrect == 0:
        raise UserError("--correct and --incorrect are both 0, which gives no rows; raise one")
    if not 1 <= args.max_difficulty <= 11:
        raise UserError("--max-difficulty must be from 1 to 11")
    _check_target(args.out, args.overwrite)
    start = time.monotonic()
    with Sandbox() as judge, Progress(args.n, "problem") as progress:
        rows = generate(
            args.n,
            args.seed,
            judge,
            args.split,
            args.correct,
            args.incorrect,
            families=up_to(
                args.max_difficulty,
                args.families.split(",") if args.families else None,
                args.max_constant,
                not args.plain_names,
            ),
            on_progress=progress.update,
        )
    _write(args.out, rows)
    right = sum(row["is_correct"] for row in rows)
    families = len({row["metadata"]["family"] for row in rows})
    print(
        f"{len(rows):,} rows ({right:,} correct, {len(rows) - right:,} incorrect) of {families} "
        f"families in {time.monotonic() - start:.1f} s: {args.out}"
    )
    return 0


def run_attempts(args: argparse.Namespace) -> int:
    """Turn judged programs into labelled rows."""
    if args.per_problem < 1:
        raise UserError("--per-problem must be at least 1")
    _check_target(args.out, args.overwrite)
    folders = [results_directory(path) for path in args.evaluation]
    found = attempt_rows(folders, Selection(args.per_problem, args.mixed, args.seed))
    if not found.rows:
        raise UserError("no attempt remains: " + _left_out(found))
    _write(args.out, found.rows)
    correct = sum(row["is_correct"] for row in found.rows)
    problems = len({row["task_id"] for row in found.rows})
    print(
        f"{len(found.rows):,} rows ({correct:,} correct, {len(found.rows) - correct:,} incorrect) "
        f"of {problems:,} problems: {args.out}"
    )
    print(f"left out: {_left_out(found)}")
    return 0


def run_model(args: argparse.Namespace) -> int:
    """Run a sub-command that runs a model; the others need not wait for torch."""
    from weighted_mtp.cli import prepare_models, prepare_self

    model_commands = {
        "reference-losses": prepare_models.run_reference,
        "self": prepare_self.run_self,
        "states": prepare_models.run_states,
    }
    return model_commands[args.kind](args)


def _left_out(found: AttemptRows) -> str:
    return (
        f"{found.duplicates:,} duplicates, {found.surplus:,} for balance, {found.unwritten:,} "
        f"without a program, {found.alike:,} problems solved always or never"
    )


# --- files -----------------------------------------------------------------------------------


def _check_target(path: Path, overwrite: bool) -> None:
    """Reject a file that exists or cannot be written, before any work is done."""
    if os.path.lexists(path) and not path.is_dir() and not overwrite:
        raise UserError(f"{path}: exists; choose another --out, or add --overwrite")
    check_output_file(path, "--out")


def _write(path: Path, rows: list[Row]) -> None:
    try:
        write_jsonl(path, rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "micro": run_micro,
    **dict.fromkeys(("reference-losses", "self", "states"), run_model),
    "attempts": run_attempts,
    **{name: partial(run_source, kind=name) for name in SOURCES},
}
"""What the sub-commands of `arguments.prepare.KINDS` do."""
