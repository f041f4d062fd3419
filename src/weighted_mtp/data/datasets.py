"""Rows from JSONL: what a line may hold, and every way it can be wrong.

Reading a whole file into a list is for small ones; `store.open_rows` is for those of any size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import (
    InvalidTextError,
    open_regular,
    parse_json,
    shown_value,
)
from weighted_mtp.core.types import Message, Row

MAX_LINE = 64 << 20
"""Bytes of the longest line that is read, so that a file without line ends stays out of memory."""
MAX_DEPTH = 100
"""Levels of lists and objects inside `metadata`."""

_FIELDS: dict[str, type] = {
    "instruction": str,
    "input": str,
    "output": str,
    "task_id": str,
    "is_correct": bool,
    "metadata": dict,
}
_DEFAULTS: dict[str, Any] = {"input": "", "is_correct": True}
_TEXTS = ("instruction", "input", "output")
ROLES = ("system", "user", "assistant", "tool")
"""Who may say a message."""
FINISH = "finish"
UNFINISHED = ("length", "stop")
"""Values of a row's `metadata.finish` that say that its text goes on where the row ends: cut at a
length, or before a stop string. The names are those of `generate --json`."""
_NOT_TEXT = {
    b"\x1f\x8b": "compressed by gzip; unpack it first (gunzip FILE)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first (zstd -d FILE)",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"PAR1": "Parquet; write it as JSONL first: datasets.Dataset.from_parquet(FILE).to_json(OUT)",
    b"ARROW1": "Arrow; write it as JSONL first: datasets.Dataset.from_file(FILE).to_json(OUT)",
}
"""How other files begin that people take for JSONL."""

_NUL = "it holds NUL bytes; the file is damaged, or was cut off while it was written"


def read_jsonl(path: Path) -> list[Row]:
    """All rows of a JSONL file, each checked against the row schema (docs/data.md).

    `input`, `is_correct` and `metadata` may be missing (empty, true, empty); a missing `task_id`
    becomes the line number. Blank lines, a byte-order mark and CRLF line ends are fine.

    Raises:
        UserError: the file cannot be read, has no rows, or a line is malformed.
    """
    rows = list(_rows(path))
    if not rows:
        raise no_rows(path)
    return rows


def is_unfinished(row: Row) -> bool:
    """Whether a row says that its response was cut: no end is learned from it."""
    finish = row["metadata"].get(FINISH)
    return isinstance(finish, str) and finish in UNFINISHED


def first_row(path: Path) -> Row:
    """The first row of a JSONL file, for a check that reads no more.

    Raises:
        UserError: as for `read_jsonl`.
    """
    for row in _rows(path):
        return row
    raise no_rows(path)


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, replacing the file only once all are written.

    Raises:
        UserError: the file cannot be written (a full disk, no permission).
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):  # the disk may be gone
            partial.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def read_lines(
    file: BinaryIO, path: Path, first: int = 1, size: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank, from where `file` stands.

    Args:
        path: of the file, for messages.
        first: number of the line where `file` stands; line 1 may begin with a byte-order mark.
        size: bytes to read, in whole lines; None reads to the end.

    Raises:
        UserError: a line longer than `MAX_LINE`, or a file that is not text.
    """
    number, done = first - 1, 0
    while (size is None or done < size) and (line := file.readline(MAX_LINE + 1)):
        number += 1
        done += len(line)
        if len(line) > MAX_LINE:
            raise UserError(
                f"{path}, line {number}: longer than {MAX_LINE >> 20} MiB; one JSON object a line "
                "is expected"
            )
        if number == 1:
            line = _begin(line, path)
        if line.strip():
            yield number, line


