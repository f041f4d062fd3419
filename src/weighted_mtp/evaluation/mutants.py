"""Reference solutions with one small mistake each, to test that a harness detects mistakes."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator

from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.micro_tasks.mutations import mutations


def mutants(problem: Problem, count: int, seed: int = 0) -> list[str]:
    """Return up to `count` different completions, each the reference with one syntax node changed.

    The list is empty if the reference is missing or is not Python, or contains a `while` (most of
    its mutants never end). For a HumanEval problem only the body changes, so that the result is a
    completion as a model writes it; the list is empty if the instruction lacks the function head.
    """
    if problem.canonical is None:
        return []
    try:
        found = sorted(set(_all(problem, problem.canonical)))
    except (SyntaxError, LookupError):
        return []
    return random.Random(f"{seed}/{problem.task_id}").sample(found, min(count, len(found)))


def _all(problem: Problem, canonical: str) -> Iterator[str]:
    head, source = _source(problem, canonical)
    same = ast.unparse(ast.parse(source)) + "\n"
    for mutation in mutations("", source):
        changed = mutation.source()
        if changed != same and changed.startswith(head):
            yield changed[len(head) :]


def _source(problem: Problem, canonical: str) -> tuple[str, str]:
    """Return the function's head line as `ast.unparse` writes it, and a source to change."""
    if problem.style != "completion":
        return "", canonical
    tree = ast.parse(problem.instruction)
    heads = [
        f"def {node.name}({ast.unparse(node.args)}):\n"
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point
    ]
    head = heads[-1]  # an IndexError if there is none
    return head, head + canonical
