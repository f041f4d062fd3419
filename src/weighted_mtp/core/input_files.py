"""Files that someone else wrote, read with their damage in mind: regular files and JSON.

JSON is read more strictly than Python does, and YAML likewise (core/yaml_text.py). A key that is
given twice, a number that is not finite, or nesting that exhausts the stack has no meaning that two
programs would agree on.
"""

from __future__ import annotations

import codecs
import json
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from weighted_mtp.core.errors import UserError, one_line

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class InvalidTextError(ValueError):
    """JSON or YAML that cannot be used; the message is one line without the place."""


def check_regular(path: Path) -> None:
    """Refuse what is not a regular file: opening a pipe waits forever, a device has no end.

    Raises:
        UserError: it is a directory, a pipe, a device or a socket.
        OSError: nothing is there.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except ValueError as error:  # a NUL character
        raise UserError(f"{str(path)!r}: not a path ({error})") from error
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "not a file")
        raise UserError(f"{path}: cannot be read (it is {what}); a regular file is expected")


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Raises:
        UserError, OSError: as for `check_regular`.
    """
    check_regular(path)
    with path.open("rb") as file:
        yield file


def read_regular(path: Path) -> bytes:
    """Read a whole regular file.

    Raises:
        UserError, OSError: as for `check_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """Parse JSON; a byte-order mark before UTF-8 is accepted.

    Args:
        finite: refuse NaN and numbers out of range, as a configuration must.

    Raises:
        InvalidTextError: not UTF-8 or not JSON, a key given twice, a number that is not finite or
            too long, nesting too deep.
    """
    try:
        return (_DECODER if finite else _LENIENT).decode(decoded(text))
    except json.JSONDecodeError as error:
        raise InvalidTextError(
            f"not valid JSON ({error.msg}, line {error.lineno}, character {error.colno})"
        ) from error
    except RecursionError as error:
        raise InvalidTextError("not valid JSON (nested too deeply)") from error
    except InvalidTextError:
        raise
    except ValueError as error:  # an integer of more than 4300 digits
        raise InvalidTextError(f"not valid JSON ({one_line(error, 120)})") from error


def decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    if text.startswith(_UTF16):
        raise InvalidTextError("not UTF-8 at byte 0 (it is UTF-16); save it as UTF-8")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidTextError(f"not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidTextError(f"the key {twice!r:.60} is given twice; keep one")
    return made


def _refuse_constant(name: str) -> float:
    raise InvalidTextError(f"not valid JSON ({name} is not a number)")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidTextError(f"not valid JSON (the number {text:.30} is out of range)")
    return value


_LENIENT = json.JSONDecoder(object_pairs_hook=_unique)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InvalidTextError: as for `parse_json`.
        UserError, OSError: as for `check_regular`.
    """
    return parse_json(read_regular(path))


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the objects of a JSON Lines file that this package wrote, line by line.

    A line that is not an object (cut short by a kill or a full disk) is passed over.

    Returns:
        (the objects, the number of lines passed over). A bare NaN is read as NaN.

    Raises:
        UserError, OSError: as for `check_regular`.
    """
    found = []
    lines = read_regular(path).decode("utf-8", "replace").splitlines()
    for line in lines:
        with suppress(InvalidTextError):
            record = parse_json(line, finite=False)
            if isinstance(record, dict):
                found.append(record)
    return found, len(lines) - len(found)


def shown_value(value: object) -> str:
    """A value for a message, cut short; Python does not print integers of over 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of more than 77 digits"
    try:
        shown = repr(value)
    except ValueError:  # such an integer is inside it
        return f"a {type(value).__name__} with an integer of over 4300 digits"
    return shown if len(shown) <= 120 else shown[:120] + "…"
