"""The process a program runs in: it runs the source, then does what the tests ask of it.

Everything here is in the program's reach, and nothing here is worth reaching: neither a test nor
an expected answer is ever in this process, and what it reports about itself can only be a failure.
"""

from __future__ import annotations

import _thread
import ast
import atexit
import builtins
import copy
import gc
import importlib
import io
import operator
import os
import posix
import resource
import sys
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from weighted_mtp.evaluation.sandbox.claims import blind, claim
from weighted_mtp.evaluation.sandbox.files import PROGRAM, WORK
from weighted_mtp.evaluation.sandbox.side import Side
from weighted_mtp.evaluation.sandbox.wire import Line

RunCode = Callable[[types.CodeType, dict[str, Any]], None]
MODULE = "program"
"""Name of the module where it is judged by tests: `__main__` is that of a script only."""


def _special(name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a special method as an operator does: it is looked up on the class."""
    if name in _BUILTIN:
        return _BUILTIN[name](value, *args, **kwargs)
    return getattr(type(value), name)(value, *args, **kwargs)


_BUILTIN: dict[str, Callable[..., Any]] = {
    "__len__": len, "__bool__": bool, "__hash__": hash, "__str__": str, "__repr__": repr,
    "__format__": format, "__next__": next, "__dir__": dir,
}  # fmt: skip


def _equal(one: Any, other: Any) -> bool:
    """Whether two objects are equal, and the comparison sees a difference where there is one."""
    return (one == other) is True and not blind(one)


def _wait(awaitable: Any) -> Any:
    """Run something that can be awaited to its end."""
    asyncio = importlib.import_module("asyncio")
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
        asyncio.set_event_loop(_loop)

    async def wait() -> Any:
        return await awaitable

    return _loop.run_until_complete(wait())


_loop: Any = None

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "special": _special,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "iter": iter,
    "equal": _equal,
    "isinstance": isinstance,
    "claim": claim,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "await": _wait,
}


class ProgramSide(Side):
    """Answers requests about the objects of the program."""

    forgets = True

    def __init__(self, line: Line) -> None:
        super().__init__(line, first=1)
        self.space: dict[str, Any] = {}
        self._printed: tuple[io.StringIO | None, io.StringIO | None] = (None, None)
        self._replaced: dict[str, Any] = {}

    def run(self, source: str, main: bool, run_code: RunCode) -> dict[str, Any]:
        """Run the source; the reply says whether it succeeded."""
        name = "__main__" if main else MODULE
        module = types.ModuleType(name)
        own = types.ModuleType("builtins")  # what the program does to these reaches no one else
        own.__dict__.update(vars(builtins), exit=sys.exit, quit=sys.exit)
        path = os.path.join(os.getcwd(), PROGRAM)
        module.__dict__.update({"__builtins__": own, "__file__": path})
        sys.modules.update({"__main__": module, name: module, "builtins": own})
        sys.argv, sys.orig_argv = [path], [path]
        self.space = module.__dict__
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(source)
            os.mkdir(WORK)  # an empty one
            os.chdir(WORK)
            sys.path.insert(0, os.getcwd())
            code = compile(source, path, "exec", dont_inherit=True)
            run_code(code, self.space)
        except BaseException as error:
            return self.failure(error, whole=not main)
        return {"value": path}

    def serve(self) -> None:
        """Answer requests until the tests end."""
        while True:
            self._line.send(self.answer(self._line.receive()))

    def write(self, message: dict[str, Any], light: bool = False, **values: Any) -> dict[str, Any]:
        """Add to a message values, changes, and what was printed where the tests look at it."""
        for place, stream in enumerate(self._printed):
            if stream is not None and (text := stream.getvalue()):
                message.setdefault("printed", ["", ""])[place] = text
                stream.seek(0)
                stream.truncate()
        return super().write(message, light, **values)

    def perform(self, do: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Perform one operation."""
        if do == "name":
            return (True, self.space[args[0]]) if args[0] in self.space else (False, None)
        if do == "defined":
            return [name for name in args[0] if name in self.space]
        if do == "streams":
            return self._streams(*args)
        return _OPERATIONS[do](*args, **kwargs)

    def standard(self, module: str, name: str) -> Any:
        """A function of the standard library, which the tests hand over by name."""
        return operator.attrgetter(name)(importlib.import_module(module))

    def shows(self, mirror: Any) -> bool:
        """Whether an operator may be shown a value: the tests are believed."""
        return True

    def equals(self, mirror: Any, other: Any) -> bool:
        """Whether an object of the tests equals this."""
        return self.ask("special", "__eq__", mirror, other) is True

    def contains(self, mirror: Any, value: Any) -> bool:
        """Whether an object of the tests contains this."""
        return self.ask("special", "__contains__", mirror, value) is True

    def as_number(self, mirror: Any) -> Any:
        """The number that an object of the tests stands for."""
        return None

    def _streams(self, out: bool, err: bool, readline: Any, functions: dict[str, Any]) -> None:
        """Print to where the tests look, and read what they give."""
        self._printed = (io.StringIO() if out else None, io.StringIO() if err else None)
        sys.stdout = self._printed[0] or sys.__stdout__
        sys.stderr = self._printed[1] or sys.__stderr__
        sys.stdin = sys.__stdin__ if readline is None else _Reader(readline)
        names = vars(sys.modules["builtins"])
        names.update(self._replaced)
        self._replaced = {name: names[name] for name in functions}
        names.update(functions)


class _Reader(io.TextIOBase):
    """Standard input as the tests have replaced it."""

    def __init__(self, readline: Callable[[], str]) -> None:
        self._readline = readline

    def readable(self) -> bool:
        return True

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return self._readline()

    def read(self, size: int | None = -1) -> str:
        return "".join(iter(self._readline, ""))


def _allow_big_stacks() -> None:
    """Let a thread have a stack of any usual size: reserved memory is not used memory."""
    set_size = _thread.stack_size

    def stack_size(size: int = 0) -> int:
        with suppress(OSError, ValueError):
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            if size > 1 << 20 and soft != resource.RLIM_INFINITY:
                resource.setrlimit(resource.RLIMIT_AS, (min(soft + size, hard), hard))
        return set_size(size)

    _thread.stack_size = threading.stack_size = stack_size


def _guard_exit(line: Line, source: str) -> None:
    """Have a script that leaves by `os._exit(0)` say whether it was done.

    It is not while an exception goes through a `finally`, nor while the main thread is at work.
    """
    leave = os._exit

    def _exit(status: int) -> NoReturn:
        if status == 0:
            done = not _in_finally(source, sys._getframe(1)) and _main_thread_rests()
            failed = {"raised": ["SystemExit"], "text": "", "code": 1}
            with suppress(BaseException):
                line.send({"value": None} if done else failed)
        leave(status)

    os._exit = posix._exit = _exit


def _in_finally(source: str, frame: types.FrameType | None) -> bool:
    """Whether a caller is in the `finally` of a statement that an exception has left."""
    if sys.exc_info()[1] is None:
        return False
    blocks = [
        (node.finalbody[0].lineno, node.finalbody[-1].end_lineno or 0)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Try) and node.finalbody
    ]
    while frame is not None:
        own = os.path.basename(frame.f_code.co_filename) == PROGRAM
        if own and any(first <= frame.f_lineno <= last for first, last in blocks):
            return True
        frame = frame.f_back
    return False


