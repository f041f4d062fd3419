"""Reading Python solutions: does it parse, and is it the same program as another?

Nothing is executed: `ast.parse` only.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

LONGEST = 100_000
"""Characters of a solution; judges take 64 KB. A parser may need minutes, or crash, for more."""


class NotPythonError(Exception):
    """A source that is no Python 3; `reason` is the word it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def unix_lines(source: str) -> str:
    """Line ends as "\\n"."""
    return source.replace("\r\n", "\n").replace("\r", "\n")


def parse(source: str) -> ast.Module:
    """The syntax tree.

    Raises:
        NotPythonError: `empty`, `oversized` (over `LONGEST`), `not_python3` (a syntax error; Python
            2 most often) or `unparsable` (nested deeper than the parser can follow, or not text).
    """
    if not source.strip():
        raise NotPythonError("empty")
    if len(source) > LONGEST:
        raise NotPythonError("oversized")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a string: not ours to complain about
        try:
            return ast.parse(source)
        except SyntaxError as error:
            raise NotPythonError("unparsable" if "\0" in source else "not_python3") from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise NotPythonError("unparsable") from error


def digest(source: str) -> bytes:
    """Equal for sources with the same syntax tree: comments, blank lines, line ends, spacing,
    quotes and needless parentheses do not count; names, docstrings and order do.

    Raises:
        NotPythonError: as for `parse`.
    """
    try:
        shape = "\n".join(_shape(parse(source)))
    except (ValueError, MemoryError) as error:  # a number with too many digits to write
        raise NotPythonError("unparsable") from error
    return blake2b(shape.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _shape(tree: ast.AST) -> Iterator[str]:
    """What `ast.dump` says, without its recursion: 300 times `elif` are nested 300 deep."""
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.AST):
            yield node.__class__.__name__
            stack += [getattr(node, name, None) for name in node._fields]
        elif isinstance(node, list):
            yield f"[{len(node)}"
            stack += node
        else:
            yield repr(node)


def tidy(source: str) -> str:
    """Unix line ends, no spaces at line ends, none of either at the end; but spaces inside a string
    stay, so that the program remains what it was.

    Raises:
        NotPythonError: as for `parse`.
    """
    plain = unix_lines(source).rstrip(" \t\n")
    stripped = re.sub(r"[ \t]+$", "", plain, flags=re.MULTILINE)
    try:
        return stripped if digest(stripped) == digest(plain) else plain
    except NotPythonError:  # a backslash and a space, perhaps
        digest(plain)
        return plain


def functions(tree: ast.Module) -> list[str]:
    """Names of the functions defined at the top."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds)]


def called(tree: ast.Module) -> list[str]:
    """Names that are called anywhere, as `name(…)`."""
    return [
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
