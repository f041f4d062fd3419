"""The process the tests run in: the program's names stand for objects in another process.

Here a verdict is reached, so no code of the program ever runs here. What its functions return
arrives as plain data and is compared by this interpreter. An object of the program's own kind
stays with the program, behind a mirror (`_sandbox_mirror`): the tests may call it, read it, walk
it, and compare it with another such object. Plain data it equals only if it names that value
itself, without being shown what is expected; a class whose name the tests use as that of a class is
what they test, and its operators may be shown their values.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import io
import linecache
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from weighted_mtp.evaluation._sandbox_checks import (
    FILE,
    HELPER,
    KEEP,
    Tests,
    ask_helper,
    both,
    decoys,
    keep,
    python_first,
)
from weighted_mtp.evaluation._sandbox_mirror import SPECIALS, RemoteType, is_mirror, number_of
from weighted_mtp.evaluation._sandbox_side import Side
from weighted_mtp.evaluation._sandbox_wire import GoneError, Line

MAX_DETAIL = 300
RunCode = Callable[[types.CodeType, dict[str, Any]], None]
_STREAMS = (sys.stdout, sys.stderr, sys.stdin)
_REPLACED = ("input", "print", "open")
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)
_OF_A_FUNCTION = {
    "__name__", "__qualname__", "__doc__", "__module__", "__defaults__", "__kwdefaults__",
    "__annotations__",
}  # fmt: skip
_OF_ITS_CODE = (
    "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_varnames", "co_flags", "co_name",
)  # fmt: skip


class _Code:
    """What a program may know of the code of a test's function: its parameters."""


