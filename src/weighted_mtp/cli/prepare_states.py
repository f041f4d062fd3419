"""`weighted-mtp prepare states`: read a data set once with the trunk that heads are trained on."""

from __future__ import annotations

import argparse

from weighted_mtp.core.config.recipe import setting
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import command_line
from weighted_mtp.pipelines.training.prepare_states import (
    StatesRequest,
    in_units,
    prepare_trunk_states,
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
