"""Rows of your own, in the schema of docs/data.md, checked one by one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Row
from weighted_mtp.data.datasets import parse_row
from weighted_mtp.data.prepare.source import BadRecordError, Outcome, Place, Record, Source


def convert(record: Record, place: Place) -> Outcome:
    """The row; a table's nulls are fields that are missing."""
    given = dict(record)
    if place.unit == "row":
        given = {name: value for name, value in given.items() if value is not None}
    if "task_id" not in given:  # two files have a line 7 each
        given["task_id"] = f"{Path(place.file).name}/{place.unit}-{place.number}"
    try:
        line = json.dumps(given).encode()
        row = parse_row(line, "", place.number)
    except UserError as error:
        raise BadRecordError(str(error).removeprefix(": ")) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecordError(f"cannot be written as JSON ({error})") from error
    if "messages" in row:
        if any(m["role"] == "assistant" and not m["content"].strip() for m in row["messages"]):
            raise BadRecordError("an assistant message is empty")
    elif not row["output"].strip():
        raise BadRecordError("the field 'output' is empty")
    return Outcome(None, [row], Counter(), ignored=tuple(set(given) - set(Row.__annotations__)))


SOURCE = Source(
    "jsonl",
    "rows of your own, checked and without duplicates",
    convert,
    default_split="train",
)
