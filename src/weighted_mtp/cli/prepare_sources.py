"""`weighted-mtp prepare codecontests|mbpp|humaneval|jsonl`: convert external data sets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weighted_mtp.cli.arguments.prepare_sources import MAX_LENGTH, TEMPLATE
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.prepare.check import Findings, check
from weighted_mtp.data.prepare.length import LengthLimit
from weighted_mtp.data.prepare.run import PrepareRequest, prepare


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
    columns = ["records", "rejected", "problems", "rows", "written", "right", "wrong"]
    if not any(counts["problems"] for counts in summary["splits"].values()):
        columns.remove("problems")  # a source of rows without tests
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
