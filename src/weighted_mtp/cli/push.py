"""`weighted-mtp push`: upload an export to the Hugging Face hub."""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Upload; return 0 once the hub has every file."""
    from weighted_mtp.pipelines.exporting.upload import upload

    directory: Path = args.directory
    place = upload(directory, args.repository, private=args.private, revision=args.revision)
    print(f"{directory}: uploaded to {re.sub(r'[?#].*', '', place)}")
    return 0
