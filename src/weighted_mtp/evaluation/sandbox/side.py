"""One side of the connection: it requests operations, and answers requests while it waits."""

from __future__ import annotations

import functools
import io
import itertools
import re
import sys
import threading
import types
from typing import Any

from weighted_mtp.evaluation.sandbox.codec import Codec
from weighted_mtp.evaluation.sandbox.errors import (
    describe_error,
    new_error,
    rebuild_error,
    standard_error,
)
from weighted_mtp.evaluation.sandbox.mirror import (
    DATA,
    SPECIALS,
    RemoteType,
    is_mirror,
    make_class,
    set_number,
)
from weighted_mtp.evaluation.sandbox.values import ERRORS, KIND_OF, KINDS, TYPES
from weighted_mtp.evaluation.sandbox.wire import FORGED, GoneError, Line

_LIKE = {
    (kind.__module__, kind.__qualname__): kind
    for module in (types, functools, io, itertools, re)
    for kind in vars(module).values()
    if isinstance(kind, type) and kind not in DATA and not issubclass(kind, BaseException)
}
_LIKE |= {("builtins", kind.__name__): kind for kind in (enumerate, filter, map, reversed, zip)}
"""Classes that objects of the other side may say they are of: none is of data."""
_LIGHT = {"name", "defined"}
"""Operations that run nothing of the program."""
_DOC = 2000


