"""Messages between the process of a program and the process of its tests: JSON, and values in it.

Only plain data crosses, rebuilt by the receiver from what it reads: no object brings its own
methods along, so none can lie to a test about what it equals. Anything else crosses as a
reference to an object that stays where it is.
"""

from __future__ import annotations

import builtins
import datetime
import os
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from json import dumps, loads
from typing import Any

MAX_MESSAGE = 64 << 20
MAX_TEXT = 2000
"""Characters kept of an exception's text."""
_HEADER = 4
_SMALL = 1 << 62
_read, _write = os.read, os.write

Reference = Callable[[Any], list[Any]]
Dereference = Callable[[list[Any]], Any]

_SEQUENCES: dict[str, type] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque,
}  # fmt: skip
_MAPPINGS: dict[str, type] = {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}
_TEXTS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),  # a long one: JSON's have a limit
    "complex": (complex, repr, complex),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "Decimal": (Decimal, str, Decimal),
    "Fraction": (Fraction, str, Fraction),
    "date": (datetime.date, str, datetime.date.fromisoformat),
    "datetime": (datetime.datetime, str, datetime.datetime.fromisoformat),
    "time": (datetime.time, str, datetime.time.fromisoformat),
}
_TAGS = {
    kind: tag
    for tag, kind in [*_SEQUENCES.items(), *_MAPPINGS.items()]
    + [(tag, kind) for tag, (kind, _, _) in _TEXTS.items()]
}
_TAGS[defaultdict] = "dict"
_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
)
_TYPES = {value: name for name, value in vars(builtins).items() if isinstance(value, type)}


class GoneError(BaseException):
    """The other side ended, or sent what is no message. No test can catch it by `Exception`."""


class Line:
    """One end of the line between two processes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            GoneError: nobody listens any more.
        """
        data = dumps(message).encode("ascii")
        view = memoryview(len(data).to_bytes(_HEADER, "big") + data)
        try:
            while view:
                view = view[_write(self._descriptor, view) :]
        except OSError as error:
            raise GoneError("the line is cut") from error

    def receive(self) -> dict[str, Any]:
        """Wait for one message.

        Raises:
            GoneError: the line ended, or this is no message.
        """
        size = int.from_bytes(self._take(_HEADER), "big")
        if size > MAX_MESSAGE:
            raise GoneError("an answer that is not the sandbox's own")
        data = self._take(size)
        try:
            message: dict[str, Any] = loads(data)
            if type(message) is not dict:
                raise ValueError("no message")
        except (ValueError, RecursionError) as error:
            raise GoneError("an answer that is not the sandbox's own") from error
        return message

    def _take(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = _read(self._descriptor, min(size, 1 << 20))
            except OSError as error:
                raise GoneError("the line is cut") from error
            if not part:
                raise GoneError("")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def encode(value: Any, reference: Reference) -> Any:
    """A value as JSON's own types: text and small numbers as they are, the rest as a tagged list.

    Args:
        reference: names an object that is no plain data.
    """
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and -_SMALL < value < _SMALL):
        return value
    tag = _TAGS.get(kind)
    if tag in _SEQUENCES:
        return [tag, [encode(item, reference) for item in value]]
    if tag in _MAPPINGS:
        return [tag, [[encode(k, reference), encode(v, reference)] for k, v in value.items()]]
    if tag is not None:
        return [tag, _TEXTS[tag][1](value)]
    if kind is range:
        return ["range", [value.start, value.stop, value.step]]
    if kind is type and value in _TYPES:
        return ["type", _TYPES[value]]
    if isinstance(value, tuple) and kind.__bases__ == (tuple,) and hasattr(kind, "_fields"):
        return ["named", kind.__name__, kind._fields, [encode(item, reference) for item in value]]
    for plain, copy in _SCALARS:
        if isinstance(value, plain):  # a kind of its own, an IntEnum say: what it is underneath
            return encode(copy(value), reference)
    return reference(value)


def decode(data: Any, dereference: Dereference) -> Any:
    """The value that `encode` wrote.

    Raises:
        GoneError: nothing that `encode` writes.
    """
    try:
        return _decode(data, dereference)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise GoneError("an answer that is not the sandbox's own") from error


def _decode(data: Any, dereference: Dereference) -> Any:
    if type(data) is not list:
        return data
    tag = data[0]
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](_decode(item, dereference) for item in data[1])
    if tag in _MAPPINGS:
        pairs = ((_decode(k, dereference), _decode(v, dereference)) for k, v in data[1])
        return _MAPPINGS[tag](dict(pairs) if tag == "Counter" else pairs)
    if tag in _TEXTS:
        return _TEXTS[tag][2](data[1])
    if tag == "range":
        return range(*data[1])
    if tag == "type":
        kind = vars(builtins)[data[1]]
        if not isinstance(kind, type):
            raise TypeError("no type")
        return kind
    if tag == "named":
        make = namedtuple(data[1], data[2])  # type: ignore[misc]  # its fields are known only now
        return make(*(_decode(item, dereference) for item in data[3]))
    return dereference(data)


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception as a message: the names of its classes, nearest first, and its text."""
    try:
        text = str(error)[:MAX_TEXT]
    except BaseException:
        text = ""
    names = [kind.__name__ for kind in type(error).__mro__]
    return {"raised": names, "text": text}


def rebuild_error(message: dict[str, Any]) -> BaseException:
    """The built-in exception nearest to a described one, under its own name, with its text.

    Raises:
        GoneError: no such description.
    """
    names, text = message["raised"], message["text"]
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise GoneError("an answer that is not the sandbox's own")
    known = (getattr(builtins, name, None) for name in names)
    base = next((k for k in known if isinstance(k, type) and issubclass(k, BaseException)), None)
    methods = {"__init__": lambda self: None, "__str__": lambda self: str(text)}
    name = "".join(c for c in names[0] if c.isidentifier() or c.isdigit()) or "Exception"
    error: BaseException = type(name, (base or Exception,), methods)()
    return error
