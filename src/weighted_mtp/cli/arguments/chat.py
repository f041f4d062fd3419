"""Options of `weighted-mtp chat`."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.arguments.decoding import DTYPE_HELP, add_decoding_arguments
from weighted_mtp.core.files import given_path

LONGEST_ANSWER = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `chat`."""
    parser.add_argument(
        "checkpoint", type=given_path, help="a run, a checkpoint, a model or ORG/NAME"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message, which is never dropped")
    add_decoding_arguments(
        parser, None, f"default {LONGEST_ANSWER}, or half of the model's positions"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", help=DTYPE_HELP)