class Side(Codec):
    """The common part of both sides.

    Attributes:
        forgets: whether the other side says which containers it no longer needs.
    """

    forgets = False

    def __init__(self, line: Line, first: int) -> None:
        super().__init__(first)
        self._line = line
        self._lock = threading.RLock()
        self._mine: dict[int, Any] = {}
        self._mine_ids: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}

    # --- asking and answering --------------------------------------------------------------------

    def ask(self, do: str, *args: Any, **kwargs: Any) -> Any:
        """Request an operation from the other side."""
        with self._lock:  # one thread at a time
            return self.result(self.exchange({"do": do}, args, kwargs))

    def exchange(
        self, message: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Send a request and wait for the reply, answering what is asked in between."""
        self.write(message, message["do"] in _LIGHT, args=args, kwargs=kwargs)
        if message["do"] not in _LIGHT and not self.forgets and (unneeded := self.unneeded()):
            message["forget"] = unneeded
        self._line.send(message)
        while "do" in (reply := self.receive()):
            self._line.send(self.answer(reply))
        return reply

    def receive(self) -> dict[str, Any]:
        """Wait for a message."""
        return self._line.receive()

    def result(self, reply: dict[str, Any]) -> Any:
        """The value of a reply; raises what the other side raised."""
        self.read_changes(reply)
        if "raised" in reply:
            raise self.raised(reply)
        if "value" not in reply:
            raise GoneError(FORGED)
        return self.decode(reply["value"])

    def raised(self, reply: dict[str, Any]) -> BaseException:
        """The exception in a reply."""
        error = self.decode(reply["error"]) if "error" in reply else rebuild_error(reply)
        if not isinstance(error, BaseException):
            raise GoneError(FORGED)
        return error

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Perform a request of the other side; return the reply."""
        try:
            self.read_changes(request)
            args = [self.decode(data) for data in request["args"]]
            kwargs = {name: self.decode(data) for name, data in request["kwargs"].items()}
            for number in request.get("forget", ()) if self.forgets else ():
                self.forget(number)
            do = request["do"]
            return self.write({}, do in _LIGHT, value=self.perform(do, args, kwargs))
        except GoneError:
            raise
        except BaseException as error:
            return self.failure(error)

    def perform(self, do: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Perform one operation."""
        raise NotImplementedError

    def failure(self, error: BaseException, whole: bool = True) -> dict[str, Any]:
        """The reply that says what was raised: in words, or (`whole`) with what it carries."""
        message = describe_error(error)
        if isinstance(error, SystemExit):
            code = error.code
            message["code"] = 0 if code is None else code if isinstance(code, int) else 1
        if not whole:
            return message
        try:
            return self.write(message, error=error)
        except Exception:  # it cannot be encoded: its classes' names must do
            return message

    # --- objects of this side --------------------------------------------------------------------

    def refer(self, value: Any) -> list[Any]:
        """Encode an object that stays here: its number, and at first what it is like."""
        known = self._mine_ids.get(id(value))
        if known is not None:
            return ["mine", known]
        number = self.number()
        self._mine[number], self._mine_ids[id(value)] = value, number
        self._new.append(number)
        return ["mine", number, self.describe(value, number)]

    def unsay(self, number: int) -> None:
        """Take back a number of `refer`."""
        if number in self._mine:
            self._mine_ids.pop(id(self._mine.pop(number)), None)

    def describe(self, value: Any, number: int) -> dict[str, Any]:
        """Describe an object for the other side."""
        if isinstance(value, type):
            return self.describe_class(value)
        kind = type(value)
        found: dict[str, Any] = {"of": Side.refer(self, kind)}
        if isinstance(value, BaseException):
            found["args"] = [self.encode(arg) for arg in value.args]
            return found
        base = next((base for base in kind.__mro__ if base in DATA), None)
        if base in KIND_OF:
            found["content"] = self.container(KIND_OF[base], value, number)
        elif base is not None:
            found["content"] = self.encode(_underneath(base, value))
        return found

    def describe_class(self, kind: type) -> dict[str, Any]:
        """Describe a class for the other side."""
        local = [b for b in kind.__mro__ if b is object or b in DATA or b in ERRORS.values()]
        owners = {name: _owner(kind, name) for name in SPECIALS}
        base = next((b for b in local if b in DATA), object)
        own = {
            name
            for above in kind.__mro__
            if above not in local
            for name in vars(above)
            if name[:2] != "__" and hasattr(base, name)
        }
        bases = [
            b
            for b in kind.__bases__
            if b is not object and (b in local or _is_error(b) or not _is_standard(b))
        ]
        if base is not object and not any(issubclass(b, base) for b in bases):
            bases.append(base)  # what a class of the standard library stands between
        return {
            "class": [kind.__name__, kind.__qualname__, str(kind.__module__)],
            "bases": [["type", TYPES[b]] if b in local else Side.refer(self, b) for b in bases],
            "special": [n for n, owner in owners.items() if owner and owner not in local],
            "own": sorted(own),
            "doc": kind.__doc__[:_DOC] if isinstance(kind.__doc__, str) else None,
        }

    def mine(self, number: int) -> Any:
        """Return the object of this side with this number."""
        return self._mine[number]

    # --- objects of the other side ---------------------------------------------------------------

    def theirs(self, number: int, description: Any) -> Any:
        """Return the mirror of an object of the other side."""
        if description is None:
            return self._theirs[number]
        if number in self._theirs or number % 2 == self._next % 2:
            raise ValueError("no number of a new object")
        if "class" in description:
            self._theirs[number] = self._class(number, description)
            return self._theirs[number]
        kind = self._decode(description["of"])
        if not isinstance(kind, RemoteType) and kind not in ERRORS.values():
            raise TypeError("not a class of the other side")
        content = description.get("content")
        made: Any
        if "args" in description:
            made = new_error(kind, [self._decode(arg) for arg in description["args"]])
        elif content is None:
            made = object.__new__(kind)
        elif type(content) is list and content[0] in KINDS:
            made = KINDS[content[0]].new(kind, self._decode(content[3]))
        else:
            value = self._decode(content)
            made = kind.__new__(kind, value)
        self._theirs[number] = made
        if is_mirror(made):
            set_number(made, number)
        if type(content) is list and content[0] in KINDS:
            self.adopt(number, made, content[0], content[2])
        return made

    def _class(self, number: int, description: dict[str, Any]) -> type:
        names = description["class"]
        bases = [self._decode(data) for data in description["bases"]]
        for base in bases:
            if not (isinstance(base, RemoteType) or base in DATA or _is_error(base)):
                raise TypeError("not a class of the other side")
        error = next((b for b in bases if not isinstance(b, RemoteType) and _is_error(b)), None)
        if error is not None and error in ERRORS.values():
            known = standard_error([error.__name__, names[2], names[1]])
            if known is not error and known.__module__ == names[2]:
                return known
        like = _LIKE.get((names[2], names[1]))
        side: Any = self  # both subclasses have everything that mirrors need
        return make_class(side, number, description, bases, like)


def _is_standard(kind: type) -> bool:
    return str(kind.__module__).partition(".")[0] in sys.stdlib_module_names


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _owner(kind: type, name: str) -> type | None:
    """Return the class that defines a special method; None if it is set to None."""
    for above in kind.__mro__:
        if name in vars(above):
            return above if vars(above)[name] is not None else None
    return None


def _underneath(base: type, value: Any) -> Any:
    """Convert an object of a class derived from a kind of data to that data."""
    if base is tuple or base is frozenset:
        return base(base.__iter__(value))
    if base is str:
        return str.__str__(value)
    if base in (int, bool):
        return int.__int__(value)
    if base is float:
        return float.__float__(value)
    if base is bytes:
        return bytes.__getitem__(value, slice(None))
    return base.__new__(base, value)
