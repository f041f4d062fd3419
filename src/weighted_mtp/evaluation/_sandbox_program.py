"""The process a program runs in: it runs the source, then does what the tests ask of it.

Everything here is in the program's reach, and nothing here is worth reaching: neither a test nor
an expected answer is ever in this process, and what it reports about itself can only be a failure.
"""

from __future__ import annotations

import atexit
import builtins
import operator
import sys
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from weighted_mtp.evaluation._sandbox_wire import GoneError, Line, decode, describe_error, encode

RunCode = Callable[[types.CodeType, dict[str, Any]], None]
_MUTABLE = ("list", "dict", "set", "deque", "bytearray", "Counter", "OrderedDict")


class _Flushes(Protocol):
    def flush(self) -> None: ...


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "isinstance": isinstance,
    "enter": lambda manager: manager.__enter__(),
    "exit": lambda manager: manager.__exit__(None, None, None),
    **{
        name: getattr(operator, name)
        for name in ("getitem", "setitem", "delitem", "eq", "ne", "lt", "le", "gt", "ge")
    },
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "neg")},
}


class ProgramSide:
    """Holds the objects that the tests know by number, and answers requests about them."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self.space: dict[str, Any] = {}

    def run(self, source: str, run_code: RunCode) -> dict[str, Any]:
        """Run the source as `__main__`; the reply says whether it got through."""
        module = types.ModuleType("__main__")
        own = types.ModuleType("builtins")  # what the program does to these reaches no one else
        own.__dict__.update(vars(builtins), exit=sys.exit, quit=sys.exit)
        module.__dict__["__builtins__"] = own
        sys.modules.update({"__main__": module, "builtins": own})
        self.space = module.__dict__
        try:
            code = compile(source, "<program>", "exec", dont_inherit=True)
            run_code(code, self.space)
        except BaseException as error:
            return self._failure(error)
        return {"value": None}

    def serve(self) -> None:
        """Answer until the tests have no more questions."""
        while True:
            self._line.send(self._answer(self._line.receive()))

    def ask_tests(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the tests, answering what it asks in turn."""
        self._line.send(
            {
                "callback": number,
                "args": [self._encode(arg) for arg in args],
                "kwargs": {name: self._encode(value) for name, value in kwargs.items()},
            }
        )
        while True:
            message = self._line.receive()
            if "do" not in message:
                break
            self._line.send(self._answer(message))
        if "raised" in message:
            raise RuntimeError(f"{message['raised'][0]}: {message['text']}")
        return self._decode(message["value"])

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if request["do"] == "name":
                name = request["name"]
                known = name in self.space
                return {"value": self._encode(self.space[name])} if known else {"absent": True}
            args = [self._decode(data) for data in request["args"]]
            kwargs = {name: self._decode(data) for name, data in request["kwargs"].items()}
            reply: dict[str, Any]
            try:
                reply = {"value": self._encode(_OPERATIONS[request["do"]](*args, **kwargs))}
            except GoneError:
                raise
            except BaseException as error:
                reply = self._failure(error)
            for given, now in ((request["args"], args), (request["kwargs"], kwargs)):
                if changed := self._changes(given, now):
                    reply["changed args" if now is args else "changed kwargs"] = changed
            return reply
        except GoneError:
            raise
        except BaseException as error:
            return self._failure(error)

    def _changes(self, given: Any, now: Any) -> list[Any]:
        """Arguments changed in place, as pairs of place and new value."""
        places = range(len(given)) if isinstance(given, list) else list(given)
        changed = []
        for place in places:
            data = given[place]
            if type(data) is list and data[0] in (*_MUTABLE, "tuple"):
                after = self._encode(now[place])
                if after != data:
                    changed.append([place, after])
        return changed

    def _failure(self, error: BaseException) -> dict[str, Any]:
        message = describe_error(error)
        if isinstance(error, SystemExit):
            code = error.code
            message["code"] = 0 if code is None else code if isinstance(code, int) else 1
        return message

    def _encode(self, value: Any) -> Any:
        return encode(value, self._reference)

    def _decode(self, data: Any) -> Any:
        return decode(data, self._dereference)

    def _reference(self, value: Any) -> list[Any]:
        if isinstance(value, TestFunction):
            return ["yours", value.number]
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        module = value.__name__ if isinstance(value, types.ModuleType) else None
        return ["mine", number, module]

    def _dereference(self, data: list[Any]) -> Any:
        if data[0] == "yours":
            return self._objects[data[1]]
        return TestFunction(self, data[1])


class TestFunction:
    """A function of the tests, handed to the program as an argument."""

    def __init__(self, side: ProgramSide, number: int) -> None:
        self._side = side
        self.number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._side.ask_tests(self.number, args, kwargs)


def play_program(line: Line, run_code: RunCode) -> int:
    """The whole life of this process; return its exit status."""
    task = line.receive()
    side = ProgramSide(line)
    reply = side.run(task["source"], run_code)
    failed = "raised" in reply and reply.get("code") != 0
    if task["script"] and not failed:  # a failure is told first: nothing that follows may hide it
        _finish(sys.stdout, sys.__stdout__)
    line.send(reply)
    if not task["script"]:
        side.serve()
    return 1 if failed else 0


def _finish(*streams: _Flushes | None) -> None:
    """What Python does at the end of a script: wait for threads, call exit functions, flush."""
    actions: list[Callable[[], Any]] = [
        getattr(threading, "_shutdown"),  # noqa: B009  (typed nowhere)
        getattr(atexit, "_run_exitfuncs"),  # noqa: B009
        *(stream.flush for stream in streams if stream is not None),
    ]
    for action in actions:
        with suppress(BaseException):  # the interpreter would only print it
            action()
