"""Limit what a program may do with an object that its tests pass to it.

It may call a function, step through an iterator, and use the public attributes of objects of the
tests' own classes, but nothing behind them: no name that begins with two underscores, and neither
globals, code nor constants of a function.
"""

from __future__ import annotations

import inspect
import io
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from weighted_mtp.evaluation.sandbox.mirror import SPECIALS

OWN = "__main__"
"""The module of the tests' own classes."""
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)
_OF_A_FUNCTION = {"__defaults__", "__kwdefaults__", "__annotations__"}
_OF_ITS_CODE = (
    "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_varnames", "co_flags", "co_name",
)  # fmt: skip
_NAMES = {"__name__", "__qualname__", "__doc__", "__module__"}
_OF_A_GENERATOR = {"send", "close", "throw"}


class _Code:
    """What a program may know of the code of a test's function: its parameters."""


def do_for_program(do: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Perform an operation on an object of the tests.

    Raises:
        TypeError, AttributeError: the program may not do this.
    """
    rest = args[1:]
    if do == "special" and args[0] in SPECIALS and _is_open(target, walk=True):
        return getattr(type(target), args[0])(target, *args[2:], **kwargs)
    if do == "call" and _may_be_called(target):
        return target(*rest, **kwargs)
    if do == "iter" and _is_open(target, walk=True):
        return iter(target)
    if do == "isinstance":
        return isinstance(target, rest[0])
    if do == "getattr" and isinstance(rest[0], str):
        return _read(target, rest[0])
    if do in ("setattr", "delattr") and _is_own(target) and rest[0][:2] != "__":
        change: Callable[..., None] = setattr if do == "setattr" else delattr
        return change(target, *rest)
    raise TypeError(f"the tests do not allow {do!s:.20} on what they handed over")


def _read(target: Any, name: str) -> Any:
    if isinstance(target, types.FunctionType):
        allowed = name in _OF_A_FUNCTION
        if name == "__code__":
            code = _Code()
            vars(code).update({item: getattr(target.__code__, item) for item in _OF_ITS_CODE})
            return code
    elif inspect.isgenerator(target):
        allowed = name in _OF_A_GENERATOR
    elif _is_open(target):
        allowed = name[: 2 if _is_own(target) else 1].strip("_") != ""
    else:
        allowed = False
    allowed = allowed or (callable(target) and name in _NAMES)
    if not allowed:
        kind = type(target).__name__
        raise AttributeError(f"{kind!r} object has no attribute {name!r:.100}")
    return getattr(target, name)


def may_be_handed_over(value: Any) -> bool:
    """Whether the program may hold an object of the tests that is not plain data."""
    if isinstance(value, type):
        return _is_own(value) or issubclass(value, BaseException)
    return callable(value) or isinstance(value, BaseException) or _is_open(value, walk=True)


def standard_name(value: Any) -> tuple[str, str] | None:
    """The module and name of a function or class of the standard library."""
    if not isinstance(value, (*_FUNCTIONS, type)):
        return None
    module, name = getattr(value, "__module__", None), value.__qualname__
    if isinstance(value, types.MethodDescriptorType):
        module = value.__objclass__.__module__
    if not isinstance(module, str) or module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    try:
        found = operator.attrgetter(name)(sys.modules[module])
    except (LookupError, AttributeError):
        return None
    return (module, name) if found is value and module != OWN else None


def _is_own(value: Any) -> bool:
    """Whether this is a class of the tests, or an object of one."""
    return (value if isinstance(value, type) else type(value)).__module__ == OWN


def _is_open(value: Any, walk: bool = False) -> bool:
    """Whether a program may use an object's attributes, or (`walk`) at least step through it."""
    if _is_own(value) or type(value).__module__ == "unittest.mock":
        return True
    if isinstance(value, io.StringIO | io.BytesIO | _Code):
        return True
    return walk and isinstance(value, Iterator)


def _may_be_called(value: Any) -> bool:
    return _is_own(value) if isinstance(value, type) else callable(value)
