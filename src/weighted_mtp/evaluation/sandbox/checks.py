"""Derive from the text of the tests how they must be run.

A program may define names that tests use, raise what ends a loop, or change its arguments. Where
that would let a wrong program pass, the text of the tests decides what is meant, never the program.
"""

from __future__ import annotations

import ast
import builtins
import copy
import sys
from collections.abc import Callable
from typing import Any

from weighted_mtp.evaluation.sandbox.mirror import is_mirror

PYTHONS = frozenset(vars(builtins)) | sys.stdlib_module_names
HELPER, KEEP = "__sandbox_helper__", "__sandbox_keep__"
FILE = "<tests>"
PREDICATES = {"startswith", "endswith", "issubset", "issuperset", "isdisjoint"}
"""Methods that read and change nothing."""


class Checks:
    """Tests, parsed.

    Attributes:
        tree: what is run.
        guarded: whether they use a name of the program that is not a Python name: such a name of
            Python's then means Python's.
        wraps: Python's functions, with those of its names that are used in their arguments.
        classes: names that are used as classes are.
        values: names that are used for more than calling them.
    """

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text, FILE)
        nodes = list(ast.walk(self.tree))
        used, self.defined = _names(nodes)
        self.free = used - self.defined
        self.guarded = any(name not in PYTHONS for name in self.free)
        self.wraps: dict[str, set[str]] = {}
        self.classes: set[str] = set()
        self._catches: list[tuple[int, int]] = []
        made: dict[str, str] = {}
        self._parameters = {node.arg for node in nodes if isinstance(node, ast.arg)}
        for node in nodes:
            if not isinstance(node, ast.Name | ast.Constant | ast.expr_context):
                self._look_at(node, made)
        called = {id(n.func) for n in nodes if isinstance(n, ast.Call)}
        self.values = {n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in called}
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                self.classes.add(made.get(node.value.id, node.value.id))
        rewrite = _Rewrite(self)
        for node in nodes:
            for field in ("body", "orelse", "finalbody"):
                if isinstance(statements := getattr(node, field, None), list):
                    statements[:] = rewrite(statements)
        if rewrite.done:
            ast.fix_missing_locations(self.tree)

    def catches_stop(self, line: int) -> bool:
        """Whether this line of the tests expects a StopIteration."""
        return any(first <= line <= last for first, last in self._catches)

    def is_program(self, node: ast.AST, or_parameter: bool = False) -> bool:
        """Whether this calls a name that the tests leave to the program, or a function's parameter,
        which is how tests in a function are given what they test."""
        name = _called(node)
        if or_parameter and name in self._parameters:
            return True
        return name is not None and name in self.free and name not in PYTHONS

    def _look_at(self, node: ast.AST, made: dict[str, str]) -> None:
        if isinstance(node, ast.Call):
            name = _called(node)
            if name in ("isinstance", "issubclass") or (name and not self.guarded):
                inside = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                self.wraps.setdefault(name, set()).update(inside & PYTHONS - {name})
                self.classes |= inside if name in ("isinstance", "issubclass") else set()
        elif isinstance(node, ast.Attribute) and (name := _called(node.value)):
            self.classes.add(name)
        elif isinstance(node, ast.ExceptHandler) and node.type is not None:
            self.classes |= {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.Assign) and (name := _called(node.value)):
            made |= {n.id: name for n in node.targets if isinstance(n, ast.Name)}
        elif isinstance(node, ast.With):
            for item in node.items:
                if isinstance(item.optional_vars, ast.Name) and (
                    name := _called(item.context_expr)
                ):
                    made[item.optional_vars.id] = name
        elif isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add | ast.Sub):
            self.classes |= _class_operands(node)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            operands = [_class_operands(side) for side in sides if isinstance(side, ast.BinOp)]
            self.classes |= set().union(*operands) & {_called(side) for side in sides}
        self._look_for_stop(node)

    def _look_for_stop(self, node: ast.AST) -> None:
        """Note the lines where the tests expect a StopIteration."""
        if isinstance(node, ast.Try):
            where: list[Any] = [handler.type for handler in node.handlers if handler.type]
            last = node.body[-1].end_lineno or node.lineno
        elif isinstance(node, ast.With):
            where, last = list(node.items), node.end_lineno or node.lineno
        elif isinstance(node, ast.Call):
            where, last = list(node.args), node.end_lineno or node.lineno
        else:
            return
        if any(_mentions(part, "StopIteration") for part in where):
            self._catches.append((node.lineno, last))


