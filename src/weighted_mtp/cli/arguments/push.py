"""Options of `weighted-mtp push`."""

from __future__ import annotations

import argparse

from weighted_mtp.core.files import given_name, given_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `push`."""
    parser.add_argument(
        "directory",
        type=given_path,
        metavar="DIR",
        help="an export that convert wrote, with a licence in its README.md",
    )
    parser.add_argument(
        "repository",
        type=given_name,
        metavar="ORG/NAME",
        help="repository on the hub, made where there is none; the token is that of HF_TOKEN or of "
        "hf auth login",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--revision", type=given_name, metavar="BRANCH", help="branch to write (default main)"
    )
