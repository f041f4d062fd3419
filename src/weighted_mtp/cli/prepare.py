"""`weighted-mtp prepare`: write data sets, one sub-command each (the table `KINDS`)."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from weighted_mtp.cli.prepare_reference import add_reference, run_reference
from weighted_mtp.cli.prepare_self import add_self, run_self
from weighted_mtp.cli.prepare_sources import SOURCE_KINDS
from weighted_mtp.cli.prepare_states import add_states, run_states
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_file, given_path
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import Row
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.evaluation.attempt_rows import (
    AttemptRows,
    Selection,
    attempt_rows,
    results_directory,
)
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import SPLITS, generate, up_to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command for each data set."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for name, (summary, example, add, prepare) in KINDS.items():
        sub = kinds.add_parser(name, help=summary, summary=summary, example=example)
        add(sub)
        sub.set_defaults(prepare=prepare)


def run(args: argparse.Namespace) -> int:
    """Run the sub-command."""
    prepare: Callable[[argparse.Namespace], int] = args.prepare
    return prepare(args)


# --- micro tasks -----------------------------------------------------------------------------


def add_micro(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare micro`."""
    parser.add_argument(
        "--n", type=int, required=True, metavar="PROBLEMS", help="problems to generate"
    )
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="FILE.jsonl", help="file to write"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the generator (default 0)")
    parser.add_argument(
        "--split", choices=SPLITS, default="train", help="splits share no problem (default train)"
    )
    parser.add_argument(
        "--correct", type=int, default=1, help="correct solutions of each problem (default 1)"
    )
    parser.add_argument(
        "--incorrect", type=int, default=1, help="incorrect solutions of each problem (default 1)"
    )
    parser.add_argument(
        "--max-difficulty", type=int, default=11, help="hardest problems, from 1 to 11 (default)"
    )
    parser.add_argument("--families", help="problem families, comma-separated (default: all)")
    parser.add_argument("--max-constant", type=int, help="largest constant in a problem")
    parser.add_argument(
        "--plain-names", action="store_true", help="function names without a random suffix"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE.jsonl")


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


# --- attempts --------------------------------------------------------------------------------


def add_attempts(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare attempts`."""
    parser.add_argument(
        "--evaluation",
        type=given_path,
        action="append",
        required=True,
        metavar="DIR",
        help="results directory of evaluate, or its file of micro tasks; repeatable",
    )
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="FILE.jsonl", help="file to write"
    )
    parser.add_argument(
        "--per-problem",
        type=int,
        default=4,
        help="most correct, and most incorrect, programs of a problem (default 4)",
    )
    parser.add_argument(
        "--mixed", action="store_true", help="leave out problems that were solved always or never"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE.jsonl")


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


Options = Callable[[argparse.ArgumentParser], None]
Prepare = Callable[[argparse.Namespace], int]
KINDS: dict[str, tuple[str, str, Options, Prepare]] = {
    "micro": (
        "generate embedded Python problems with correct and incorrect solutions",
        "weighted-mtp prepare micro --n 1000 --incorrect 3 --out rows.jsonl",
        add_micro,
        run_micro,
    ),
    "reference-losses": (
        "store the token losses of a reference model, for Rho-1",
        "weighted-mtp prepare reference-losses --data rows.jsonl --model runs/baseline",
        add_reference,
        run_reference,
    ),
    "self": (
        "write a model's own texts as rows, for heads that draft",
        "weighted-mtp prepare self --model MODEL --n 2000 --template raw --out rows.jsonl",
        add_self,
        run_self,
    ),
    "states": (
        "store the states of a frozen trunk, to train heads on (recipe heads)",
        "weighted-mtp prepare states --data rows.jsonl --model MODEL --out states",
        add_states,
        run_states,
    ),
    "attempts": (
        "turn the judged programs of an evaluation into labelled rows",
        "weighted-mtp prepare attempts --evaluation runs/first/evaluation/micro-train.jsonl "
        "--out attempts.jsonl",
        add_attempts,
        run_attempts,
    ),
    **SOURCE_KINDS,
}
"""Sub-commands: summary, example, options, what runs."""
