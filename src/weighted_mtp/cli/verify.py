"""`weighted-mtp verify`: compare a model with its export, head by head."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_regular
from weighted_mtp.evaluation.export_check import ExportCheck, HeadCheck
from weighted_mtp.pipelines.exporting.verify import VerifyRequest, verify_export

_HEADINGS = ("head", "read by", "max |Δlogit|", "same best", "drafts kept", "verdict")


def run(args: argparse.Namespace) -> int:
    """Print the comparison; return 0 if the export is the model, 1 if it differs."""
    if args.tokens < 2:
        raise UserError(f"--tokens must be at least 2, got {args.tokens}")
    if args.tolerance is not None and not 0 <= args.tolerance < float("inf"):
        raise UserError(f"--tolerance must be 0 or more, got {args.tolerance}")
    text = None
    if args.text is not None:
        try:
            text = read_regular(args.text).decode("utf-8")
        except OSError as error:
            raise UserError(f"{args.text}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{args.text}: is not UTF-8; save it as UTF-8") from error
    check = verify_export(
        VerifyRequest(args.model, args.export, text, args.tokens, args.tolerance, args.device)
    )
    print("\n".join(describe(check)))
    return 0 if check.equal else 1


def describe(check: ExportCheck) -> list[str]:
    """Return the lines to print: a table, what is wrong, remarks, the verdict."""
    rows = [_HEADINGS, *(_cells(head) for head in check.heads)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    lines = [_joined(row, widths) for row in rows]
    lines += [
        f"head {head.head} ({head.reader}): {note}" for head in check.heads for note in head.notes
    ]
    lines += check.failures
    lines += [f"note: {note}" for note in check.notes]
    return [*lines, "equal" if check.equal else "DIFFERENT"]


def _cells(head: HeadCheck) -> tuple[str, ...]:
    share = f"{head.same / head.places:.1%}" if head.places else "–"
    kept = " | ".join(f"{kept}/{judged}" for kept, judged in head.kept) if head.kept else "–"
    largest = f"{head.largest:.2g}" if head.places else "–"
    verdict = "DIFFERS" if head.differs else "equal"
    return str(head.head), head.reader, largest, share, kept, verdict


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join(padded).rstrip()