class _Rewrite:
    """Rewrites assertions so that the program cannot influence them by helpers and arguments."""

    def __init__(self, tests: Checks) -> None:
        self._tests = tests
        self.done = False

    def __call__(self, statements: list[Any]) -> list[Any]:
        """Return the statements to run in place of these."""
        found: list[Any] = []
        for place, node in enumerate(statements):
            if isinstance(node, ast.Assert):
                found += self._before_assertion(node)
            elif isinstance(node, ast.Assign) and place + 1 < len(statements):
                found += self._before_result(node, statements[place + 1])
            found.append(node)
        return found

    def _before_assertion(self, node: ast.Assert) -> list[ast.stmt]:
        """Rewrite an assertion; return what comes before it."""
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            if isinstance(test.ops[0], ast.Eq):
                return self._keep(self._arguments(test.left), test, node)
        elif isinstance(test, ast.Call) and self._asks_helper(test):
            helper = ast.copy_location(ast.Name(HELPER, ast.Load()), test)
            call = ast.Call(helper, [test.func, *test.args], test.keywords)
            node.test = ast.copy_location(call, test)
            self.done = True
        return []

    def _before_result(self, node: ast.Assign, then: Any) -> list[ast.stmt]:
        """What comes before an assignment of a result, which the next statement compares."""
        arguments = self._arguments(node.value)
        target = node.targets[0]
        if not arguments or not isinstance(target, ast.Name) or not isinstance(then, ast.Assert):
            return []
        test = then.test
        if not isinstance(test, ast.Compare) or len(test.ops) > 1:
            return []
        compared = isinstance(test.ops[0], ast.Eq) and _mentions(test.left, target.id)
        return self._keep(arguments - {target.id}, test, node) if compared else []

    def _asks_helper(self, test: ast.Call) -> bool:
        """Whether the program decides here what is said of its own results."""
        if isinstance(test.func, ast.Attribute):
            return test.func.attr in PREDICATES
        if not self._tests.is_program(test):
            return False
        inner = [node for arg in test.args for node in ast.walk(arg)]
        return any(
            self._tests.is_program(node) and _called(node) != _called(test) for node in inner
        )

    def _keep(self, names: set[str], test: ast.Compare, node: ast.stmt) -> list[ast.stmt]:
        """What is expected of an argument is said of the argument as it was before the call."""
        statements: list[ast.stmt] = []
        right = test.comparators[0]
        for name in sorted(names):
            uses = [n for n in ast.walk(right) if isinstance(n, ast.Name) and n.id == name]
            length = sum(
                isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "len"
                for n in ast.walk(right)
                if _mentions(n, name)
            )
            calls = [n for n in ast.walk(test.left) if self._tests.is_program(n, or_parameter=True)]
            nested = len(calls) > 1
            if not uses or length or (right in uses and not nested):
                continue
            before = f"_sandbox_before_{name}"
            call = ast.Call(ast.Name(KEEP, ast.Load()), [ast.Name(name, ast.Load())], [])
            self.done = True
            statements.append(ast.Assign([ast.Name(before, ast.Store())], call))
            for use in uses:
                use.id = before
        return [ast.copy_location(statement, node) for statement in statements]

    def _arguments(self, left: ast.expr) -> set[str]:
        """Names of the tests that are handed to the program, as they are."""
        is_program = self._tests.is_program
        calls = [n for n in ast.walk(left) if isinstance(n, ast.Call) and is_program(n, True)]
        found = {arg.id for call in calls for arg in call.args if isinstance(arg, ast.Name)}
        return found & self._tests.defined


def _names(nodes: list[ast.AST]) -> tuple[set[str], set[str]]:
    """Names that the tests use, and names that they define."""
    used: set[str] = set()
    defined: set[str] = set()
    for node in nodes:
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
    return used, defined


def _called(node: ast.AST) -> str | None:
    """The name that an expression calls, None if it is something else."""
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return node.func.id if called else None  # type: ignore[attr-defined]  # it was looked at


def _mentions(tree: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))


def _class_operands(node: ast.BinOp) -> set[str]:
    """Operands that are calls of what looks like a class: no one subtracts what is expected so."""
    names = (_called(side) for side in (node.left, node.right))
    return {name for name in names if name and name[:1].isupper() and "_" not in name}


# --- while the tests run -------------------------------------------------------------------------


def keep(value: Any) -> Any:
    """A copy of an argument that the program may change."""
    return copy.deepcopy(value) if is_plain(value) else value


def is_plain(value: Any) -> bool:
    """Whether there is nothing of the program in a value."""
    if isinstance(value, dict):
        return all(is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_plain, value))
    return not is_mirror(value)


def ask_helper(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a helper that only the program has, and see that it does not say yes to anything."""
    if not is_mirror(function):
        return function(*args, **kwargs)
    given = [keep(arg) for arg in args]
    found = function(*args, **kwargs)
    if not found or not any(is_plain(arg) for arg in given):
        return found
    for place, arg in enumerate(given):
        for other in decoys(arg) if is_plain(arg) else ():
            trial = [keep(item) for item in given]
            trial[place] = other
            try:
                if not function(*trial, **kwargs):
                    return found
            except Exception:
                if other is not None:
                    return found
    raise AssertionError("the program's helper says yes to anything")


def both(python: Callable[..., Any], program: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Python's that the program defines too, applied to another: they must agree.

    Which of the two is tested, nothing says.
    """

    def function(*args: Any, **kwargs: Any) -> Any:
        found = python(*args, **kwargs)
        if program(*args, **kwargs) != found:
            raise AssertionError(f"the program's {python.__name__} is not Python's")
        return found

    return function


def python_first(python: Callable[..., Any], program: Any) -> Callable[..., Any]:
    """A function of Python's that the program defines too, where tests use other names of it.

    It is Python's, or a program could decide what its results are compared by, except for
    arguments that Python's does not take.
    """

    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            return python(*args, **kwargs)
        except TypeError:
            return program(*args, **kwargs)

    return function


def decoys(value: Any) -> list[Any]:
    """Values that are clearly others, of the same kind at first."""
    found: list[Any] = []
    if isinstance(value, bool):
        found = [not value]
    elif isinstance(value, int | float):
        found = [value + 1, value - 1, value + 1013, -value - 1, value * 2 + 1]
    elif isinstance(value, str):
        found = [value + "\0x", value[::-1] + "?", ""]
    elif isinstance(value, bytes):
        found = [value + b"\0x", b""]
    elif isinstance(value, list | tuple):
        changes = [[*value, *value[:1]], [*value[::-1], None], []]
        found = [type(value)(change) for change in changes]
    elif isinstance(value, dict):
        found = [{**value, "\0": None}, {}]
    elif isinstance(value, set | frozenset):
        found = [value | {"\0"}, type(value)()]
    return [other for other in found if other != value] + [None] * (value is not None)
