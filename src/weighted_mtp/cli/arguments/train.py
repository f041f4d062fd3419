"""Options of `weighted-mtp train`."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.arguments.recipe import add_recipe_options
from weighted_mtp.core.files import given_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `train`."""
    add_recipe_options(parser)
    parser.add_argument(
        "--output-dir", type=given_path, help="run directory (default runs/RECIPE-PRESET)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=["always", "auto"],
        help="continue the run in --output-dir, or in training.remote if that has a newer "
        "checkpoint; auto: start it if there is none",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything but the rows, print recipe and memory, write nothing",
    )
