"""Compare objects of the program with what the tests expect.

An object may define what it equals. If it were shown the expected answer it could say "yes" to
anything, so it has to name, beforehand, the one value of each kind that it equals, and the tests
compare that. If both are objects of the program, one is also compared with a copy whose attributes
all differ: a comparison that does not notice the difference is not believed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from weighted_mtp.evaluation.sandbox.mirror import DATA, is_mirror

_CLAIMED = {kind.__name__: kind for kind in DATA} | {"NoneType": type(None)}


class _Odd:
    """Equal to nothing else."""


def claim(value: Any, name: str) -> tuple[Any, ...]:
    """Return the value of a kind that an object claims to equal, if any."""
    kind = _CLAIMED[name]
    for candidate in _candidates(value, kind):
        if type(candidate) is kind and not is_mirror(value):
            try:
                if (value == candidate) is True:
                    return (candidate,)
            except Exception:  # not with this one
                continue
    return ()


def _candidates(value: Any, kind: Any) -> Iterator[Any]:
    """Yield values that an object may equal: its conversions and its contents."""
    if kind is type(None):
        yield None
    if isinstance(value, kind):
        yield _try(kind.__new__, kind, value) if kind in (int, float, str) else _try(kind, value)
    attributes = [*_attributes(value).values()]
    yield from attributes
    if kind in (int, float, complex):
        yield from (_try(kind, attribute) for attribute in attributes)
    if kind in (tuple, list):
        yield kind(attributes)
    if kind is dict:
        yield {name.lstrip("_"): item for name, item in _attributes(value).items()}
    yield _try(kind, value)
    if kind is str:
        yield _try(repr, value)


def _try(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except Exception:
        return _Odd()


def _attributes(value: Any) -> dict[str, Any]:
    names = list(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def blind(value: Any) -> bool:
    """Whether a comparison says that an object equals one with all attributes changed."""
    kind: Any = type(value)
    if kind.__eq__ is object.__eq__ or kind in DATA:
        return False
    try:
        names = _attributes(value)
        twin = copy.copy(value)
        for name in names:
            object.__setattr__(twin, name, _Odd())
        return bool(names) and twin is not value and (value == twin) is True
    except Exception:
        return False
