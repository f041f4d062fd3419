"""Options of `weighted-mtp report`."""

from __future__ import annotations

import argparse

from weighted_mtp.core.files import given_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument("run_dir", type=given_path, help="a run, or a checkpoint in it")
    parser.add_argument(
        "--output", type=given_path, help="HTML file to write (default RUN/report.html)"
    )
    parser.add_argument(
        "--against",
        type=given_path,
        metavar="RUN",
        help="another run, such as one with uniform weights: show what this one gains on it, in "
        "pass@1 (paired by problem) and on held-out programs",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=4,
        help="pairs of a correct and an incorrect program to show token by token (default 4)",
    )
    parser.add_argument(
        "--programs", type=int, default=6, help="generated programs to show (default 6)"
    )
