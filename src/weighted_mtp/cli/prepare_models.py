"""`weighted-mtp prepare reference-losses` and `states`: a model reads a data set once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from weighted_mtp.core.config.recipe import setting
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import command_line, set_options
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.pipelines.training.prepare_states import (
    StatesRequest,
    in_units,
    prepare_trunk_states,
)
from weighted_mtp.pipelines.training.reference import ReferenceRequest, prepare_reference_losses

_READING = (
    *("data", "model", "out", "template", "max_length", "joint", "batch_size", "device"),
    "compute_dtype",
)
"""Options of both commands, fields of both requests."""


def run_reference(args: argparse.Namespace) -> int:
    """Score the rows and print the command that trains with the result."""
    _check_sizes(args)
    out = prepare_reference_losses(
        ReferenceRequest(**{name: getattr(args, name) for name in _READING})
    )
    print(f"reference losses: {out}")
    data = setting("data.train", args.data)
    print_training("rho1", [data, setting("objective.rho1.reference", out), *_rows_read(args)])
    return 0


def run_states(args: argparse.Namespace) -> int:
    """Store the states and print the command that trains with them."""
    _check_sizes(args)
    stored = prepare_trunk_states(
        StatesRequest(**{name: getattr(args, name) for name in (*_READING, "dtype", "budget")})
    )
    print(f"states: {args.out} ({stored.rows:,} rows, {in_units(stored.size)})")
    start = settings_of_heads(args.model, inspect_checkpoint(args.model).args, args.data)
    print_training("heads", [*start, setting("data.states", args.out), *_rows_read(args)])
    return 0


def settings_of_heads(model: Path, shape: ModelArgs, data: Path) -> list[str]:
    """What recipe `heads` needs to train heads of a model on rows; it adds three if there are
    none."""
    added = ["model.add_heads=3"] if shape.n_future_tokens == 1 else []
    return [setting("model.path", model), *added, setting("data.train", data)]


def print_training(recipe: str, settings: Sequence[str]) -> None:
    """Print the command that trains on what was prepared."""
    words = set_options(settings)
    print("next: " + command_line("weighted-mtp", "train", "--recipe", recipe, *words))


def _check_sizes(args: argparse.Namespace) -> None:
    for name in ("max_length", "batch_size"):
        if getattr(args, name) < 2 - (name == "batch_size"):
            raise UserError(f"--{name.replace('_', '-')} is too small")


def _rows_read(args: argparse.Namespace) -> list[str]:
    """How the rows were read, which the training must share."""
    joint = ["data.joint=true"] if args.joint else []
    return [f"data.template={args.template}", f"data.max_length={args.max_length}", *joint]
