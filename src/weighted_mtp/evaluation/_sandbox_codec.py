"""Values as both sides of the line know them: data by content, everything else by number.

A container that can change gets a number too. Both sides keep their own copy of it, and every
message says what has changed in those of the sender, so that an argument changed in place, an
attribute that is the same list as another, and a result that is one of the arguments are what they
would be in one process. The side of the tests says which it no longer needs.
"""

from __future__ import annotations

import re
import sys
import types
from operator import is_
from typing import Any

from weighted_mtp.evaluation._sandbox_mirror import is_mirror, number_of
from weighted_mtp.evaluation._sandbox_wire import (
    ERRORS,
    FORGED,
    KIND_OF,
    KINDS,
    SMALL,
    TYPES,
    GoneError,
    text_value,
    value_text,
)

MAX_SHARED, MAX_PARTS = 1000, 200_000
"""Containers that are kept in step, and the entries of one."""
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values"}
_VIEWS[type({}.items())] = "items"
_FLAT: tuple[type, ...] = (int, float, str, bytes)
_FLATTEN = {
    int: int.__int__, float: float.__float__, str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
}  # fmt: skip


class Shared:
    """A container of which each side has a copy, and what was in it at the last message."""

    __slots__ = ("kept", "seen", "tag", "value")

    def __init__(self, value: Any, tag: str, kept: bool) -> None:
        self.value, self.tag, self.kept = value, tag, kept
        self.seen: tuple[Any, ...] | None = None

    def changed(self) -> tuple[Any, ...] | None:
        """Its contents, if they are others than at the last message."""
        if self.seen is None:
            return None
        parts = KINDS[self.tag].parts(self.value)
        for now, then in zip(parts, self.seen, strict=True):
            if type(now) is bytes:
                if now != then:
                    return parts
            elif len(now) != len(then) or not all(map(is_, now, then)):
                return parts
        return None


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
        self._flattens = False

    # --- what each side does in its own way ------------------------------------------------------

    def refer(self, value: Any) -> list[Any]:
        """Encode an object that stays here."""
        raise NotImplementedError

    def unsay(self, number: int) -> None:
        """Take back a number of `refer`: the message was not sent."""
        raise NotImplementedError

    def mine(self, number: int) -> Any:
        """The object of this side that the other calls by this number."""
        raise NotImplementedError

    def theirs(self, number: int, description: Any) -> Any:
        """What stands for an object of the other side."""
        raise NotImplementedError

    def standard(self, module: str, name: str) -> Any:
        """A function of the standard library."""
        raise NotImplementedError

    # --- messages --------------------------------------------------------------------------------

    def number(self) -> int:
        """A number that nothing has yet."""
        self._next += 2
        return self._next - 2

    def write(self, message: dict[str, Any], **values: Any) -> dict[str, Any]:
        """Add to a message values, and what has changed; leave nothing half done on an error."""
        self._new, self._seen = [], []
        try:
            changed = []
            for number, shared in list(self._shared.items()):
                if (parts := shared.changed()) is not None:
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
        """Keep a container in step no longer."""
        shared = self._shared.pop(number, None)
        if shared is not None and self._shared_ids.get(id(shared.value)) == number:
            del self._shared_ids[id(shared.value)]

    def unneeded(self) -> list[int]:
        """Containers that this side has no other use for; they are forgotten here."""
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
        """A value as JSON's own types: text and small numbers as they are, the rest as a list."""
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
        if kind is types.ModuleType and value.__name__ in sys.modules:
            if value.__name__.partition(".")[0] in sys.stdlib_module_names:
                return ["module", value.__name__]
        if self._flattens:
            for plain in _FLAT:
                if isinstance(value, plain):
                    return self.encode(_FLATTEN[plain](value))
            for tag, shape in KINDS.items():
                if isinstance(value, shape.type):
                    return self.container(tag, value)
        return self.error(value) if isinstance(value, BaseException) else self.refer(value)

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
        """The value that `encode` wrote on the other side.

        Raises:
            GoneError: nothing that `encode` writes.
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
            return self._error(data)
        if tag == "view":
            items = [self._decode(item) for item in data[2]]
            if data[1] == "values":
                return dict(enumerate(items)).values()
            return dict.fromkeys(items).keys() if data[1] == "keys" else dict(items).items()
        if tag == "slice":
            return slice(*[self._decode(item) for item in data[1]])
        if tag == "pattern":
            return re.compile(self._decode(data[1]), data[2])
        if tag == "module" and data[1].partition(".")[0] in sys.stdlib_module_names:
            __import__(data[1])
            return sys.modules[data[1]]
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
        """Keep an object of the other side that is a container too in step with it."""
        self._fill(self._share(number, value, tag, kept=True), parts)

    # --- exceptions ------------------------------------------------------------------------------

    def error(self, error: BaseException, depth: int = 3) -> list[Any]:
        """Encode an exception, with what caused it."""
        kind = type(error)
        more: dict[str, Any] = {}
        if is_mirror(error):
            data = ["error", None, ["yours", number_of(error)], more]
        elif ERRORS.get(kind.__name__) is kind:
            data = ["error", [kind.__name__], [self.encode(arg) for arg in error.args], more]
        elif kind.__module__.partition(".")[0] in sys.stdlib_module_names:
            builtin = next(base.__name__ for base in kind.__mro__ if base in TYPES)
            names = [builtin, kind.__module__, kind.__qualname__]
            data = ["error", names, [self.encode(arg) for arg in error.args], more]
            more["state"] = [[key, self.encode(item)] for key, item in vars(error).items()]
        else:
            data = ["error", None, self.refer(error), more]
        if depth and kind is not MemoryError:
            for attribute in ("__cause__", "__context__"):
                if (other := getattr(error, attribute)) is not None:
                    more[attribute] = self.error(other, depth - 1)
        return data

    def _error(self, data: list[Any]) -> BaseException:
        error: BaseException
        if data[1] is None:
            error = self._decode(data[2])
        else:
            error = new_error(standard_error(data[1]), [self._decode(arg) for arg in data[2]])
            for key, item in data[3].get("state", ()):
                setattr(error, key, self._decode(item))
        for attribute in ("__cause__", "__context__"):
            if attribute in data[3]:
                setattr(error, attribute, self._error(data[3][attribute]))
        return error


def standard_error(names: list[str]) -> type[BaseException]:
    """A class of exceptions of the standard library, or else the built-in one it is derived from.

    Args:
        names: the built-in class; of one that is not built-in, module and name.
    """
    if len(names) == 3 and names[1].partition(".")[0] in sys.stdlib_module_names:
        found = getattr(sys.modules.get(names[1]), names[2], None)
        if isinstance(found, type) and issubclass(found, ERRORS[names[0]]):
            return found
    return ERRORS[names[0]]


def new_error(kind: type[BaseException], args: list[Any]) -> BaseException:
    """An exception with these arguments; a class that wants others is not asked."""
    if kind in TYPES:
        try:
            return kind(*args)
        except TypeError:
            pass
    error = kind.__new__(kind, *args)
    BaseException.__setattr__(error, "args", tuple(args))
    return error


_BUILTIN = {name: kind for kind, name in TYPES.items()}


def _size(shared: Shared) -> int:
    return sum(map(len, shared.seen)) if shared.seen is not None else 0
