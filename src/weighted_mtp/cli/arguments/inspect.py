"""Options of `weighted-mtp inspect`."""

from __future__ import annotations

import argparse

from weighted_mtp.core.files import given_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `inspect`."""
    parser.add_argument(
        "path",
        type=given_path,
        metavar="PATH",
        help="a run, a checkpoint, a model directory, or ORG/NAME on the Hugging Face hub",
    )
    parser.add_argument(
        "--verify", action="store_true", help="also read all weights and check SHA-256 sums"
    )
