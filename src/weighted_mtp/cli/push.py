"""`weighted-mtp push`: upload an export to the Hugging Face hub."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

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


def run(args: argparse.Namespace) -> int:
    """Upload; return 0 once the hub has every file."""
    from weighted_mtp.pipelines.exporting.upload import upload

    directory: Path = args.directory
    place = upload(directory, args.repository, private=args.private, revision=args.revision)
    print(f"{directory}: uploaded to {re.sub(r'[?#].*', '', place)}")
    return 0