def _main_thread_rests() -> bool:
    """Whether this is the main thread, or that waits for another to end."""
    main = threading.main_thread()
    frame = sys._current_frames().get(main.ident or 0)
    waits = frame is not None and frame.f_code.co_filename == threading.__file__
    return threading.current_thread() is main or waits


def play_program(line: Line, run_code: RunCode) -> int:
    """Run this process from start to end; return its exit status."""
    task = line.receive()
    _allow_big_stacks()
    side = ProgramSide(line)
    if task["script"]:
        _guard_exit(line, task["source"])
    reply = side.run(task["source"], task["main"], run_code)
    failed = "raised" in reply and reply.get("code") != 0
    if not task["script"]:
        line.send(reply)
        side.serve()
    if failed:  # is told first: nothing that follows may hide it
        line.send(reply)
    _finish(side.space)
    if not failed:
        line.send({"value": None})
    return 1 if failed else 0


def _finish(space: dict[str, Any]) -> None:
    """End a script as Python does: wait for threads, call exit functions, flush."""

    def flush() -> None:
        for stream in (sys.stdout, sys.__stdout__):
            if stream is not None:
                with suppress(BaseException):
                    stream.flush()

    def drop() -> None:
        for name in [name for name in space if name[:2] != "__"]:
            space[name] = None  # files close, and `__del__` runs
        gc.collect()
        for thing in gc.get_objects():
            if isinstance(thing, io.TextIOWrapper | io.BufferedWriter):
                with suppress(BaseException):
                    thing.flush()

    actions: list[Callable[[], Any]] = [
        getattr(threading, "_shutdown"),  # noqa: B009  (typed nowhere)
        getattr(atexit, "_run_exitfuncs"),  # noqa: B009
        flush,
        drop,
        flush,
    ]
    for action in actions:
        with suppress(BaseException):  # the interpreter would only print it
            action()
