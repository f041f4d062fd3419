"""Options of `weighted-mtp verify`."""

from __future__ import annotations

import argparse

from weighted_mtp.core.choices import EXPORT_TOLERANCE
from weighted_mtp.core.files import given_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify`."""
    parser.add_argument(
        "model",
        type=given_path,
        metavar="MODEL",
        help="a run, a checkpoint, a model directory, or ORG/NAME on the Hugging Face hub",
    )
    parser.add_argument(
        "export",
        type=given_path,
        metavar="EXPORT",
        help="what convert wrote from it, in any layout; its code is never run",
    )
    parser.add_argument(
        "--text", type=given_path, metavar="FILE", help="text to read (default: a built-in one)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=128,
        metavar="N",
        help="tokens of the text to read (default 128)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest difference of logits and weights, as a share of the largest one (default "
        f"{EXPORT_TOLERANCE:g}; with a value of your own, drafts are shown and not judged)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
