"""Transfer exceptions between the two processes: class, arguments, attributes and causes."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from weighted_mtp.evaluation.sandbox.mirror import is_mirror, number_of
from weighted_mtp.evaluation.sandbox.values import ERRORS, TYPES
from weighted_mtp.evaluation.sandbox.wire import FORGED, GoneError

MAX_TEXT = 2000
"""Maximum length of an exception's text."""
_LINKS = ("__cause__", "__context__")


class Codec(Protocol):
    """The codec of values (`codec.py`, which uses this module for exceptions)."""

    def encode(self, value: Any) -> Any: ...
    def decode(self, data: Any) -> Any: ...
    def refer(self, value: Any) -> Any: ...


def describe_error(error: BaseException) -> dict[str, Any]:
    """Describe an exception: the names of its classes, nearest first, and its text."""
    try:
        text = str(error)[:MAX_TEXT]
    except BaseException:
        text = ""
    names = [kind.__name__[:200] for kind in type(error).__mro__]
    return {"raised": names, "text": text}


def rebuild_error(message: dict[str, Any]) -> BaseException:
    """Rebuild the built-in exception nearest to a described one, with its name and text.

    Raises:
        GoneError: this is not such a description.
    """
    names, text = message["raised"], message["text"]
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise GoneError(FORGED)
    base = next((ERRORS[name] for name in names if name in ERRORS), Exception)
    methods = {"__init__": lambda self: None, "__str__": lambda self: str(text)}
    name = "".join(c for c in names[0] if c.isidentifier() or c.isdigit()) or "Exception"
    error: BaseException = type(name, (base,), methods)()
    return error


def encode_error(codec: Codec, error: BaseException, depth: int = 3) -> list[Any]:
    """Encode an exception with its causes."""
    kind = type(error)
    more: dict[str, Any] = {}
    data: list[Any]
    if is_mirror(error):
        data = ["error", None, ["yours", number_of(error)], more]
    elif ERRORS.get(kind.__name__) is kind:
        args = error.__reduce__()[1]  # with the file of an OSError
        data = ["error", [kind.__name__], [codec.encode(arg) for arg in args], more]
    elif kind.__module__.partition(".")[0] in sys.stdlib_module_names:
        builtin = next(base.__name__ for base in kind.__mro__ if base in TYPES)
        names = [builtin, kind.__module__, kind.__qualname__]
        data = ["error", names, [codec.encode(arg) for arg in error.args], more]
        more["state"] = [[key, codec.encode(item)] for key, item in vars(error).items()]
    else:
        data = ["error", None, codec.refer(error), more]
    if depth and kind is not MemoryError:
        for attribute in _LINKS:
            if (other := getattr(error, attribute)) is not None:
                more[attribute] = encode_error(codec, other, depth - 1)
    return data


def decode_error(codec: Codec, data: list[Any]) -> BaseException:
    """Decode what `encode_error` wrote."""
    error: BaseException
    if data[1] is None:
        error = codec.decode(data[2])
    else:
        error = new_error(standard_error(data[1]), [codec.decode(arg) for arg in data[2]])
        for key, item in data[3].get("state", ()):
            setattr(error, key, codec.decode(item))
    for attribute in _LINKS:
        if attribute in data[3]:
            setattr(error, attribute, decode_error(codec, data[3][attribute]))
    return error


def standard_error(names: list[str]) -> type[BaseException]:
    """Return an exception class of the standard library, or the built-in one it derives from.

    Args:
        names: the built-in class; of one that is not built-in, module and name.
    """
    if len(names) == 3 and names[1].partition(".")[0] in sys.stdlib_module_names:
        found = getattr(sys.modules.get(names[1]), names[2], None)
        if isinstance(found, type) and issubclass(found, ERRORS[names[0]]):
            return found
    return ERRORS[names[0]]


def new_error(kind: type[BaseException], args: list[Any]) -> BaseException:
    """Make an exception; a constructor that does not accept these arguments is bypassed."""
    if kind in TYPES:
        try:
            return kind(*args)
        except TypeError:
            pass
    error = kind.__new__(kind, *args)
    BaseException.__setattr__(error, "args", tuple(args))
    return error
