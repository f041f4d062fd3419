"""Plain data: convert each kind of it to JSON and back.

Only plain data is transferred between the processes of a program and of its tests, and rebuilt by
the receiver: no object brings its own methods along, so that none can lie to a test about what it
equals. Everything else is transferred as a reference to an object that stays where it is
(`codec.py`).
"""

from __future__ import annotations

import array
import builtins
import dataclasses
import datetime
import importlib
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from operator import is_
from typing import Any

SMALL = 1 << 62
"""Whole numbers from here on are written as text: JSON's have a limit."""


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
    """Convert a value of one of these kinds to JSON; None for any other."""
    if (tag := TAGS.get(kind)) is not None:
        return [tag, VALUES[kind][0](value)]
    top = kind.__module__.partition(".")[0]
    known = kind.__name__ in _BY_NAME.get(top, ())
    if known and getattr(sys.modules.get(top), kind.__name__, None) is kind:
        return ["named", top, kind.__name__, str(value)]
    for name, constant in CONSTANTS.items():
        if value is constant:
            return ["constant", name]
    return None


def text_value(data: list[Any]) -> Any:
    """Convert back what `value_text` wrote.

    Raises:
        LookupError, ValueError, TypeError, ArithmeticError: this is not its output.
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
        extra: what else makes one.
        new: make an empty one of a class of this kind.
        same: whether its contents are these very objects.
    """

    def __init__(
        self,
        type_: type,
        parts: Callable[[Any], tuple[Any, ...]],
        fill: Callable[..., None],
        extra: Callable[[Any], Any] = lambda value: None,
        new: Callable[[Any, Any], Any] = lambda kind, extra: kind.__new__(kind),
        same: Callable[[Any, tuple[Any, ...]], bool] | None = None,
    ) -> None:
        self.type, self.parts, self.fill, self.extra, self.new = type_, parts, fill, extra, new
        self.same = same or (lambda value, seen: parts(value) == seen)


def _these(items: Any, seen: list[Any]) -> bool:
    return len(items) == len(seen) and all(map(is_, items, seen))


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

    return Kind(
        kind,
        lambda v: ([*kind.keys(v)], [*kind.values(v)]),
        fill,
        same=lambda v, seen: _these(kind.keys(v), seen[0]) and _these(kind.values(v), seen[1]),
        **options,
    )


def _sequence(kind: Any, fill: Callable[..., None], **options: Any) -> Kind:
    return Kind(
        kind,
        lambda v: ([*kind.__iter__(v)],),
        fill,
        same=lambda v, seen: (
            kind.__len__(v) == len(seen[0]) and all(map(is_, kind.__iter__(v), seen[0]))
        ),
        **options,
    )


def _fill_list(value: Any, items: list[Any]) -> None:
    list.__setitem__(value, slice(None), items)


def _fill_namespace(value: Any, keys: list[Any], values: list[Any]) -> None:
    value.__dict__.clear()
    value.__dict__.update(zip(keys, values, strict=True))


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
    "list": _sequence(list, _fill_list),
    "set": _sequence(set, _fill_set),
    "deque": _sequence(deque, _fill_deque, extra=lambda v: v.maxlen, new=_new_deque),
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
KINDS["SimpleNamespace"] = Kind(
    types.SimpleNamespace,
    lambda v: ([*vars(v)], [*vars(v).values()]),
    _fill_namespace,
    same=lambda v, seen: _these(vars(v), seen[0]) and _these(vars(v).values(), seen[1]),
)
KIND_OF: dict[type, str] = {kind.type: tag for tag, kind in KINDS.items()}


# --- classes and errors --------------------------------------------------------------------------

TYPES = {kind: kind.__name__ for kind in vars(builtins).values() if isinstance(kind, type)}
TYPES |= {kind: kind.__name__ for kind in (*KIND_OF, *VALUES)}
ERRORS = {name: kind for kind, name in TYPES.items() if issubclass(kind, BaseException)}
