"""Small, plausible mistakes made in a correct program's syntax tree.

An operator looks at one node and yields the nodes a mistaken programmer might have written there.
None knows whether the result is wrong: that is for a judge to say.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Operator = Callable[[ast.AST], Iterator[ast.AST]]

OTHER_ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
}
OTHER_COMPARISONS: Mapping[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
}
OTHER_FUNCTIONS = {"min": "max", "max": "min", "sum": "len", "len": "sum", "any": "all"}
OTHER_CHARACTERS = dict(
    zip("abcdefghijklmnopqrstuvwxyz*", "bcdefghijklmnopqrstuvwxyza#", strict=True)
)
ORDER_MATTERS = (ast.Sub, ast.FloorDiv, ast.Mod, ast.Pow)
BLOCKS = ("body", "orelse")


def _changed(node: ast.AST, **fields: Any) -> ast.AST:
    """A shallow copy of a node with some fields replaced (`copy.copy` takes five times as long)."""
    twin = type(node).__new__(type(node))
    twin.__dict__.update(node.__dict__)
    twin.__dict__.update(fields)
    return twin


def swap_arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    """`a + b` for `a - b`, and the like."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OTHER_ARITHMETIC:
        yield _changed(node, op=OTHER_ARITHMETIC[type(node.op)]())


def off_by_one(node: ast.AST) -> Iterator[ast.AST]:
    """A constant one too large or too small."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield _changed(node, value=node.value + 1)
        if node.value > 0:
            yield _changed(node, value=node.value - 1)


def flip_comparison(node: ast.AST) -> Iterator[ast.AST]:
    """`<=` or `>` for `<`, and the like."""
    if isinstance(node, ast.Compare):
        for index, comparison in enumerate(node.ops):
            for other in OTHER_COMPARISONS.get(type(comparison), ()):
                yield _changed(node, ops=[*node.ops[:index], other(), *node.ops[index + 1 :]])


def swap_operands(node: ast.AST) -> Iterator[ast.AST]:
    """`b - a` for `a - b`, where the order matters."""
    if isinstance(node, ast.BinOp):
        texts = [x for x in (node.left, node.right) if isinstance(x, ast.Constant)]
        if isinstance(node.op, ORDER_MATTERS) or any(isinstance(x.value, str) for x in texts):
            yield _changed(node, left=node.right, right=node.left)


def swap_arguments(node: ast.AST) -> Iterator[ast.AST]:
    """`f(b, a)` for `f(a, b)`."""
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in ("min", "max"):
            first, second, *rest = node.args
            yield _changed(node, args=[second, first, *rest])


def drop_operand(node: ast.AST) -> Iterator[ast.AST]:
    """`a` or `b` for `a + b`, or for `a and b`."""
    if isinstance(node, ast.BinOp):
        yield node.left
        yield node.right
    if isinstance(node, ast.BoolOp):
        yield from node.values


def drop_statement(node: ast.AST) -> Iterator[ast.AST]:
    """A block without one of its statements, but for a function's last: too plain a mistake."""
    for name in BLOCKS:
        block = getattr(node, name, None)
        if isinstance(block, list) and len(block) > 1:
            for index in range(len(block) - isinstance(node, ast.FunctionDef)):
                yield _changed(node, **{name: block[:index] + block[index + 1 :]})


def negate_condition(node: ast.AST) -> Iterator[ast.AST]:
    """The other branch taken, the other elements kept."""
    if isinstance(node, (ast.If, ast.IfExp)):
        yield _changed(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.comprehension):
        for index, test in enumerate(node.ifs):
            tests = [*node.ifs[:index], ast.UnaryOp(ast.Not(), test), *node.ifs[index + 1 :]]
            yield _changed(node, ifs=tests)


