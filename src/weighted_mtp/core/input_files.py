"""Files that someone else wrote, read with their damage in mind: regular files, JSON and YAML.

JSON and YAML are read more strictly than Python does. A key that is given twice, a number that is
not finite, or nesting that exhausts the stack has no meaning that two programs would agree on.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from weighted_mtp.core.errors import UserError, one_line

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_MAX_YAML_DEPTH = 50
_MAX_YAML_NODES = 100_000
"""Of a document once its aliases are written out."""
_YAML_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool")}
_YAML_TAGS |= {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}


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
        return (_DECODER if finite else _LENIENT).decode(_decoded(text))
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


def _decoded(text: str | bytes) -> str:
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


class _StrictLoader(yaml.SafeLoader):
    """YAML of mappings with unique text keys, lists, text, numbers, true, false and null."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # PyYAML's name
        if self.flow_level >= _MAX_YAML_DEPTH:  # the scanner takes quadratic time
            raise InvalidTextError("lists and mappings are nested too deeply")
        super().fetch_flow_collection_start(TokenClass)

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _expanded_size(node, {})
        return node


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""Dates stay text: nothing here takes a date, and directories have such names."""
_StrictLoader.add_implicit_resolver(  # YAML 1.1 takes 1e-3 for text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)


def _expanded_size(node: Any, sizes: dict[int, int | None]) -> int:
    """Count the nodes of a document whose aliases are written out; refuse what is not plain."""
    known = sizes.get(id(node), -1)
    if known is None:
        raise InvalidTextError(f"{_line(node)}: an alias contains itself")
    if known > 0:
        return known
    if node.tag not in _YAML_TAGS:
        shown = node.tag.removeprefix("tag:yaml.org,2002:")
        raise InvalidTextError(f"{_line(node)}: the tag {shown:.60} is not supported; remove it")
    sizes[id(node)] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size += sum(
            _expanded_size(key, sizes) + _expanded_size(value, sizes) for key, value in node.value
        )
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_expanded_size(value, sizes) for value in node.value)
    if size > _MAX_YAML_NODES:
        raise InvalidTextError(
            f"{_line(node)}: more than {_MAX_YAML_NODES:,} values once the aliases are written out"
        )
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (
            "tag:yaml.org,2002:str",
            "tag:yaml.org,2002:merge",
        ):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise InvalidTextError(f"{_line(key)}: the key {shown:.60} is not text; quote it")
        if key.value in seen:
            raise InvalidTextError(f"{_line(key)}: the key {key.value!r:.60} is given twice")
        seen.add(key.value)


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"


def parse_yaml(text: str | bytes) -> Any:
    """Parse one YAML document.

    Raises:
        InvalidTextError: not YAML, a key given twice or not text, a tag, an alias that contains
            itself or grows beyond measure, a number that cannot be read, nesting too deep.
    """
    try:
        return yaml.load(_decoded(text), Loader=_StrictLoader)  # a SafeLoader
    except RecursionError as error:
        raise InvalidTextError("lists and mappings are nested too deeply") from error
    except InvalidTextError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
        raise InvalidTextError(one_line(error, 200)) from error


def shown_value(value: object) -> str:
    """A value for a message, cut short; Python does not print integers of over 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of more than 77 digits"
    try:
        shown = repr(value)
    except ValueError:  # such an integer is inside it
        return f"a {type(value).__name__} with an integer of over 4300 digits"
    return shown if len(shown) <= 120 else shown[:120] + "…"