class TestsSide(Side):
    """Asks the program's process, and answers what that may ask of the tests' own objects."""

    def __init__(self, line: Line, tests: Tests | None = None) -> None:
        super().__init__(line, first=2)
        self.tests = tests
        self.gone: GoneError | None = None
        self._trusted: set[int] = set()
        self._claims: dict[tuple[int, str], tuple[Any, ...]] = {}
        self._told: tuple[Any, ...] = (*_STREAMS, {})

    def start(self, source: str, main: bool) -> None:
        """Have the source run; raises what it raised."""
        try:
            self._line.send({"source": source, "script": False, "main": main})
            path = self.result(self.receive())
        except GoneError as error:
            self.gone = error
            raise
        if isinstance(path, str):  # for `inspect`, which finds no such file here
            linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)

    def name(self, name: str) -> tuple[bool, Any]:
        """Whether the program has a global of this name, and its value."""
        found = self.ask("name", name)
        if type(found) is not tuple or len(found) != 2:
            raise self._forged()
        known, value = found
        if isinstance(value, RemoteType) and self.tests and name in self.tests.classes:
            self._trusted.add(number_of(value))
        return known is True, value

    def ask(self, do: str, *args: Any, **kwargs: Any) -> Any:
        """Have an operation done by the program."""
        self._tell_streams()
        self._claims.clear()
        try:
            return super().ask(do, *args, **kwargs)
        except StopIteration as error:
            if (do == "special" and args[0] == "__next__") or self._expects_stop():
                raise
            raise RuntimeError("the program raised StopIteration") from error

    def exchange(
        self, message: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Send a request and wait for the reply."""
        if self.gone is not None:
            raise self.gone
        try:
            return super().exchange(message, args, kwargs)
        except GoneError as error:
            self.gone = error
            raise

    def receive(self) -> dict[str, Any]:
        """Wait for a message; show what was printed meanwhile."""
        message = super().receive()
        try:
            for stream, text in zip(
                (sys.stdout, sys.stderr), message.get("printed", ()), strict=False
            ):
                if text and stream is not None:
                    stream.write(text)
        except TypeError:
            raise self._forged() from None
        return message

    def result(self, reply: dict[str, Any]) -> Any:
        """The value of a reply; raises what the program raised."""
        try:
            return super().result(reply)
        except GoneError as error:
            self.gone = self.gone or error
            raise

    # --- comparing -------------------------------------------------------------------------------

    def shows(self, mirror: Any) -> bool:
        """Whether this is of a class that the tests name as one."""
        kinds = [kind for kind in type(mirror).__mro__ if isinstance(kind, RemoteType)]
        return any(kind.__dict__.get("_remote_number") in self._trusted for kind in kinds)

    def equals(self, mirror: Any, other: Any) -> bool:
        """Whether an object of the program equals a value."""
        if is_mirror(other):
            return self.ask("equal", mirror, other) is True
        claimed = self._claim(mirror, type(other).__name__)
        if claimed and type(claimed[0]) is type(other) and claimed[0] == other:
            return True
        if not self.shows(mirror):
            return False
        return self._believes(lambda value: self.ask("special", "__eq__", mirror, value), other)

    def contains(self, mirror: Any, value: Any) -> bool:
        """Whether an object that may be shown this value, or one of its own kind, contains it."""
        return self._believes(lambda v: self.ask("special", "__contains__", mirror, v), value)

    def as_number(self, mirror: Any) -> Any:
        """The number that an object says it equals."""
        for kind in ("int", "float", "Fraction", "Decimal", "complex"):
            claimed = self._claim(mirror, kind)
            if claimed and type(claimed[0]).__name__ == kind:
                return claimed[0]
        return None

    def _claim(self, mirror: Any, kind: str) -> tuple[Any, ...]:
        """What an object says it equals: one value of each kind, until something happens."""
        place = (number_of(mirror), kind)
        if place not in self._claims:
            claims = self._claims.copy()
            try:
                found = super().ask("claim", mirror, kind)
            except GoneError:
                raise
            except BaseException:
                found = ()
            self._claims = claims | {place: found if type(found) is tuple else ()}
        return self._claims[place]

    def _believes(self, ask: Callable[[Any], Any], value: Any) -> bool:
        """Whether the answer is yes, and not to everything else too."""
        if ask(value) is not True:
            return False
        if is_mirror(value):
            return True
        for other in decoys(value):
            try:
                if ask(other) is not True:
                    return True
            except Exception:
                return True
        return False

    # --- what the program may ask ----------------------------------------------------------------

    def perform(self, do: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Do one operation on an object of the tests that the program was given."""
        if do == "special":
            name, target, *rest = args
            if id(target) in self._mine_ids and name in SPECIALS and _is_open(target, walk=True):
                return getattr(type(target), name)(target, *rest, **kwargs)
        elif id(args[0]) in self._mine_ids:
            target, *rest = args
            if do == "call" and _may_be_called(target):
                return target(*rest, **kwargs)
            if do == "iter" and _is_open(target, walk=True):
                return iter(target)
            if do == "isinstance" or (do == "getattr" and isinstance(rest[0], str)):
                return self._read(do, target, *rest)
            if do in ("setattr", "delattr") and rest[0][:1] != "_" and _is_open(target):
                return {"setattr": setattr, "delattr": delattr}[do](target, *rest)
        raise TypeError(f"the tests do not allow {do!s:.20} on what they handed over")

    def _read(self, do: str, target: Any, *rest: Any) -> Any:
        if do == "isinstance":
            return isinstance(target, rest[0])
        name = rest[0]
        if isinstance(target, types.FunctionType):
            if name in _OF_A_FUNCTION:
                return getattr(target, name)
            if name == "__code__":
                code = _Code()
                vars(code).update({item: getattr(target.__code__, item) for item in _OF_ITS_CODE})
                return code
        elif name in ("__name__", "__qualname__", "__doc__") and callable(target):
            return getattr(target, name)
        elif name[:1] != "_" and _is_open(target):
            return getattr(target, name)
        elif inspect.isgenerator(target) and name in ("send", "close", "throw"):
            return getattr(target, name)
        raise AttributeError(f"{type(target).__name__!r} object has no attribute {name!r:.100}")

    def refer(self, value: Any) -> list[Any]:
        """Encode an object of the tests, if the program may have it."""
        if (name := _standard_name(value)) is not None:
            return ["standard", *name]
        if isinstance(value, type):
            allowed = value.__module__ == "__main__" or issubclass(value, BaseException)
        else:
            allowed = callable(value) or _is_open(value, walk=True)
            allowed = allowed or isinstance(value, BaseException)
        if not allowed:
            kind = type(value).__name__
            raise TypeError(f"a {kind} of the tests cannot be handed to the program")
        return super().refer(value)

    def standard(self, module: str, name: str) -> Any:
        """Refuse: no function of this process is the program's to choose."""
        raise ValueError("no value")

    # --- details ---------------------------------------------------------------------------------

    def _tell_streams(self) -> None:
        """Have the program print and read where the tests now do."""
        replaced = {
            name: function
            for name in _REPLACED
            if (function := getattr(builtins, name)) is not _PRISTINE[name]
        }
        now = (sys.stdout, sys.stderr, sys.stdin, replaced)
        if now == self._told:
            return
        self._told = now
        changed = [new is not old for new, old in zip(now, _STREAMS, strict=False)]
        readline = sys.stdin.readline if changed[2] else None
        super().ask("streams", changed[0], changed[1], readline, replaced)

    def _expects_stop(self) -> bool:
        """Whether a line of the tests that is now run expects a StopIteration."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and self.tests is not None:
            if frame.f_code.co_filename == FILE and self.tests.catches_stop(frame.f_lineno):
                return True
            frame = frame.f_back
        return False

    def _forged(self) -> GoneError:
        self.gone = GoneError("an answer that is not the sandbox's own")
        return self.gone


_PRISTINE = {name: getattr(builtins, name) for name in _REPLACED}


def _is_open(value: Any, walk: bool = False) -> bool:
    """Whether a program may use the public attributes of an object, or (`walk`) at least step
    through it."""
    kind = type(value)
    if kind.__module__ in ("__main__", "unittest.mock") or isinstance(value, _Code):
        return True
    if isinstance(value, io.StringIO | io.BytesIO):
        return True
    return walk and isinstance(value, Iterator)


def _may_be_called(value: Any) -> bool:
    if isinstance(value, type):
        return value.__module__ == "__main__"
    return callable(value)


def _standard_name(value: Any) -> tuple[str, str] | None:
    """Where a function or class of the standard library is found."""
    if not isinstance(value, (*_FUNCTIONS, type)) or isinstance(value, types.MethodType):
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
    return (module, name) if found is value and module != "__main__" else None


class Names(dict[str, Any]):
    """The globals of the tests: their own, then Python's, then the program's.

    A program that defines `abs` or `math` does not thereby decide what a test means by it, unless
    the tests use no other name of the program: then that one is what they test, if it is not
    applied to another such. A function that is named like a module is called, not read.
    """

    def __init__(self, side: TestsSide, tests: Tests) -> None:
        super().__init__({"__name__": "__main__", HELPER: ask_helper, KEEP: keep})
        self._side, self._tests = side, tests
        asked = [name for name in tests.free if name in vars(builtins)]
        self._shadowed = set(side.ask("defined", asked)) if asked else set()

    def __missing__(self, name: str) -> Any:
        if name[:2] == "__" or (name in vars(builtins) and name not in self._shadowed):
            raise KeyError(name)
        known, value = self._side.name(name)
        if not known:
            raise KeyError(name)
        if name in self._shadowed:
            return self._choose(name, vars(builtins)[name], value)
        if name in sys.stdlib_module_names and self._tests.guarded and name in self._tests.classes:
            return importlib.import_module(name)
        return value

    def _choose(self, name: str, python: Any, value: Any) -> Any:
        """What a name of Python's means that the program defines too."""
        is_type = isinstance(python, type)
        if self._tests.guarded:
            if is_type and issubclass(python, BaseException) and isinstance(value, RemoteType):
                return value
            if is_type or not callable(python) or not callable(value):
                return python
            return python_first(python, value)
        if any(self._side.name(inner)[0] for inner in self._tests.wraps.get(name, ())):
            return both(python, value) if callable(value) else python
        return value


def play_tests(line: Line, task: dict[str, Any], run_code: RunCode) -> tuple[str, str]:
    """Have the source run, then run the tests; return status and detail.

    The status "gone" says that the program's process ended too early: why, its parent knows.
    """
    tests = task["tests"]
    sys.argv, sys.orig_argv = [FILE], [FILE]
    side = TestsSide(line)
    try:
        side.start(task["source"], main=not tests)
        side.tests = Tests(tests)
        checks = compile(side.tests.tree, FILE, "exec", dont_inherit=True)
        run_code(checks, Names(side, side.tests))
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
    try:
        text = str(error)
    except Exception:  # the program's own, which may fail again
        text = ""
    message = (f"{type(error).__name__}: {text}".rstrip(": ").splitlines() or [""])[0]
    frame, line = error.__traceback__, 0
    while frame is not None:
        line = frame.tb_lineno if frame.tb_frame.f_code.co_filename == FILE else line
        frame = frame.tb_next
    where = tests.splitlines()[line - 1].strip() if line else ""
    return (f"{message} in: {where}" if where else message)[:MAX_DETAIL]
