"""Options of `weighted-mtp options`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `options`."""
    parser.add_argument(
        "section",
        nargs="?",
        metavar="SECTION",
        help="a section (training), an option (training.learning_rate or learning_rate), or words "
        "to search for; default: everything",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON array, for programs")
    form.add_argument("--markdown", action="store_true", help="print docs/options.md")
    form.add_argument(
        "--commands", action="store_true", help="print docs/cli.md: the options of every command"
    )
