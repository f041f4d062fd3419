"""Messages between the process of a program and the process of its tests: JSON, and plain data.

Only plain data crosses, rebuilt by the receiver from what it reads: no object brings its own
methods along, so none can lie to a test about what it equals. Everything else crosses as a
reference to an object that stays where it is (`_sandbox_codec`).
"""

from __future__ import annotations

import array
import builtins
import dataclasses
import datetime
import importlib
import os
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from json import dumps, loads
from typing import Any

MAX_MESSAGE = 64 << 20
MAX_TEXT = 2000
"""Characters kept of an exception's text."""
_HEADER = 4
SMALL = 1 << 62
_read, _write = os.read, os.write
FORGED = "an answer that is not the sandbox's own"


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
            raise GoneError(FORGED)
        data = self._take(size)
        try:
            message: dict[str, Any] = loads(data)
            if type(message) is not dict:
                raise ValueError("no message")
        except (ValueError, RecursionError) as error:
            raise GoneError(FORGED) from error
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


# --- values that cannot change -------------------------------------------------------------------

Text = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""How a value becomes JSON, and comes back."""


def _moment(kind: Any) -> Text:
    def text(value: Any) -> list[Any]:
        zone = value.tzinfo
        known = None if zone is None else value_text(zone, type(zone))
        if zone is not None and known is None:  # another kind: its offset then
            known = value_text(datetime.timezone(value.utcoffset()), datetime.timezone)
        return [value.replace(tzinfo=None).isoformat(), value.fold, known]

    def moment(data: list[Any]) -> Any:
        zone = None if data[2] is None else text_value(data[2])
        return kind.fromisoformat(data[0]).replace(fold=data[1], tzinfo=zone)

    return text, moment


def _zone(data: list[Any]) -> datetime.timezone:
    offset = datetime.timedelta(*data[:3])
    return datetime.timezone(offset) if data[3] is None else datetime.timezone(offset, data[3])


def _zone_text(value: datetime.timezone) -> list[Any]:
    offset = value.utcoffset(None)
    own = value.tzname(None) != datetime.timezone(offset).tzname(None)
    name = value.tzname(None) if own else None
    return [offset.days, offset.seconds, offset.microseconds, name]


VALUES: dict[type, Text] = {
    int: (hex, lambda text: int(text, 16)),  # a long one: JSON's have a limit
    complex: (repr, complex),
    bytes: (bytes.hex, bytes.fromhex),
    Decimal: (str, Decimal),
    Fraction: (str, Fraction),
    range: (lambda value: [value.start, value.stop, value.step], lambda data: range(*data)),
    datetime.date: (str, datetime.date.fromisoformat),
    datetime.datetime: _moment(datetime.datetime),
    datetime.time: _moment(datetime.time),
    datetime.timedelta: (
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda data: datetime.timedelta(*data),
    ),
    datetime.timezone: (_zone_text, _zone),
}
_BY_NAME: dict[str, tuple[str, ...]] = {
    "uuid": ("UUID",),
    "pathlib": ("PurePosixPath", "PosixPath", "PureWindowsPath"),
    "ipaddress": (
        "IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface",
        "IPv6Interface",
    ),
    "zoneinfo": ("ZoneInfo",),
}  # fmt: skip
"""Classes outside the modules loaded here whose objects are what `str` says of them."""
TAGS = {kind: kind.__name__ for kind in VALUES}
_KINDS = {name: kind for kind, name in TAGS.items()}
CONSTANTS = {"Ellipsis": ..., "NotImplemented": NotImplemented} | {
    name: getattr(dataclasses, name)  # what tells fields apart, by identity
    for name in ("MISSING", "_FIELD", "_FIELD_CLASSVAR", "_FIELD_INITVAR")
    if hasattr(dataclasses, name)
}


def value_text(value: Any, kind: type) -> Any:
    """A value of one of these kinds as JSON; None for any other."""
    if (tag := TAGS.get(kind)) is not None:
        return [tag, VALUES[kind][0](value)]
    if kind.__name__ in _BY_NAME.get(kind.__module__, ()):
        module = sys.modules.get(kind.__module__)
        if getattr(module, kind.__name__, None) is kind:
            return ["named", kind.__module__, kind.__name__, str(value)]
    for name, constant in CONSTANTS.items():
        if value is constant:
            return ["constant", name]
    return None


def text_value(data: list[Any]) -> Any:
    """The value that `value_text` wrote.

    Raises:
        LookupError, ValueError, TypeError, ArithmeticError: it wrote no such thing.
    """
    tag = data[0]
    if tag in _KINDS:
        return VALUES[_KINDS[tag]][1](data[1])
    if tag == "constant":
        return CONSTANTS[data[1]]
    if tag == "named" and data[2] in _BY_NAME[data[1]]:
        return getattr(importlib.import_module(data[1]), data[2])(data[3])
    raise ValueError("no value")


# --- containers that can change ------------------------------------------------------------------


class Kind:
    """A kind of container.

    Attributes:
        parts: its contents, as a tuple of lists (or of bytes).
        fill: give it other contents.
    """

    def __init__(
        self,
        type_: type,
        parts: Callable[[Any], tuple[Any, ...]],
        fill: Callable[..., None],
        extra: Callable[[Any], Any] = lambda value: None,
        new: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.type, self.parts, self.fill, self.extra = type_, parts, fill, extra
        self.new = new or (lambda kind, extra: kind.__new__(kind))


def _fill_deque(value: Any, items: list[Any]) -> None:
    deque.clear(value)
    deque.extend(value, items)


def _fill_set(value: Any, items: list[Any]) -> None:
    set.clear(value)
    set.update(value, items)


def _mapping(kind: Any, **options: Any) -> Kind:
    def fill(value: Any, keys: list[Any], values: list[Any]) -> None:
        kind.clear(value)
        for key, item in zip(keys, values, strict=True):
            kind.__setitem__(value, key, item)

    return Kind(kind, lambda v: ([*kind.keys(v)], [*kind.values(v)]), fill, **options)


def _fill_bytes(value: Any, data: bytes) -> None:
    bytearray.__setitem__(value, slice(None), data)


def _fill_array(value: Any, data: bytes) -> None:
    del value[:]
    value.frombytes(data)


def _new_deque(kind: Any, extra: Any) -> Any:
    value = deque.__new__(kind)
    deque.__init__(value, (), extra)
    return value


def _new_counts(kind: Any, extra: Any) -> Any:
    value = defaultdict.__new__(kind)
    defaultdict.__init__(value, extra)
    return value


KINDS: dict[str, Kind] = {
    "list": Kind(
        list,
        lambda v: ([*list.__iter__(v)],),
        lambda v, items: list.__setitem__(v, slice(None), items),
    ),
    "set": Kind(set, lambda v: ([*set.__iter__(v)],), _fill_set),
    "deque": Kind(
        deque, lambda v: ([*deque.__iter__(v)],), _fill_deque, lambda v: v.maxlen, _new_deque
    ),
    "dict": _mapping(dict),
    "Counter": _mapping(Counter),
    "OrderedDict": _mapping(OrderedDict),
    "defaultdict": _mapping(defaultdict, extra=lambda v: v.default_factory, new=_new_counts),
    "bytearray": Kind(bytearray, lambda v: (bytes(v),), _fill_bytes),
    "array": Kind(
        array.array,
        lambda v: (v.tobytes(),),
        _fill_array,
        lambda v: v.typecode,
        lambda kind, extra: kind(extra),
    ),
}
KIND_OF: dict[type, str] = {kind.type: tag for tag, kind in KINDS.items()}


# --- classes and errors --------------------------------------------------------------------------

TYPES = {kind: kind.__name__ for kind in vars(builtins).values() if isinstance(kind, type)}
TYPES |= {kind: kind.__name__ for kind in (*KIND_OF, *VALUES)}
ERRORS = {name: kind for kind, name in TYPES.items() if issubclass(kind, BaseException)}


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception as a message: the names of its classes, nearest first, and its text."""
    try:
        text = str(error)[:MAX_TEXT]
    except BaseException:
        text = ""
    names = [kind.__name__[:200] for kind in type(error).__mro__]
    return {"raised": names, "text": text}


def rebuild_error(message: dict[str, Any]) -> BaseException:
    """The built-in exception nearest to a described one, under its own name, with its text.

    Raises:
        GoneError: no such description.
    """
    names, text = message["raised"], message["text"]
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise GoneError(FORGED)
    base = next((ERRORS[name] for name in names if name in ERRORS), Exception)
    methods = {"__init__": lambda self: None, "__str__": lambda self: str(text)}
    name = "".join(c for c in names[0] if c.isidentifier() or c.isdigit()) or "Exception"
    error: BaseException = type(name, (base,), methods)()
    return error
