"""`weighted-mtp prepare reference-losses`: score a data set once for Rho-1."""

from __future__ import annotations

import argparse

from weighted_mtp.core.config.recipe import setting
from weighted_mtp.core.device import DTYPES
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import command_line, given_path
from weighted_mtp.data.collators import TEMPLATE_NAMES
from weighted_mtp.pipelines.training.reference import ReferenceRequest, prepare_reference_losses


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prepare reference-losses`."""
    parser.add_argument(
        "--data", type=given_path, required=True, metavar="FILE.jsonl", help="rows to score"
    )
    parser.add_argument(
        "--model",
        type=given_path,
        required=True,
        help="reference model: a run, a checkpoint, a model directory or ORG/NAME",
    )
    parser.add_argument(
        "--out", type=given_path, help="file to write (default FILE.reference.safetensors)"
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
        "--compute-dtype", choices=list(DTYPES), default="float32", help="default float32"
    )


def run_reference(args: argparse.Namespace) -> int:
    """Score the rows and print the command that trains with the result."""
    for name in ("max_length", "batch_size"):
        if getattr(args, name) < 2 - (name == "batch_size"):
            raise UserError(f"--{name.replace('_', '-')} is too small")
    out = prepare_reference_losses(
        ReferenceRequest(
            args.data,
            args.model,
            args.out,
            args.template,
            args.max_length,
            args.joint,
            args.batch_size,
            args.device,
            args.compute_dtype,
        )
    )
    print(f"reference losses: {out}")
    settings = [
        setting("data.train", args.data),
        setting("objective.rho1.reference", out),
        f"data.template={args.template}",
        f"data.max_length={args.max_length}",
        *(["data.joint=true"] if args.joint else []),
    ]
    sets = [word for one in settings for word in ("--set", one)]
    print("next: " + command_line("weighted-mtp", "train", "--recipe", "rho1", *sets))
    return 0
