"""`weighted-mtp evaluate --dataset humaneval|mbpp|codecontests`: tables and a page to read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain, zip_longest

from weighted_mtp.analysis.html_report import ProgramCard, Report, Table, write
from weighted_mtp.cli.decoding_options import DecodingOptions, check_heads
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import given_name, given_path
from weighted_mtp.evaluation.prompts import TEMPLATE
from weighted_mtp.evaluation.result_files import Attempt
from weighted_mtp.pipelines.evaluating import decoding_figures
from weighted_mtp.pipelines.evaluating.benchmark import (
    BenchmarkRequest,
    BenchmarkResult,
    run_benchmark,
)

FAILURES_SHOWN = 200
_STATUSES = {
    "passed": "every test passed",
    "failed": "a test failed, or the output was wrong",
    "error": "an exception, or no Python",
    "timeout": "no end in time",
    "killed": "out of memory, or ended by a signal",
    "exited": "left before the tests ended",
    "too_long": "never written: the prompt does not fit the model",
}


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for data sets from elsewhere."""
    group = parser.add_argument_group("humaneval, mbpp, codecontests")
    group.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="allow running generated programs on this machine, in a sandbox",
    )
    group.add_argument(
        "--problems", type=given_path, help="problems.SPLIT.jsonl written by prepare"
    )
    group.add_argument(
        "--source", type=given_name, metavar="PATH", help="the published files, as for prepare"
    )
    group.add_argument(
        "--prompt",
        metavar="STYLE",
        help="humaneval: completion, stripped; mbpp: 3-shot, 0-shot; codecontests: apps; any: "
        "template (default: the template of the run if it has one, else the published prompt)",
    )
    group.add_argument(
        "--completions",
        type=given_name,
        metavar="FILE",
        help="run these programs (task_id, and completion or solution) instead of a checkpoint's; "
        "or canonical, mutants: the reference solutions, unchanged or with one mistake each",
    )
    group.add_argument(
        "--partial", action="store_true", help="accept a FILE without some of the problems"
    )
    group.add_argument("--timeout", type=float, help="seconds a program may run (default 5)")
    group.add_argument("--workers", type=int, help="programs at a time (default: one per CPU core)")
    group.add_argument("--overwrite", action="store_true", help="restart instead of resuming")


def run_foreign(args: argparse.Namespace, options: DecodingOptions) -> int:
    """Evaluate and print; write the page."""
    if not args.allow_code_execution:
        raise UserError(
            f"--dataset {args.dataset} runs programs that a model, or somebody else, wrote on this "
            "machine: in a sandbox, but one that leaves files to their permissions; if that is "
            "fine here, add --allow-code-execution"
        )
    for name in ("timeout", "workers"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise UserError(f"--{name} must be above 0")
    if args.path is not None:
        check_heads(args, args.path)
    defaults = BenchmarkRequest(args.dataset)
    result = run_benchmark(
        BenchmarkRequest(
            args.dataset,
            output=args.output,
            path=args.path,
            completions=args.completions,
            problems=args.problems,
            source=args.source,
            split=args.split,
            n_problems=args.n_problems,
            n_samples=args.n_samples,
            ks=args.k,
            prompt=args.prompt,
            template=args.template,
            sampling=options.sampling,
            max_new_tokens=options.max_new_tokens or defaults.max_new_tokens,
            stops=options.stops,
            speculation=options.speculation,
            batch_size=args.batch_size or defaults.batch_size,
            device=args.device,
            dtype=args.dtype,
            timeout=args.timeout or defaults.timeout,
            workers=args.workers,
            overwrite=args.overwrite,
            partial=args.partial,
        )
    )
    page = result.output / "failures.html"
    write(failures_page(result), page)
    show_result(result)
    print(f"results: {result.output}   to read: {page}")
    return 0


def show_result(result: BenchmarkResult) -> None:
    """What was found, in a few lines."""
    for name, value, _ in summary(result):
        print(f"{name:<12}{value}")


def summary(result: BenchmarkResult) -> list[tuple[str, str, str]]:
    """(what, figure, what it means)."""
    scores, benchmark = result.scores, result.benchmark
    judged = f"{len(scores.problems)} of {benchmark.total}"
    if benchmark.left_out:
        judged += f", {len(benchmark.left_out)} left out"
    lines = [
        ("data set", benchmark.name, "what was evaluated"),
        ("problems", judged, "those evaluated, of those there are"),
        ("prompt", _prompt(result), "how the problems were put"),
        ("programs", str(len(result.attempts)), "one or more for each problem"),
    ]
    for k, interval in scores.pass_at.items():
        meaning = (
            f"chance that one of {k} programs is right" if k > 1 else "programs that are right"
        )
        lines.append((f"pass@{k}", str(interval), f"{meaning}; 95 % interval over problems"))
    lines += [
        (status, f"{count:,}", _STATUSES.get(status, ""))
        for status, count in scores.statuses.items()
    ]
    return lines + (decoding_figures.table(result.decoding) if result.decoding else [])


def _prompt(result: BenchmarkResult) -> str:
    prompting = result.prompting
    return f"template {prompting.template}" if prompting.style == TEMPLATE else prompting.style


def failures_page(result: BenchmarkResult) -> Report:
    """A page with the figures and programs that failed: first one of every problem."""
    failed = [attempt for attempt in result.attempts if not attempt.passed]
    shown = spread(failed)[:FAILURES_SHOWN]
    tasks = {problem.task_id: problem.instruction for problem in result.benchmark.problems}
    notes = []
    if len(shown) < len(failed):
        notes.append(f"{len(shown)} of {len(failed)} failures are shown; attempts.jsonl has all.")
    rows = [(task, str(n), str(c)) for task, (n, c) in result.scores.problems.items() if c < n]
    return Report(
        title=f"{result.benchmark.name}: what failed",
        summary=summary(result),
        tables=[Table("Problems with failures", ("problem", "programs", "right"), rows)],
        programs=[_card(attempt, tasks[attempt.task_id]) for attempt in shown],
        notes=notes,
    )


def spread(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The first of every problem, then the second of every problem, and so on."""
    by_problem: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_problem.setdefault(attempt.task_id, []).append(attempt)
    rounds = zip_longest(*by_problem.values())
    return [attempt for attempt in chain.from_iterable(rounds) if attempt is not None]


def _card(attempt: Attempt, instruction: str) -> ProgramCard:
    return ProgramCard(
        instruction=f"{attempt.task_id}, program {attempt.sample + 1}\n{instruction}",
        source=attempt.solution,
        verdict=": ".join(part for part in (attempt.status, attempt.detail) if part),
        passed=attempt.passed,
    )
