"""Mirrors: stand-ins in one process for objects and classes of the other.

A class of the program is mirrored by a class here with the same special methods and bases, so that
`isinstance`, `except` and operators work as on the original; they are executed there, and
attributes are looked up there. A class derived from a built-in kind of data keeps its data here
too: methods that it does not define itself work on that, and a comparison that it does not define
cannot lie.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

from weighted_mtp.evaluation.sandbox.values import KINDS, VALUES


class Asks(Protocol):
    """One side of the connection, as mirrors use it."""

    def ask(self, do: str, *args: Any, **kwargs: Any) -> Any:
        """Request an operation from the other side."""

    def shows(self, mirror: Any) -> bool:
        """Whether an operator of this object may be shown a value of this side."""

    def equals(self, mirror: Any, other: Any) -> bool:
        """Whether the object equals a value of this side."""

    def contains(self, mirror: Any, value: Any) -> bool:
        """Whether the object contains a value that may be shown to it."""

    def as_number(self, mirror: Any) -> Any:
        """Return the number that an object stands for, or None."""


_BINARY = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "matmul", "lshift",
    "rshift", "and", "or", "xor",
)  # fmt: skip
OPERATORS = frozenset(f"__{side}{name}__" for name in _BINARY for side in ("", "r", "i"))
ORDERS = frozenset(f"__{name}__" for name in ("lt", "le", "gt", "ge"))
PLAIN = frozenset(
    f"__{name}__"
    for name in (
        "neg", "pos", "invert", "abs", "int", "float", "complex", "index", "round", "trunc",
        "floor", "ceil", "len", "bool", "str", "repr", "format", "bytes", "iter", "next",
        "reversed", "length_hint", "aiter", "anext", "enter", "exit", "aenter", "aexit", "fspath",
        "getitem", "setitem", "delitem", "missing", "call", "hash",
    )
)  # fmt: skip
"""Special methods that show nothing but what the caller hands over on purpose."""
SPECIALS = OPERATORS | ORDERS | PLAIN | {"__eq__", "__ne__", "__contains__", "__await__"}
DATA: tuple[type, ...] = (
    bool, str, float, tuple, frozenset, *(kind.type for kind in KINDS.values()), *VALUES,
)  # fmt: skip
"""Kinds of data, which cross as what they are."""
_FIXED = (bool, str, float, tuple, frozenset, *VALUES)


_QUERIES = frozenset({"count", "get", "index", "isdisjoint", "issubset", "issuperset"})
"""Methods of data that only tell something, which they tell of the data here."""


class RemoteType(type):
    """The type of mirrored classes. Each has `_remote_side` and `_remote_number`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._remote_side.ask("call", cls, *args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return cls._remote_side.ask("getattr", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._remote_side.ask("setattr", cls, name, value)

    def __delattr__(cls, name: str) -> None:
        cls._remote_side.ask("delattr", cls, name)

    def __bool__(cls) -> bool:
        return True

    def __len__(cls) -> Any:
        return cls._remote_side.ask("special", "__len__", cls)

    def __iter__(cls) -> Iterator[Any]:
        return iter(cls._remote_side.ask("iter", cls))

    def __getitem__(cls, place: Any) -> Any:
        return cls._remote_side.ask("getitem", cls, place)

    def __contains__(cls, value: Any) -> bool:
        return any(item is value or item == value for item in cls)

    def __instancecheck__(cls, value: Any) -> bool:
        if type.__instancecheck__(cls, value):
            return True
        known = isinstance(type(value), RemoteType)
        return known and cls._remote_side.ask("isinstance", value, cls) is True


class RemoteObject(metaclass=RemoteType):
    """An object in the other process. It has `_remote_number`."""

    def __getattr__(self, name: str) -> Any:
        return self._remote_side.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(self, BaseException) and name[:2] == "__":  # its traceback, its cause
            BaseException.__setattr__(self, name, value)
        else:
            self._remote_side.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._remote_side.ask("delattr", self, name)

    def __copy__(self) -> Any:
        return self._remote_side.ask("copy", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._remote_side.ask("deepcopy", self)

    @property
    def __dict__(self) -> Any:  # type: ignore[override]  # the other process has the real one
        return self._remote_side.ask("getattr", self, "__dict__")


def is_mirror(value: Any) -> bool:
    """Whether this is an object, or a class, of the other side."""
    kind = type(value)
    return isinstance(kind, RemoteType) or kind is RemoteType


def number_of(mirror: Any) -> int:
    """The number by which the other side knows this object."""
    if type(mirror) is RemoteType:
        return int(type.__getattribute__(mirror, "_remote_number"))
    return int(object.__getattribute__(mirror, "_remote_number"))


def set_number(mirror: Any, number: int) -> None:
    """Say which object of the other side this is."""
    object.__setattr__(mirror, "_remote_number", number)


# --- methods of mirrored classes -----------------------------------------------------------------


def _plain(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._remote_side.ask("special", name, self, *args, **kwargs)

    return method


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self._remote_side.ask("call", self, *args, **kwargs)


def _iterate(self: Any) -> Iterator[Any]:
    found = self._remote_side.ask("iter", self)
    return found if is_mirror(found) else iter(found)


def _truth(self: Any) -> bool:
    return self._remote_side.ask("special", "__bool__", self) is True


def _local(base: type | None, name: str) -> Callable[..., Any] | None:
    """What a built-in kind of data does by itself."""
    return getattr(base, name, None) if base is not None else None


def _binary(name: str, base: type | None) -> Callable[[Any, Any], Any]:
    """An operator. The other operand is not shown to an object that may make up its answer."""
    plain = name.strip("_")
    turned = plain[0] == "r" and plain[1:] in _BINARY
    bare = plain[1:] if plain not in _BINARY else plain
    function: Any = divmod if bare == "divmod" else None
    if function is None:
        function = getattr(operator, f"{bare}_" if bare in ("and", "or") else bare)

    def method(self: Any, other: Any, *more: Any) -> Any:
        side = self._remote_side
        if is_mirror(other) or side.shows(self):
            return side.ask("special", name, self, other, *more)
        if (own := _local(base, name)) is not None:
            return own(self, other, *more)
        number = side.as_number(self)
        if number is None:
            return NotImplemented
        return function(other, number) if turned else function(number, other)

    return method


def _order(name: str, base: type | None) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        side = self._remote_side
        if is_mirror(other) or side.shows(self):
            found = side.ask("special", name, self, other)
            return found if found is NotImplemented else found is True
        if (own := _local(base, name)) is not None:
            return own(self, other)
        number = side.as_number(self)
        return NotImplemented if number is None else getattr(operator, name)(number, other)

    return method


def _equal(self: Any, other: Any) -> bool:
    return self is other or bool(self._remote_side.equals(self, other))


def _unequal(self: Any, other: Any) -> bool:
    return not _equal(self, other)


def _contains(self: Any, value: Any) -> bool:
    side = self._remote_side
    if is_mirror(value) or side.shows(self):
        return bool(side.contains(self, value))
    return any(item is value or item == value for item in self)  # decided in this process


def _await(self: Any) -> Generator[Any, None, Any]:
    yield from ()  # a generator, as `await` wants one
    return self._remote_side.ask("await", self)


def _send(self: Any, value: Any) -> Any:
    raise StopIteration(self._remote_side.ask("await", self))


class _Forward:
    """An attribute that a class of the other side defines, though its base here has one too."""

    def __init__(self, name: str, base: type | None = None) -> None:
        self._name, self._base = name, base

    def __get__(self, mirror: Any, kind: Any) -> Any:
        if mirror is not None and self._base is not None and not mirror._remote_side.shows(mirror):
            return getattr(self._base, self._name).__get__(mirror)
        owner = kind if mirror is None else mirror
        return owner._remote_side.ask("getattr", owner, self._name)

    def __set__(self, mirror: Any, value: Any) -> None:
        mirror._remote_side.ask("setattr", mirror, self._name, value)


def _method(name: str, base: type | None) -> Any:
    if name in OPERATORS:
        return _binary(name, base)
    if name in ORDERS:
        return _order(name, base)
    made: dict[str, Callable[..., Any]] = {
        "__eq__": _equal,
        "__ne__": _unequal,
        "__contains__": _contains,
        "__call__": _call,
        "__iter__": _iterate,
        "__bool__": _truth,
        "__await__": _await,
    }
    return made.get(name) or _plain(name)


def make_class(
    side: Asks, number: int, description: dict[str, Any], bases: list[type], like: type | None
) -> RemoteType:
    """Mirror a class.

    Args:
        description: `class` is its name, qualified name and module; `special` the special methods
            that it or its bases define, without built-in bases; `own` other names that it defines
            although a built-in base has them too; `doc` its docstring.
        bases: its bases, mirrored or built-in.
        like: the class that its objects claim to be of, if that is not this one.
    """
    names, special = description["class"], description["special"]
    base = next((kind for b in bases for kind in b.__mro__ if kind in DATA), None)
    space: dict[str, Any] = {"_remote_side": side, "_remote_number": number}
    space |= {"__qualname__": names[1], "__module__": names[2]}
    special = [name for name in special if name in SPECIALS]
    if base is None and not any(issubclass(b, BaseException) for b in bases):
        special += ["__repr__", "__str__", "__format__", "__dir__"]
    for name in special:
        space[name] = _method(name, base)
    if "__eq__" in special:
        space["__ne__"] = _unequal
        if "__hash__" not in special:
            space["__hash__"] = None
    for name in description["own"]:
        if not name.startswith(("__", "_remote")):
            tells = base in _FIXED or name in _QUERIES
            space[name] = _Forward(name, base if tells else None)
    if "__await__" in special and like is not None:
        space["send"] = _send
    if like is not None:
        space["__class__"] = property(lambda self: like)
        space["__doc__"] = _Forward("__doc__")
    elif isinstance(description["doc"], str):
        space["__doc__"] = description["doc"]
    if not any(issubclass(b, RemoteObject) for b in bases):
        bases = [RemoteObject, *bases]
    try:
        return type.__new__(RemoteType, names[0], tuple(bases), space)
    except TypeError:  # bases that do not go together here
        return type.__new__(RemoteType, names[0], (RemoteObject,), space)
