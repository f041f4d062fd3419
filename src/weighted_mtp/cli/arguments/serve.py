"""Options of `weighted-mtp serve`."""

from __future__ import annotations

import argparse

from weighted_mtp.cli.arguments.decoding import DTYPE_HELP, add_speculation_arguments
from weighted_mtp.core.files import given_path

KEY_VARIABLE = "WEIGHTED_MTP_API_KEY"
LONGEST_ROW = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `serve`."""
    parser.add_argument(
        "checkpoint", type=given_path, help="a run, a checkpoint, a model or ORG/NAME"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    parser.add_argument(
        "--name", help="what clients call the model (default: its directory's name)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-rows", type=int, default=16, metavar="N", help="texts at a time (default 16)"
    )
    limits.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"tokens of a prompt with its text (default {LONGEST_ROW}, or the model's positions)",
    )
    limits.add_argument(
        "--max-queue", type=int, default=512, metavar="N", help="texts that wait (default 512)"
    )
    limits.add_argument(
        "--max-body",
        type=int,
        default=4 << 20,
        metavar="BYTES",
        help="of a request (default 4 MiB)",
    )
    limits.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds a request (default 600)"
    )
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key-file",
        type=given_path,
        metavar="FILE",
        help=f"ask for the key in this file (or in the environment: {KEY_VARIABLE})",
    )
    access.add_argument("--no-api-key", action="store_true", help="let a network ask without a key")
    decoding = parser.add_argument_group("decoding")
    add_speculation_arguments(decoding)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", help=DTYPE_HELP)
    parser.set_defaults(lossy_typical=False, tree=None)