def parse_row(line: bytes, where: str, number: int) -> Row:
    """One JSONL line as a row.

    Raises:
        UserError: not UTF-8, not JSON, not an object, a key given twice, a lone surrogate, or
            a field of the wrong type, messages that are not a conversation; starts with `where`.
    """
    try:
        record = parse_json(line.decode("utf-8"), finite=False)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; re-save as UTF-8") from error
    except InvalidTextError as error:
        reason = f"not valid JSON ({_NUL})" if b"\0" in line else error
        raise UserError(f"{where}: {reason}") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a row is a JSON object, this is {type(record).__name__}")
    row = {"task_id": f"line-{number}", "metadata": {}, **_DEFAULTS, **record}
    names = list(_FIELDS)
    if "messages" in record:
        for name in _TEXTS:
            if record.get(name):
                raise UserError(f"{where}: has both 'messages' and {name!r}; remove one of them")
        row |= {**dict.fromkeys(_TEXTS, ""), "messages": _messages(record["messages"], where)}
        names.append("messages")
    for name, kind in _FIELDS.items():
        if name not in row:
            raise UserError(f"{where}: the field {name!r} is missing")
        if not isinstance(row[name], kind):
            raise UserError(
                f"{where}: the field {name!r} should be {kind.__name__}, "
                f"it is {type(row[name]).__name__}"
            )
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _deeper(row["metadata"], MAX_DEPTH):
        raise UserError(f"{where}: 'metadata' is nested deeper than {MAX_DEPTH} levels")
    if b"\\ud" in line or b"\\uD" in line:  # UTF-8 has no other way to smuggle one in
        refuse_half_pairs({name: row[name] for name in names}, where)
    return cast(Row, {name: row[name] for name in names})


def refuse_half_pairs(fields: Mapping[str, Any], where: str) -> None:
    """Refuse text that JSON can escape and UTF-8 cannot encode.

    Raises:
        UserError: a field contains a lone surrogate; starts with `where`.
    """
    for name, value in fields.items():
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: the field {name!r} contains a lone surrogate, which is not valid text; "
                "remove it"
            ) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """The mistake of a path that cannot be opened or read."""
    return UserError(f"{path}: cannot be read ({error.strerror or error})")


def no_rows(path: Path) -> UserError:
    """The mistake of a file without rows."""
    return UserError(f"{path}: no rows; one JSON object a line is expected")


def read_messages(given: Any, where: str) -> list[Message]:
    """Check messages; contents that are lists of text parts are joined.

    Raises:
        UserError: it is not a list of messages; starts with `where`.
    """
    if not isinstance(given, list):
        raise UserError(
            f"{where}: 'messages' should be a list of objects with 'role' and 'content', it is "
            f"{type(given).__name__}"
        )
    return [_message(item, f"{where}: message {i}") for i, item in enumerate(given, 1)]


def _messages(given: Any, where: str) -> list[Message]:
    """Check a conversation.

    Raises:
        UserError: it is not a list of messages, or nothing can be learned from it.
    """
    messages = read_messages(given, where)
    turns = [message["role"] for message in messages if message["role"] != "system"]
    if "assistant" not in turns:
        raise UserError(f"{where}: 'messages' has no assistant turn, so nothing to learn")
    if turns[0] != "user":
        raise UserError(f"{where}: 'messages' begins with the turn of {turns[0]!r}, not of 'user'")
    return messages


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise UserError(
            f"{where} should be an object with 'role' and 'content', it is {type(given).__name__}"
        )
    role, content = given.get("role"), given.get("content")
    if role not in ROLES:
        raise UserError(f"{where}: the role {shown_value(role)} is not one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = _joined_parts(content, where)
    if not isinstance(content, str):
        raise UserError(f"{where}: 'content' should be text, it is {type(content).__name__}")
    for key, value in given.items():  # dropping one silently could change what is learned
        if key not in ("role", "content") and value is not None:
            raise UserError(
                f"{where}: the key {key!r:.60} is not supported; a message has 'role' and "
                "'content' alone"
            )
    return {"role": role, "content": content}


def _joined_parts(parts: list[Any], where: str) -> str:
    """The text of a content in parts, `[{"type": "text", "text": …}, …]`."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise UserError(f"{where}: 'content' has a part that is not text; remove it")
        texts.append(text)
    return "".join(texts)


def _rows(path: Path) -> Iterator[Row]:
    try:
        with open_regular(path) as file:
            for number, line in read_lines(file, path):
                yield parse_row(line, f"{path}, line {number}", number)
    except OSError as error:
        raise unreadable(path, error) from error


def _begin(line: bytes, path: Path) -> bytes:
    """The first line without its byte-order mark."""
    for magic, remedy in _NOT_TEXT.items():
        if line.startswith(magic):
            raise UserError(f"{path}: not JSONL, it is {remedy}")
    return line.removeprefix(b"\xef\xbb\xbf")


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects nest more than `levels` deep."""
    if not isinstance(value, (dict, list)):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(child, levels - 1) for child in children)
