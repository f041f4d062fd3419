"""Encode values for the other side: data by content, everything else by number.

A mutable container gets a number too. Both sides keep a copy of it, and every message lists the
changes of the sender's copies, so that an argument changed in place, an attribute that is the same
list as another, and a result that is one of the arguments behave as in one process. The side of the
tests reports which containers it no longer needs.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
from typing import Any

from weighted_mtp.evaluation.sandbox.errors import decode_error, encode_error
from weighted_mtp.evaluation.sandbox.mirror import is_mirror, number_of
from weighted_mtp.evaluation.sandbox.values import (
    KIND_OF,
    KINDS,
    SMALL,
    TYPES,
    text_value,
    value_text,
)
from weighted_mtp.evaluation.sandbox.wire import FORGED, GoneError

MAX_SHARED, MAX_PARTS = 300, 200_000
"""Maximum number of synchronized containers, and of the entries of one."""
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values"}
_VIEWS[type({}.items())] = "items"


class Shared:
    """A container of which each side has a copy, and its contents at the last message."""

    __slots__ = ("kept", "seen", "tag", "value")

    def __init__(self, value: Any, tag: str, kept: bool) -> None:
        self.value, self.tag, self.kept = value, tag, kept
        self.seen: tuple[Any, ...] | None = None

    def changed(self) -> bool:
        """Whether its contents have changed since the last message."""
        return self.seen is not None and not KINDS[self.tag].same(self.value, self.seen)


class Codec:
    """Encodes and decodes for one side.

    Args:
        first: its first number; the other side's are odd where these are even.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._shared: dict[int, Shared] = {}
        self._shared_ids: dict[int, int] = {}
        self._new: list[int] = []  # shared first in the message that is being written
        self._seen: list[tuple[Shared, tuple[Any, ...]]] = []

    # --- what each side does in its own way ------------------------------------------------------

    def refer(self, value: Any) -> list[Any]:
        """Encode an object that stays here."""
        raise NotImplementedError

    def unsay(self, number: int) -> None:
        """Withdraw a number of `refer`: the message was not sent."""
        raise NotImplementedError

    def mine(self, number: int) -> Any:
        """Return the object of this side with this number."""
        raise NotImplementedError

    def theirs(self, number: int, description: Any) -> Any:
        """Return the mirror of an object of the other side."""
        raise NotImplementedError

    def standard(self, module: str, name: str) -> Any:
        """Return a function of the standard library."""
        raise NotImplementedError

    # --- messages --------------------------------------------------------------------------------

    def number(self) -> int:
        """Return an unused number."""
        self._next += 2
        return self._next - 2

    def write(self, message: dict[str, Any], light: bool = False, **values: Any) -> dict[str, Any]:
        """Add to a message values, and what has changed; leave nothing half done on an error.

        Args:
            light: nothing can have changed that matters now.
        """
        self._new, self._seen = [], []
        try:
            changed = []
            for number, shared in () if light else list(self._shared.items()):
                if shared.changed():
                    parts = KINDS[shared.tag].parts(shared.value)
                    changed.append([number, self._parts(shared, parts)])
            for name, value in values.items():
                if name == "args":
                    message[name] = [self.encode(item) for item in value]
                elif name == "kwargs":
                    message[name] = {key: self.encode(item) for key, item in value.items()}
                else:
                    message[name] = self.encode(value)
        except BaseException:
            for number in self._new:
                self.forget(number)
                self.unsay(number)
            raise
        for shared, parts in self._seen:
            shared.seen = parts
        if changed:
            message["changed"] = changed
        return message

    def read_changes(self, message: dict[str, Any]) -> None:
        """Apply what a message says has changed."""
        try:
            for number, data in message.get("changed", ()):
                shared = self._shared[number]
                self._fill(shared, data)
        except (LookupError, TypeError, ValueError) as error:
            raise GoneError(FORGED) from error

    def forget(self, number: int) -> None:
        """Stop synchronizing a container."""
        shared = self._shared.pop(number, None)
        if shared is not None and self._shared_ids.get(id(shared.value)) == number:
            del self._shared_ids[id(shared.value)]

    def unneeded(self) -> list[int]:
        """Return containers that this side no longer uses, and forget them."""
        found = [
            number
            for number, shared in self._shared.items()
            if not shared.kept and (sys.getrefcount(shared.value) <= 2 or _size(shared) > MAX_PARTS)
        ]
        over = len(self._shared) - len(found) - MAX_SHARED
        if over > 0:
            rest = [n for n, shared in self._shared.items() if n not in set(found)]
            found += [n for n in rest if not self._shared[n].kept][: over + MAX_SHARED // 2]
        for number in found:
            self.forget(number)
        return found

    # --- encoding --------------------------------------------------------------------------------

    def encode(self, value: Any) -> Any:
        """Encode a value as JSON types: text and small numbers unchanged, the rest as a list."""
        kind = type(value)
        if value is None or kind in (bool, float, str) or (kind is int and -SMALL < value < SMALL):
            return value
        if (tag := KIND_OF.get(kind)) is not None:
            return self.container(tag, value)
        if kind is tuple or kind is frozenset:
            return [kind.__name__, [self.encode(item) for item in value]]
        if is_mirror(value):
            return ["yours", number_of(value)]
        if (text := value_text(value, kind)) is not None:
            return text
        if kind is type and value in TYPES:
            return ["type", TYPES[value]]
        if kind in _VIEWS:
            return ["view", _VIEWS[kind], [self.encode(item) for item in value]]
        if kind is types.TracebackType:  # each side has its own
            return None
        if kind is slice:
            return ["slice", [self.encode(v) for v in (value.start, value.stop, value.step)]]
        if kind is re.Pattern:
            return ["pattern", self.encode(value.pattern), value.flags]
        if isinstance(value, types.ModuleType) and sys.modules.get(value.__name__) is value:
            top = value.__name__.partition(".")[0]
            if top in sys.stdlib_module_names and top != "builtins":
                return ["module", value.__name__]
        return encode_error(self, value) if isinstance(value, BaseException) else self.refer(value)

    def container(self, tag: str, value: Any, number: int | None = None) -> list[Any]:
        """Encode a container: by its number if the other side has it, else with its contents."""
        known = self._shared_ids.get(id(value))
        if known is not None:
            return ["same", known]
        kept = number is not None
        number = self.number() if number is None else number
        shared = self._share(number, value, tag, kept)
        self._new.append(number)
        kind = KINDS[tag]
        extra = self.encode(kind.extra(value))
        return [tag, number, self._parts(shared, kind.parts(value)), extra]

    def _share(self, number: int, value: Any, tag: str, kept: bool) -> Shared:
        shared = self._shared[number] = Shared(value, tag, kept)
        self._shared_ids[id(value)] = number
        return shared

    def _parts(self, shared: Shared, parts: tuple[Any, ...]) -> list[Any]:
        self._seen.append((shared, parts))
        return [
            part.hex() if type(part) is bytes else [self.encode(item) for item in part]
            for part in parts
        ]

    # --- decoding --------------------------------------------------------------------------------

    def decode(self, data: Any) -> Any:
        """Decode what `encode` wrote on the other side.

        Raises:
            GoneError: this is not output of `encode`.
        """
        try:
            return self._decode(data)
        except (
            ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ImportError,
            RecursionError,
        ) as error:  # fmt: skip
            raise GoneError(FORGED) from error

    def _decode(self, data: Any) -> Any:
        if type(data) is not list:
            return data
        tag = data[0]
        if tag in KINDS:
            return self._contents(tag, data[1], data[2], data[3])
        if tag == "same":
            return self._shared[data[1]].value
        if tag == "tuple":
            return tuple([self._decode(item) for item in data[1]])
        if tag == "frozenset":
            return frozenset([self._decode(item) for item in data[1]])
        if tag == "yours":
            return self.mine(data[1])
        if tag == "mine":
            if type(data[1]) is not int:
                raise ValueError("no number")
            return self.theirs(data[1], data[2] if len(data) > 2 else None)
        if tag == "type":
            return _BUILTIN[data[1]]
        if tag == "error":
            return decode_error(self, data)
        if tag == "view":
            items = [self._decode(item) for item in data[2]]
            if data[1] == "values":
                return dict(enumerate(items)).values()
            return dict.fromkeys(items).keys() if data[1] == "keys" else dict(items).items()
        if tag == "slice":
            return slice(*[self._decode(item) for item in data[1]])
        if tag == "pattern":
            return re.compile(self._decode(data[1]), data[2])
        if tag == "module":
            return sys.modules.get(data[1]) or _import_standard(data[1])
        if tag == "standard":
            return self.standard(data[1], data[2])
        return text_value(data)

    def _contents(self, tag: str, number: Any, parts: Any, extra: Any) -> Any:
        if type(number) is not int or number % 2 == self._next % 2 or number in self._shared:
            raise ValueError("no number of a new container")
        kind = KINDS[tag]
        value = kind.new(kind.type, self._decode(extra))
        self._fill(self._share(number, value, tag, kept=False), parts)
        return value

    def _fill(self, shared: Shared, parts: Any) -> None:
        shared.seen = None
        kind = KINDS[shared.tag]
        kind.fill(
            shared.value,
            *[
                bytes.fromhex(part) if type(part) is str else [self._decode(item) for item in part]
                for part in parts
            ],
        )
        shared.seen = kind.parts(shared.value)

    def adopt(self, number: int, value: Any, tag: str, parts: Any) -> None:
        """Synchronize an object of the other side that is also a container."""
        self._fill(self._share(number, value, tag, kept=True), parts)


def _import_standard(name: str) -> types.ModuleType:
    if name not in sys.stdlib_module_names:
        raise ImportError(name)
    return importlib.import_module(name)


_BUILTIN = {name: kind for kind, name in TYPES.items()}


def _size(shared: Shared) -> int:
    return sum(map(len, shared.seen)) if shared.seen is not None else 0
