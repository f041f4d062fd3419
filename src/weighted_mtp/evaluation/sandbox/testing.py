"""The process in which the tests run: the program's names are mirrors of objects elsewhere.

Here a verdict is reached, so no code of the program ever runs here. What its functions return
arrives as plain data and is compared by this interpreter. An object of the program's own kind
stays with the program, behind a mirror (`mirror.py`): the tests may call it, read it, walk
it, and compare it with another such object. Plain data it equals only if it names that value
itself, without being shown what is expected; a class whose name the tests use as that of a class is
what they test, and its operators may be shown their values.
"""

from __future__ import annotations

import builtins
import importlib
import linecache
import sys
import types
from collections.abc import Callable
from typing import Any

from weighted_mtp.evaluation.sandbox.checks import (
    FILE,
    HELPER,
    KEEP,
    Checks,
    ask_helper,
    both,
    decoys,
    keep,
    python_first,
)
from weighted_mtp.evaluation.sandbox.mirror import RemoteType, is_mirror, number_of
from weighted_mtp.evaluation.sandbox.rights import (
    do_for_program,
    may_be_handed_over,
    standard_name,
)
from weighted_mtp.evaluation.sandbox.side import Side
from weighted_mtp.evaluation.sandbox.wire import GoneError, Line

MAX_DETAIL = 300
RunCode = Callable[[types.CodeType, dict[str, Any]], None]
_STREAMS = (sys.stdout, sys.stderr, sys.stdin)
_REPLACED = ("input", "print", "open")


class TestsSide(Side):
    """Asks the program's process, and answers what that may ask of the tests' own objects."""

    def __init__(self, line: Line, tests: Checks | None = None) -> None:
        super().__init__(line, first=2)
        self.tests = tests
        self.gone: GoneError | None = None
        self._trusted: set[int] = set()
        self._claims: dict[tuple[int, str], tuple[Any, ...]] = {}
        self._told: tuple[Any, ...] = (*_STREAMS, {})

    def start(self, source: str, main: bool) -> None:
        """Run the source in the other process; raise what it raised."""
        try:
            self._line.send({"source": source, "script": False, "main": main})
            path = self.result(self.receive())
        except GoneError as error:
            self.gone = error
            raise
        if isinstance(path, str) and path.endswith(
            "/program.py"
        ):  # for `inspect`, which finds no such file here
            linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)

    def name(self, name: str) -> tuple[bool, Any]:
        """Whether the program has a global of this name, and its value."""
        found = self.ask("name", name)
        if type(found) is not tuple or len(found) != 2:
            raise self._forged()
        known, value = found
        named = self.tests is not None and name in self.tests.classes and name[:1].isupper()
        if named and isinstance(value, RemoteType):
            self._trusted.add(number_of(value))
        return known is True, value

    def ask(self, do: str, *args: Any, **kwargs: Any) -> Any:
        """Request an operation from the program."""
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
        target = args[1] if do == "special" else args[0]
        if id(target) not in self._mine_ids:
            raise TypeError("this is not an object of the tests")
        return do_for_program(do, target, args, kwargs)

    def refer(self, value: Any) -> list[Any]:
        """Encode an object of the tests, if the program may have it."""
        if (name := standard_name(value)) is not None:
            return ["standard", *name]
        if not may_be_handed_over(value):
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


class Names(dict[str, Any]):
    """The globals of the tests: their own, then Python's, then the program's.

    A program that defines `abs` or `math` does not thereby decide what a test means by it, unless
    the tests use no other name of the program: then that one is what they test, if it is not
    applied to another such. A function that is named like a module is called, not read.
    """

    def __init__(self, side: TestsSide, tests: Checks) -> None:
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
        if self._tests.guarded:
            is_error = isinstance(python, type) and issubclass(python, BaseException)
            if is_error and isinstance(value, RemoteType):
                return value
            called = callable(python) and callable(value) and name not in self._tests.values
            return python_first(python, value) if called else python
        if any(self._side.name(inner)[0] for inner in self._tests.wraps.get(name, ())):
            return both(python, value) if callable(value) else python
        return value


def play_tests(line: Line, task: dict[str, Any], run_code: RunCode) -> tuple[str, str]:
    """Run the source in the other process, then the tests; return status and detail.

    The status "gone" says that the program's process ended early; its parent knows why.
    """
    tests = task["tests"]
    sys.argv, sys.orig_argv = [FILE], [FILE]
    side = TestsSide(line)
    try:
        side.start(task["source"], main=not tests)
        side.tests = Checks(tests)
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
    """Return the line that says what failed: the test, or the exception."""
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
