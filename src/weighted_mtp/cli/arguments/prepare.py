"""Options of `weighted-mtp prepare`, one sub-command each (the table `KINDS`)."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.arguments.prepare_models import add_reference, add_self, add_states
from weighted_mtp.cli.arguments.prepare_sources import SOURCE_KINDS, Options
from weighted_mtp.core.choices import SPLITS
from weighted_mtp.core.files import given_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command for each data set."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for name, (summary, example, add) in KINDS.items():
        sub = kinds.add_parser(name, help=summary, summary=summary, example=example)
        add(sub)


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


KINDS: dict[str, tuple[str, str, Options]] = {
    "micro": (
        "generate embedded Python problems with correct and incorrect solutions",
        "weighted-mtp prepare micro --n 1000 --incorrect 3 --out rows.jsonl",
        add_micro,
    ),
    "reference-losses": (
        "store the token losses of a reference model, for Rho-1",
        "weighted-mtp prepare reference-losses --data rows.jsonl --model runs/baseline",
        add_reference,
    ),
    "self": (
        "write a model's own texts as rows, for heads that draft",
        "weighted-mtp prepare self --model MODEL --n 2000 --template raw --out rows.jsonl",
        add_self,
    ),
    "states": (
        "store the states of a frozen trunk, to train heads on (recipe heads)",
        "weighted-mtp prepare states --data rows.jsonl --model MODEL --out states",
        add_states,
    ),
    "attempts": (
        "turn the judged programs of an evaluation into labelled rows",
        "weighted-mtp prepare attempts --evaluation runs/first/evaluation/micro-train.jsonl "
        "--out attempts.jsonl",
        add_attempts,
    ),
    **SOURCE_KINDS,
}
"""Sub-commands: summary, example, options; cli/prepare.py has what runs."""
