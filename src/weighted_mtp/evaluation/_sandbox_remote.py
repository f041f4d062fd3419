"""What the tests hold in place of an object of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Remote:
    """An object in the program's process."""

    __slots__ = ("_ask", "_number")

    def __init__(self, ask: Callable[..., Any], number: int) -> None:
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delattr", self, name)

    def __getitem__(self, place: Any) -> Any:
        return self._ask("getitem", self, place)

    def __setitem__(self, place: Any, value: Any) -> None:
        self._ask("setitem", self, place, value)

    def __delitem__(self, place: Any) -> None:
        self._ask("delitem", self, place)

    def __len__(self) -> int:
        length: int = self._ask("len", self)
        return length

    def __iter__(self) -> Iterator[Any]:
        walker = self._ask("iter", self)
        return walker if isinstance(walker, Remote) else iter(walker)

    def __next__(self) -> Any:
        return self._ask("next", self)

    def __contains__(self, value: Any) -> bool:
        return any(item is value or item == value for item in self)  # decided here, not there

    def __bool__(self) -> bool:
        return self._ask("bool", self) is True

    def __str__(self) -> str:
        return str(self._ask("str", self))

    def __repr__(self) -> str:
        return str(self._ask("repr", self))

    def __hash__(self) -> int:
        return hash(self._number)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._ask("isinstance", value, self) is True

    def __enter__(self) -> Any:
        return self._ask("enter", self)

    def __exit__(self, *error: object) -> None:
        self._ask("exit", self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._ask("eq", self, other) is True

    def __ne__(self, other: object) -> bool:
        return not isinstance(other, Remote) or self._ask("ne", self, other) is True


def _between_remotes(name: str) -> Callable[[Remote, Any], Any]:
    """An operator between two objects of the program; the tests' own data it is not shown."""

    def method(self: Remote, other: Any) -> Any:
        return self._ask(name, self, other) if isinstance(other, Remote) else NotImplemented

    return method


for _name in ("lt", "le", "gt", "ge", "add", "sub", "mul", "truediv"):
    setattr(Remote, f"__{_name}__", _between_remotes(_name))


def refresh(old: Any, new: Any) -> None:
    """Give a container the contents of another of its kind, keeping those inside it that stay."""
    if type(old) is not type(new):
        return
    if isinstance(old, list | tuple) and len(old) == len(new):
        for place, (before, after) in enumerate(zip(old, new, strict=True)):
            if type(before) is type(after) and isinstance(before, list | dict | set | tuple):
                refresh(before, after)
            elif isinstance(old, list):
                old[place] = after
    elif isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif hasattr(old, "extend") and hasattr(old, "clear"):  # a deque
        old.clear()
        old.extend(new)
