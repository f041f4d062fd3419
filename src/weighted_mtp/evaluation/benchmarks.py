"""Problems to evaluate on: micro tasks, and HumanEval, MBPP and CodeContests as `weighted-mtp
prepare` reads them.

Every problem is loaded; those that cannot be judged are listed in `Benchmark.left_out`.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weighted_mtp.core.choices import BENCHMARKS, MICRO
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import open_regular
from weighted_mtp.data.datasets import read_lines, refuse_half_pairs, unreadable
from weighted_mtp.data.prepare.inputs import open_input
from weighted_mtp.data.prepare.reading import decode
from weighted_mtp.data.prepare.source import BadRecordError
from weighted_mtp.data.prepare.sources import SOURCES
from weighted_mtp.data.prepare.work import Job, convert_unit
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import Family, Split, generate

MICRO_SPLITS: tuple[Split, ...] = ("test", "compositions", "train")
STYLES = ("completion", "asserts", "stdio")
CASE_KINDS = ("public", "private", "generated")
ALL_SPLITS = "all"


@dataclass(frozen=True)
class Problem:
    """One problem of any data set (a line of `problems.SPLIT.jsonl`).

    Attributes:
        style: `completion` (the answer continues the instruction), `asserts` (the answer is the
            program), or `stdio` (a program that reads and prints).
        instruction, input: as in the training rows.
        tests: statements run after the program.
        setup: code that runs before the tests.
        cases: for `stdio`, pairs of input and expected output.
        entry_point: the function that the tests call, "" if there is none.
        canonical: the reference answer, None if there is none.
    """

    task_id: str
    style: str
    instruction: str
    input: str = ""
    tests: tuple[str, ...] = ()
    setup: str = ""
    cases: tuple[tuple[str, str], ...] = ()
    entry_point: str = ""
    canonical: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """A data set to evaluate on.

    Attributes:
        name: `micro`, or one of `BENCHMARKS`.
        problems: in the order of the data set.
        left_out: task_id and reason of problems that cannot be judged.
        total: number of problems before `first` selected some.
    """

    name: str
    problems: tuple[Problem, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    total: int = 0

    @property
    def digest(self) -> str:
        """A hash of all problems."""
        text = json.dumps([asdict(problem) for problem in self.problems])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def first(self, count: int | None) -> Benchmark:
        """Keep the first `count` problems; None keeps all."""
        return Benchmark(self.name, self.problems[:count], self.left_out, self.total)


def micro_benchmark(count: int, seed: int, split: Split, families: Sequence[Family]) -> Benchmark:
    """Draw micro tasks; those of every split but `train` no training has seen.

    Raises:
        UserError: the families have fewer problems.
    """
    with Sandbox() as judge:
        rows = generate(count, seed, judge, split, families=families)
    problems = [
        Problem(
            task_id=row["task_id"],
            style="asserts",
            instruction=row["instruction"],
            input=row["input"],
            tests=tuple(row["metadata"]["tests"]),
            entry_point=row["metadata"]["entry_point"],
            canonical=row["output"],
        )
        for row in rows
    ]
    return Benchmark(MICRO, tuple(problems), total=len(problems))


def load_benchmark(
    name: str, problems: Path | None = None, source: str | None = None, split: str | None = None
) -> Benchmark:
    """Read every problem of a data set.

    Args:
        problems: a file `problems.SPLIT.jsonl` written by `weighted-mtp prepare`.
        source: instead, what `prepare --source` takes; None is the file shipped with the package
            if there is one (HumanEval).
        split: of a source: `test` by default, `all` for every split.

    Raises:
        UserError: the data set, file or split does not exist, or a record cannot be used.
    """
    if name not in BENCHMARKS:
        raise UserError(f"unknown data set {name!r}: choose one of {', '.join(BENCHMARKS)}")
    if problems is not None and (source is not None or split is not None):
        raise UserError("--problems is one file: --source and --split do not go with it")
    if problems is None and source is None and SOURCES[name].bundled is None:
        raise UserError(
            f"{name}: give --problems FILE (problems.SPLIT.jsonl, which `weighted-mtp prepare "
            f"{name}` writes) or --source PATH (the published files)"
        )
    found = read_records(problems) if problems else _of_source(name, source, split or "test")
    kept: dict[str, Problem] = {}
    left_out = []
    for where, record in found:
        problem = _problem(record, where)
        if name == "mbpp" and not problem.tests:
            raise UserError(
                f"{where}: {problem.task_id!r:.60} is of the style {problem.style!r}, and MBPP's "
                "prompts show statements as tests: the file belongs to another --dataset"
            )
        refuse_half_pairs(asdict(problem), where)
        if problem.task_id in kept:
            raise UserError(f"{where}: the task_id {problem.task_id!r} is given twice")
        reason = _unjudgeable(record, problem)
        if reason is None:
            kept[problem.task_id] = problem
        else:
            left_out.append((problem.task_id, reason))
    if not kept:
        raise UserError(f"{problems or source or name}: contains no problem that can be judged")
    return Benchmark(name, tuple(kept.values()), tuple(left_out), len(kept))


Found = Iterator[tuple[str, Mapping[str, Any]]]


def read_records(path: Path) -> Found:
    """Read a JSONL file: (place for messages, record) of every line.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        with open_regular(path) as file:
            for number, line in read_lines(file, path):
                where = f"{path}, line {number}"
                try:
                    yield where, decode(line, {})
                except BadRecordError as error:
                    raise UserError(f"{where}: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _of_source(name: str, source: str | None, split: str) -> Found:
    """Read every problem of one split of a published data set."""
    read = open_input(SOURCES[name], source, None, None, None, {})
    others: dict[str, int] = {}
    found = False
    for task in read.tasks(read.plan(), ()):
        for converted in convert_unit(Job(name), task):
            if converted.rejection is not None:
                where, reason = converted.rejection.place, converted.rejection.reason
                raise UserError(f"{where}: {reason}")
            assert converted.outcome is not None
            if converted.outcome.problem is None:
                continue
            if split not in (ALL_SPLITS, converted.split):
                others[converted.split] = others.get(converted.split, 0) + 1
                continue
            found = True
            yield f"{read.name}", converted.outcome.problem
    if not found:
        there = (
            ", ".join(f"{name} ({count})" for name, count in sorted(others.items())) or "nothing"
        )
        raise UserError(
            f"{read.name}: no problem of the split {split!r}; there is {there}: choose with "
            f"--split, or --split {ALL_SPLITS}"
        )


def _problem(record: Mapping[str, Any], where: str) -> Problem:
    """Convert a record.

    Raises:
        UserError: a field is missing or has the wrong type.
    """
    style = _text(record, "style", where)
    if style not in STYLES:
        raise UserError(f"{where}: the field 'style' should be one of {', '.join(STYLES)}")
    tests = record.get("tests")
    texts: tuple[str, ...] = ()
    cases: tuple[tuple[str, str], ...] = ()
    if style == "stdio":
        cases = tuple(_cases(tests, where))
    elif isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        texts = tuple(tests)
    else:
        raise UserError(f"{where}: the field 'tests' should be a list of statements")
    if texts and not _can_fail(texts):
        raise UserError(
            f"{where}: {record.get('task_id')!r:.60} has no tests: nothing in the field 'tests' "
            "can fail, so every program would pass; give it assertions, or leave the problem out"
        )
    return Problem(
        task_id=_text(record, "task_id", where),
        style=style,
        instruction=_text(record, "instruction", where),
        input=_text(record, "input", where, ""),
        tests=texts,
        setup=_text(record, "test_setup_code", where, ""),
        cases=cases,
        entry_point=_text(record, "entry_point", where, ""),
        canonical=_text(record, "canonical_solution", where, "") or None,
    )


def _cases(tests: Any, where: str) -> Iterable[tuple[str, str]]:
    """Pairs of input and expected output, public tests first."""
    complaint = (
        f"{where}: the field 'tests' should contain public, private and generated pairs of input "
        "and output"
    )
    if not isinstance(tests, dict):
        raise UserError(complaint)
    for kind in CASE_KINDS:
        pairs = tests.get(kind) or []
        if not isinstance(pairs, list):
            raise UserError(complaint)
        for pair in pairs:
            values = (pair.get("input"), pair.get("output")) if isinstance(pair, dict) else ()
            if len(values) != 2 or not all(isinstance(value, str) for value in values):
                raise UserError(complaint)
            yield str(values[0]), str(values[1])


def _text(record: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = record.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        state = "is missing" if value is None else "should be text"
        raise UserError(f"{where}: the field {name!r} {state}; `weighted-mtp prepare` writes it")
    return value


def _unjudgeable(record: Mapping[str, Any], problem: Problem) -> str | None:
    """Say why no program can be judged on this problem; None if it can."""
    if record.get("input_file") or record.get("output_file"):
        return "reads or writes files in place of standard input and output"
    if problem.style == "stdio" and not any(printed.strip() for _, printed in problem.cases):
        return "has no tests"
    return None


def _can_fail(tests: Sequence[str]) -> bool:
    """Whether the tests that run assert or raise anything; True if they are not Python: such tests
    always fail."""
    try:
        tree = ast.parse("\n".join(tests))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    runs = [node for node in tree.body if not isinstance(node, definitions)]
    if any(map(_checks, _nodes(runs))):
        return True
    called = any(isinstance(node, ast.Call) for node in _nodes(runs))
    return called and any(map(_checks, ast.walk(tree)))


def _nodes(statements: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    return (node for statement in statements for node in ast.walk(statement))


def _checks(node: ast.AST) -> bool:
    """Whether a node can fail a test: an `assert` that may be false, `raise`, or a call of
    `assertEqual`, `fail`, `exit` and the like."""
    if isinstance(node, ast.Assert):  # `assert (condition, message)` is always true
        named = any(isinstance(part, ast.Name) for part in ast.walk(node.test))
        return named and not isinstance(node.test, ast.Tuple)
    if isinstance(node, ast.Call):
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        return any(word in str(name).lower() for word in ("assert", "fail", "exit"))
    return isinstance(node, ast.Raise)