def change_slice(node: ast.AST) -> Iterator[ast.AST]:
    """A slice with a bound missing, or its bounds one too far."""
    if isinstance(node, ast.Slice):
        for name in ("lower", "upper", "step"):
            bound = getattr(node, name)
            if bound is not None:
                yield _changed(node, **{name: None})
                if not isinstance(bound, ast.Constant):  # of those, off_by_one takes care
                    further = ast.BinOp(bound, ast.Add(), ast.Constant(1))
                    yield _changed(node, **{name: further})


def wrong_text(node: ast.AST) -> Iterator[ast.AST]:
    """A string with its last character missing, or another in its place."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        kept, last = node.value[:-1], node.value[-1]
        yield _changed(node, value=kept)
        yield _changed(node, value=kept + OTHER_CHARACTERS.get(last, "*"))


def swap_function(node: ast.AST) -> Iterator[ast.AST]:
    """`max` for `min`, and the like."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        other = OTHER_FUNCTIONS.get(node.func.id)
        if other is not None:
            yield _changed(node, func=ast.Name(other, ast.Load()))


def early_return(node: ast.AST) -> Iterator[ast.AST]:
    """A loop that returns in its first round what it should return after the last."""
    if isinstance(node, ast.FunctionDef) and len(node.body) >= 2:
        loop, last = node.body[-2:]
        if isinstance(loop, ast.For) and isinstance(last, ast.Return):
            yield _changed(node, body=[*node.body[:-2], _changed(loop, body=[*loop.body, last])])


def wrong_name(node: ast.AST) -> Iterator[ast.AST]:
    """One use of a function's variable replaced by another of its variables.

    What is looped over and what is appended to stays: a list that grows under its loop never ends.
    """
    if isinstance(node, ast.FunctionDef):
        own = dict.fromkeys(argument.arg for argument in node.args.args)
        used, kept = [], []
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                own[part.id] = None
            elif isinstance(part, ast.Name):
                used.append(part)
            elif isinstance(part, ast.For):
                kept.append(part.iter)
            elif isinstance(part, ast.Attribute):
                kept.append(part.value)
        for name in used:
            for other in own if name.id in own and name not in kept else ():
                if other != name.id:
                    yield _substitute(node, name, ast.Name(other, ast.Load()))


OPERATORS: Mapping[str, Operator] = {
    operator.__name__: operator
    for operator in (
        swap_arithmetic,
        off_by_one,
        flip_comparison,
        swap_operands,
        swap_arguments,
        drop_operand,
        drop_statement,
        negate_condition,
        change_slice,
        swap_function,
        wrong_text,
        early_return,
        wrong_name,
    )
}
"""Every mutation operator by name."""


@dataclass(frozen=True)
class Mutation:
    """One possible change of one program: cheap to list, written out on demand."""

    operator: str
    style: str
    tree: ast.Module
    node: ast.AST
    replacement: ast.AST

    def source(self) -> str:
        """The changed program, formatted as `family.normalise` does."""
        return ast.unparse(_substitute(self.tree, self.node, self.replacement)) + "\n"


def _substitute(tree: ast.AST, node: ast.AST, replacement: ast.AST) -> ast.AST:
    """A copy of a tree with one node replaced."""
    if tree is node:
        return replacement
    twin = _changed(tree)
    for name, value in ast.iter_fields(tree):
        if isinstance(value, ast.AST):
            setattr(twin, name, _substitute(value, node, replacement))
        elif isinstance(value, list):
            parts = [
                _substitute(x, node, replacement) if isinstance(x, ast.AST) else x for x in value
            ]
            setattr(twin, name, parts)
    return twin


def mutations(style: str, source: str) -> Iterator[Mutation]:
    """Every change the operators can make to a program.

    Programs with a `while` are left alone: many of their mutants never end, which costs a whole
    timeout each and makes the label depend on the machine.
    """
    tree = ast.parse(source)
    if any(isinstance(node, ast.While) for node in ast.walk(tree)):
        return
    for node in ast.walk(tree):
        for name, operator in OPERATORS.items():
            for replacement in operator(node):
                yield Mutation(name, style, tree, node, replacement)
