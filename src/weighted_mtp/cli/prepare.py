"""`weighted-mtp prepare`: write data sets. Each has an `add_…` and a `run_…` and a line below."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from weighted_mtp.cli.prepare_reference import add_reference, run_reference
from weighted_mtp.cli.prepare_sources import SOURCE_KINDS
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_file, given_path
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import Row
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import SPLITS, generate, up_to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command for each data set."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for name, (summary, add, prepare) in KINDS.items():
        sub = kinds.add_parser(name, help=summary, description=summary.capitalize() + ".")
        add(sub)
        sub.set_defaults(prepare=prepare)


def run(args: argparse.Namespace) -> int:
    """Prepare what was asked for."""
    prepare: Callable[[argparse.Namespace], int] = args.prepare
    return prepare(args)


# --- micro tasks -----------------------------------------------------------------------------


def add_micro(parser: argparse.ArgumentParser) -> None:
    """Options of `prepare micro`."""
    parser.add_argument("--n", type=int, required=True, metavar="PROBLEMS")
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--correct", type=int, default=1, help="right solutions of each problem")
    parser.add_argument("--incorrect", type=int, default=1, help="wrong solutions of each problem")
    parser.add_argument("--max-difficulty", type=int, default=11, help="hardest problems, 1 to 11")
    parser.add_argument("--families", help="comma-separated labels (default: all)")
    parser.add_argument("--max-constant", type=int, help="only problems with numbers up to it")
    parser.add_argument("--plain-names", action="store_true", help="function names without a mark")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.jsonl")


def run_micro(args: argparse.Namespace) -> int:
    """Generate problems, run every solution, write the rows."""
    for option, least in (("n", 1), ("correct", 0), ("incorrect", 0)):
        if getattr(args, option) < least:
            raise UserError(f"--{option} must be at least {least}")
    if args.correct + args.incorrect == 0:
        raise UserError("--correct and --incorrect are both 0: there would be no rows")
    if not 1 <= args.max_difficulty <= 11:
        raise UserError("--max-difficulty must be 1 to 11")
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
        f"{len(rows):,} rows ({right:,} right, {len(rows) - right:,} wrong) of {families} families "
        f"in {time.monotonic() - start:.1f} s: {args.out}"
    )
    return 0


# --- files -----------------------------------------------------------------------------------


def _check_target(path: Path, overwrite: bool) -> None:
    """Refuse a file that is there, or cannot be, before any work is done."""
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
KINDS: dict[str, tuple[str, Options, Prepare]] = {
    "micro": ("embedded Python problems with right and wrong solutions", add_micro, run_micro),
    "reference-losses": ("token losses of a reference model", add_reference, run_reference),
    **SOURCE_KINDS,
}
"""Sub-commands: summary, options, what runs."""
