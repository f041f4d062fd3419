"""`weighted-mtp evaluate`: judge programs by running them, written by a checkpoint or given."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain, zip_longest

from weighted_mtp.analysis.html_report import ProgramCard, Report, Table, write
from weighted_mtp.cli.decoding_options import check_heads, decoding_options
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.evaluation.prompts import TEMPLATE
from weighted_mtp.evaluation.result_files import Attempt
from weighted_mtp.evaluation.scores import parse_ks
from weighted_mtp.pipelines.evaluating import (
    EvaluationRequest,
    EvaluationResult,
    decoding_figures,
    evaluate,
)

FAILURES_SHOWN = 200
_STATUSES = {
    "passed": "every test passed",
    "failed": "a test failed, or the output was wrong",
    "error": "an exception, or not Python",
    "timeout": "ran out of time",
    "killed": "out of memory, or ended by a signal",
    "exited": "exited before the tests ended",
    "too_long": "never written: the prompt does not fit the model",
}


def run(args: argparse.Namespace) -> int:
    """Evaluate, write a page, and print the figures."""
    options = decoding_options(args)
    ks = None
    if args.k is not None:
        ks = parse_ks(args.k, None if args.completions else args.n_samples)
    given = {**vars(args), **vars(options), "ks": ks}
    names = [field.name for field in fields(EvaluationRequest)]
    request = EvaluationRequest(**{name: given[name] for name in names}).resolved()
    if not request.micro and not args.allow_code_execution:
        raise UserError(
            f"--dataset {args.dataset} runs programs that a model, or somebody else, wrote on this "
            "machine: in a sandbox, but one that leaves files to their permissions; if that is "
            "fine here, add --allow-code-execution"
        )
    if args.path is not None:
        check_heads(args, find_model(args.path))
    result = evaluate(request)
    page = result.output / "failures.html"
    write(failures_page(result), page)
    show(result, (2 if request.micro else 0) if args.show is None else args.show)
    print(f"every program and verdict: {request.programs_file}   failures: {page}")
    return 0


def show(result: EvaluationResult, examples: int) -> None:
    """Print some programs, the table by family, and the figures."""
    tasks = _instructions(result)
    for passed in (True, False):
        for attempt in [a for a in result.attempts if a.passed == passed][:examples]:
            program = attempt.completion.rstrip()
            print(f"# {tasks[attempt.task_id]}\n{program}\n# → {_verdict(attempt)}\n")
    if result.request.micro:
        overall = (result.pass_at_1 or 0.0, len(result.scores.problems))
        print(f"{'family':<16}{'pass@1':>8}{'problems':>10}")
        for family, (score, count) in {**result.by_family, "all": overall}.items():
            print(f"{family:<16}{score:>8.1%}{count:>10}")
    for name, value, _ in figures(result):
        print(f"{name}: {value}")
    if result.decoding:
        print(decoding_figures.line(result.decoding))


def figures(result: EvaluationResult) -> list[tuple[str, str, str]]:
    """Return (name, figure, meaning)."""
    scores, benchmark, prompting = result.scores, result.benchmark, result.prompting
    judged = f"{len(scores.problems)} of {benchmark.total}"
    if benchmark.left_out:
        judged += f", {len(benchmark.left_out)} left out"
    style = prompting.style
    asked = (
        "prompt",
        f"template {prompting.template}" if style == TEMPLATE else style,
        "how the problems were presented",
    )
    lines = [
        ("data set", benchmark.name, "what was evaluated"),
        ("problems", judged, "evaluated, of all in the data set"),
        *([] if result.request.completions else [asked]),
        ("programs", f"{len(result.attempts):,}", "one or more for each problem"),
    ]
    for k, interval in scores.pass_at.items():
        meaning = (
            f"probability that one of {k} programs is right" if k > 1 else "programs that are right"
        )
        lines.append((f"pass@{k}", str(interval), f"{meaning}; 95 % interval over problems"))
    return lines + [
        (status, f"{count:,}", _STATUSES.get(status, ""))
        for status, count in scores.statuses.items()
    ]


def failures_page(result: EvaluationResult) -> Report:
    """Return a page with the figures and programs that failed, first one for every problem."""
    failed = [attempt for attempt in result.attempts if not attempt.passed]
    shown = spread(failed)[:FAILURES_SHOWN]
    tasks = _instructions(result)
    notes = []
    if len(shown) < len(failed):
        notes.append(f"{len(shown)} of {len(failed)} failures are shown; attempts.jsonl has all.")
    rows = [(task, str(n), str(c)) for task, (n, c) in result.scores.problems.items() if c < n]
    tables = [Table("Problems with failures", ("problem", "programs", "right"), rows)]
    if result.by_family:
        families = [(name, f"{s:.1%}", str(n)) for name, (s, n) in result.by_family.items()]
        tables.insert(0, Table("pass@1 by family", ("family", "pass@1", "problems"), families))
    decoding = decoding_figures.table(result.decoding) if result.decoding else []
    return Report(
        title=f"{result.benchmark.name}: failures",
        summary=figures(result) + decoding,
        tables=tables,
        programs=[
            ProgramCard(
                f"{attempt.task_id}, program {attempt.sample + 1}\n{tasks[attempt.task_id]}",
                attempt.solution,
                _verdict(attempt),
                attempt.passed,
            )
            for attempt in shown
        ],
        notes=notes,
    )


def spread(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Order attempts: the first of every problem, then the second of every problem, and so on."""
    by_problem: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_problem.setdefault(attempt.task_id, []).append(attempt)
    rounds = zip_longest(*by_problem.values())
    return [attempt for attempt in chain.from_iterable(rounds) if attempt is not None]


def _instructions(result: EvaluationResult) -> dict[str, str]:
    return {problem.task_id: problem.instruction for problem in result.benchmark.problems}


def _verdict(attempt: Attempt) -> str:
    if attempt.passed:
        return "passes its tests"
    return ": ".join(part for part in (attempt.status, attempt.detail) if part)
