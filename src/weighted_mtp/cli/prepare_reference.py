"""`weighted-mtp prepare reference-losses`: score a data set once for Rho-1."""

from __future__ import annotations

import argparse

from weighted_mtp.core.config.recipe import setting
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import command_line
from weighted_mtp.pipelines.training.reference import ReferenceRequest, prepare_reference_losses


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
