"""The process the tests run in: the program's names stand for objects in another process.

Here a verdict is reached, so no code of the program ever runs here. What its functions return
arrives as plain data and is compared by this interpreter. An object of the program's own kind
stays with the program, behind a `Remote`: the tests may call it, read it, walk it, and compare it
with another such object, but to plain data it is equal never, or it could claim to equal anything.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from weighted_mtp.evaluation._sandbox_remote import Remote, refresh
from weighted_mtp.evaluation._sandbox_wire import (
    GoneError,
    Line,
    decode,
    describe_error,
    encode,
    rebuild_error,
)

MAX_DETAIL = 300
RunCode = Callable[[types.CodeType, dict[str, Any]], None]


class TestsSide:
    """Asks the program's process, and answers when it calls a function it was given."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._functions: list[Callable[..., Any]] = []
        self._remotes: dict[int, Remote] = {}
        self.gone: GoneError | None = None

    def start(self, source: str) -> None:
        """Have the source run; raises what it raised."""
        self._read({"source": source, "script": False})

    def name(self, name: str) -> tuple[bool, Any]:
        """Whether the program has a global of this name, and its value."""
        reply = self._exchange({"do": "name", "name": name})
        if "absent" in reply:
            return False, None
        return True, self._value(reply)

    def ask(self, do: str, *args: Any, **kwargs: Any) -> Any:
        """Have an operation done over there; arguments it changed in place change here too."""
        message = {
            "do": do,
            "args": [self._encode(arg) for arg in args],
            "kwargs": {name: self._encode(value) for name, value in kwargs.items()},
        }
        reply = self._exchange(message)
        for key, given in (("changed args", args), ("changed kwargs", kwargs)):
            for place, data in self._changes(reply, key):
                refresh(given[place], self._decode(data))
        return self._value(reply)

    def _read(self, message: dict[str, Any]) -> Any:
        return self._value(self._exchange(message))

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.gone is not None:
            raise self.gone
        try:
            self._line.send(message)
            while "callback" in (reply := self._line.receive()):
                self._line.send(self._call_back(reply))
        except GoneError as error:
            self.gone = error
            raise
        return reply

    def _call_back(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            function = self._functions[request["callback"]]
            args = [self._decode(data) for data in request["args"]]
            kwargs = {name: self._decode(data) for name, data in request["kwargs"].items()}
        except (LookupError, TypeError, AttributeError):
            raise self._forged() from None
        try:
            return {"value": self._encode(function(*args, **kwargs))}
        except Exception as error:
            return describe_error(error)

    def _changes(self, reply: dict[str, Any], key: str) -> list[tuple[Any, Any]]:
        try:
            return [(place, data) for place, data in reply.get(key, ())]
        except (TypeError, ValueError):
            raise self._forged() from None

    def _value(self, reply: dict[str, Any]) -> Any:
        if "raised" in reply:
            raise self._error(reply)
        if "value" not in reply:
            raise self._forged()
        return self._decode(reply["value"])

    def _error(self, reply: dict[str, Any]) -> BaseException:
        try:
            return rebuild_error(reply)
        except (LookupError, TypeError, GoneError):
            raise self._forged() from None

    def _forged(self) -> GoneError:
        self.gone = GoneError("an answer that is not the sandbox's own")
        return self.gone

    def _encode(self, value: Any) -> Any:
        return encode(value, self._reference)

    def _decode(self, data: Any) -> Any:
        try:
            return decode(data, self._dereference)
        except GoneError:
            raise self._forged() from None

    def _reference(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["yours", value._number]
        if not callable(value):
            kind = type(value).__name__
            raise TypeError(f"a {kind} of the tests cannot be handed to the program")
        self._functions.append(value)
        return ["mine", len(self._functions) - 1]

    def _dereference(self, data: list[Any]) -> Any:
        if data[0] == "yours":
            return self._functions[data[1]]
        if data[0] != "mine" or type(data[1]) is not int:
            raise ValueError("no reference")
        if data[2] in sys.stdlib_module_names:
            return importlib.import_module(data[2])
        return self._remotes.setdefault(data[1], Remote(self.ask, data[1]))


class Names(dict[str, Any]):
    """The globals of the tests: their own, then Python's, then the program's.

    A program that defines `abs` or `math` does not thereby decide what a test means by it, unless
    the tests use no other name of the program: then that one is what they test.
    """

    def __init__(self, side: TestsSide, tree: ast.AST) -> None:
        super().__init__(__name__="__main__")
        self._side = side
        self._guarded = any(name not in _PYTHONS for name in free_names(tree))

    def __missing__(self, name: str) -> Any:
        if name[:2] == "__" or (self._guarded and name in vars(builtins)):
            raise KeyError(name)
        known, value = self._side.name(name)
        if not known:
            raise KeyError(name)
        if self._guarded and name in sys.stdlib_module_names:
            return importlib.import_module(name)
        return value


_PYTHONS = frozenset(vars(builtins)) | sys.stdlib_module_names


def free_names(tree: ast.AST) -> set[str]:
    """Names that the tests use and nowhere define."""
    used: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return used - defined


def play_tests(line: Line, source: str, tests: str, run_code: RunCode) -> tuple[str, str]:
    """Have the source run, then run the tests; return status and detail.

    The status "gone" says that the program's process ended too early: why, its parent knows.
    """
    side = TestsSide(line)
    try:
        side.start(source)
        tree = ast.parse(tests, "<tests>")
        checks = compile(tree, "<tests>", "exec", dont_inherit=True)
        run_code(checks, Names(side, tree))
    except BaseException as error:
        status, detail = outcome(error, tests)
    else:
        status, detail = "passed", ""
    if side.gone is not None:  # whatever the tests made of it
        return "gone", str(side.gone)
    return status, detail


def outcome(error: BaseException, tests: str) -> tuple[str, str]:
    """Status and detail of tests, or of a source, that ended with this exception."""
    if isinstance(error, AssertionError):
        return "failed", last_line(error, tests)
    if isinstance(error, MemoryError):
        return "killed", "MemoryError"
    if isinstance(error, SystemExit):
        return "exited", "SystemExit"
    return "error", last_line(error, tests)


def last_line(error: BaseException, tests: str) -> str:
    """The one line that says what went wrong: the failing test, or the exception."""
    message = (f"{type(error).__name__}: {error}".rstrip(": ").splitlines() or [""])[0]
    frame, line = error.__traceback__, 0
    while frame is not None:
        line = frame.tb_lineno if frame.tb_frame.f_code.co_filename == "<tests>" else line
        frame = frame.tb_next
    where = tests.splitlines()[line - 1].strip() if line else ""
    return (f"{message} in: {where}" if where else message)[:MAX_DETAIL]
