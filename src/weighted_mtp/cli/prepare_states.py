"""`weighted-mtp prepare states`: read a data set once with the trunk that heads are trained on."""

from __future__ import annotations

import argparse
import re

from weighted_mtp.core.config.recipe import setting
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import command_line, given_path
from weighted_mtp.data.collators import TEMPLATE_NAMES
from weighted_mtp.pipelines.training.prepare_states import (
    StatesRequest,
    in_units,
    prepare_trunk_states,
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?", re.IGNORECASE)


def given_size(text: str) -> int:
    """Bytes from a size such as 20GB, 500 MB or 1.5TiB (argparse's `type`).

    Raises:
        UserError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"--budget {text!r}: write a size as 20GB, 500MB or 1.5TiB")
    number, prefix, binary = found.groups()
    size = float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
    return int(size)


def add_states(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare states`."""
    parser.add_argument(
        "--data", type=given_path, required=True, metavar="FILE.jsonl", help="rows to read"
    )
    parser.add_argument(
        "--model",
        type=given_path,
        required=True,
        help="model.path of the training: a run, a checkpoint, a model directory or ORG/NAME",
    )
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="DIR", help="directory to write"
    )
    parser.add_argument(
        "--budget",
        type=given_size,
        metavar="SIZE",
        help="most disk to take, e.g. 20GB (default: half of what is free); more is refused first",
    )
    parser.add_argument(
        "--template",
        choices=list(TEMPLATE_NAMES),
        default="alpaca",
        help="data.template of the training",
    )
    parser.add_argument("--joint", action="store_true", help="data.joint of the training is true")
    parser.add_argument(
        "--max-length",
        type=int,
        default=2048,
        help="data.max_length of the training (default 2048)",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="rows at a time (default 16)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--compute-dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="runtime.compute_dtype of the training (default bfloat16)",
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of the stored states (default bfloat16)",
    )


def run_states(args: argparse.Namespace) -> int:
    """Store the states and print the command that trains with them."""
    for name in ("max_length", "batch_size"):
        if getattr(args, name) < 2 - (name == "batch_size"):
            raise UserError(f"--{name.replace('_', '-')} is too small")
    stored = prepare_trunk_states(
        StatesRequest(
            args.data,
            args.model,
            args.out,
            args.template,
            args.max_length,
            args.joint,
            args.batch_size,
            args.device,
            args.compute_dtype,
            args.dtype,
            args.budget,
        )
    )
    print(f"states: {args.out} ({stored.rows:,} rows, {in_units(stored.size)})")
    settings = [
        setting("model.path", args.model),
        setting("data.train", args.data),
        setting("data.states", args.out),
        f"data.template={args.template}",
        f"data.max_length={args.max_length}",
        *(["data.joint=true"] if args.joint else []),
    ]
    sets = [word for one in settings for word in ("--set", one)]
    print("next: " + command_line("weighted-mtp", "train", "--recipe", "heads", *sets))
    return 0
