"""Sources of completions to evaluate: a model, a file, reference solutions, mutants of them.

A source yields candidates problem by problem, without those that are done already, so that an
interrupted evaluation resumes.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighted_mtp.core.choices import MICRO
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.data.datasets import file_digest, refuse_half_pairs
from weighted_mtp.decoding import Completion
from weighted_mtp.evaluation.benchmarks import Benchmark, Problem, read_records
from weighted_mtp.evaluation.completions import written_text
from weighted_mtp.evaluation.extraction import cut, opens_a_block
from weighted_mtp.evaluation.mutants import mutants
from weighted_mtp.evaluation.prompts import TEMPLATE, Prompting
from weighted_mtp.pipelines.evaluating.request import CANONICAL, MUTANTS, EvaluationRequest
from weighted_mtp.pipelines.evaluating.writer import (
    ModelWriter,
    model_identity,
    row_seed,
    sampling_identity,
)

_log = get_logger(__name__)
Key = tuple[str, int]


@dataclass(frozen=True)
class Candidate:
    """A completion to judge.

    Attributes:
        sample: its number among the samples of the problem, from 0.
        text: what follows the prompt; if `whole`, a complete program.
        refused: why there is no text; counts as a failure.
        logprob: see `Attempt`.
    """

    problem: Problem
    sample: int
    text: str
    whole: bool = False
    refused: str = ""
    logprob: float | None = None

    @property
    def key(self) -> Key:
        """task_id and sample number."""
        return self.problem.task_id, self.sample


class GivenCompletions:
    """Completions from a file, or made from reference solutions.

    Attributes:
        identity: settings that must be equal for an evaluation to resume.
        samples: number of candidates by task_id, without problems that have none.
        together: candidates that come at a time.
    """

    def __init__(self, candidates: Sequence[Candidate], identity: Mapping[str, Any]) -> None:
        self._candidates, self.identity = candidates, dict(identity)
        self.samples: dict[str, int] = {}
        self.together = 1
        for candidate in candidates:
            task_id = candidate.problem.task_id
            self.samples[task_id] = self.samples.get(task_id, 0) + 1

    def candidates(self, done: Container[Key]) -> Iterator[Candidate]:
        """Yield all candidates that are not done, in order."""
        return (candidate for candidate in self._candidates if candidate.key not in done)

    def figures(self) -> None:
        """Nothing was decoded."""


def open_source(
    request: EvaluationRequest, benchmark: Benchmark, prompting: Prompting
) -> CompletionSource:
    """Open the source that a resolved request names.

    Raises:
        UserError: the checkpoint, its tokenizer or the file cannot be used.
    """
    if request.completions is None:
        return ModelCompletions(request, benchmark, prompting)
    if request.completions in (CANONICAL, MUTANTS):
        return reference_completions(
            request.completions, benchmark, request.n_samples, request.sampling.seed
        )
    if request.n_samples != 1:
        raise UserError("--n-samples: with --completions FILE, the file sets the number of samples")
    return read_completions(Path(request.completions), benchmark, request.partial)


def read_completions(path: Path, benchmark: Benchmark, partial: bool = False) -> GivenCompletions:
    """Read a JSONL file in EvalPlus's format: `task_id`, and `completion` or `solution`.

    A completion follows the prompt; a solution is a whole program, and is used if a line has both.
    Neither is cut at stop strings. The case of a task_id does not matter (`Mbpp/601`).

    Args:
        partial: accept a file that lacks problems.

    Raises:
        UserError: the file cannot be read, a line has another format, or a problem is missing.
    """
    problems = {problem.task_id.lower(): problem for problem in benchmark.problems}
    counts: dict[str, int] = {}
    candidates = []
    for where, record in read_records(path):
        problem, text, whole = _given(record, where, problems, benchmark)
        sample = counts.get(problem.task_id, 0)
        counts[problem.task_id] = sample + 1
        candidates.append(Candidate(problem, sample, text, whole))
    missing = [p.task_id for p in benchmark.problems if p.task_id not in counts]
    if missing and (not partial or not candidates):
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{path}: no completion for {len(missing)} of {len(benchmark.problems)} problems "
            f"({named}); add --partial to judge only the others"
        )
    order = {problem.task_id: place for place, problem in enumerate(benchmark.problems)}
    candidates.sort(key=lambda c: (order[c.problem.task_id], c.sample))
    return GivenCompletions(candidates, {"completions": file_digest(path)})


def _given(
    record: Mapping[str, Any],
    where: str,
    problems: Mapping[str, Problem],
    benchmark: Benchmark,
) -> tuple[Problem, str, bool]:
    """Return the problem, its text, and whether that is a whole program."""
    task_id = record.get("task_id")
    problem = problems.get(task_id.lower()) if isinstance(task_id, str) else None
    if problem is None:
        raise UserError(
            f"{where}: {benchmark.name} has no problem {task_id!r:.60} among the "
            f"{len(benchmark.problems)} that are evaluated"
        )
    whole = record.get("solution") is not None  # as in EvalPlus, it wins over `completion`
    field = "solution" if whole else "completion"
    text = record.get(field)
    if not isinstance(text, str):
        raise UserError(f"{where}: needs the field 'completion' or 'solution' with text")
    refuse_half_pairs({field: text}, where)
    return problem, text, whole


def reference_completions(
    kind: str, benchmark: Benchmark, n_samples: int, seed: int
) -> GivenCompletions:
    """Make completions of the reference solutions: unchanged, or with one mistake each.

    Raises:
        UserError: the data set has no reference solutions.
    """
    candidates = []
    for problem in benchmark.problems:
        if kind == MUTANTS:
            texts = mutants(problem, n_samples, seed)
        else:
            texts = [problem.canonical] * n_samples if problem.canonical is not None else []
        candidates += [Candidate(problem, sample, text) for sample, text in enumerate(texts)]
    if not candidates:
        raise UserError(f"{benchmark.name}: its problems come without reference solutions")
    without = len(benchmark.problems) - len({c.problem.task_id for c in candidates})
    if without:
        _log.warning("problems without a %s completion: %d", kind, without)
    return GivenCompletions(candidates, {"completions": kind, "n_samples": n_samples, "seed": seed})


class ModelCompletions:
    """Completions that a model writes, `batch_size` at a time.

    Each has a seed of its own (`row_seed`): neither the batch size nor an interruption changes a
    text. The attributes are those of `GivenCompletions`.
    """

    def __init__(
        self, request: EvaluationRequest, benchmark: Benchmark, prompting: Prompting
    ) -> None:
        assert request.path is not None
        assert request.max_new_tokens is not None  # the request is resolved
        assert request.batch_size is not None
        self._writer = writer = ModelWriter(
            request.path,
            request.device,
            request.sampling,
            request.max_new_tokens,
            request.dtype,
            request.speculation,
        )
        self.identity = {
            "model": model_identity(request.path),
            "tokenizer": writer.tokenizer.fingerprint,
            "sampling": sampling_identity(request.sampling, writer.speculation, writer.figures.k),
            "max_new_tokens": request.max_new_tokens,
            "stops": list(request.stops),
            "dtype": request.dtype,
            "n_samples": request.n_samples,
        }
        self.together, self._logprobs = request.batch_size, request.logprobs
        self._own_stops, self._stops = request.stops, (*prompting.stops, *request.stops)
        self._plain, self._micro = prompting.style != TEMPLATE, benchmark.name == MICRO
        self._prompts = {p.task_id: writer.encode(prompting.render(p)) for p in benchmark.problems}
        self.samples = {problem.task_id: request.n_samples for problem in benchmark.problems}
        shortest, room = min(map(len, self._prompts.values())), writer.longest_prompt
        if shortest > room:
            raise UserError(
                f"no prompt fits: the shortest has {shortest} tokens, the model's positions leave "
                f"{max(0, room)} beside the new tokens; lower --max-new-tokens"
            )
        fits = [p for p in benchmark.problems if len(self._prompts[p.task_id]) <= room]
        self._too_long = [p for p in benchmark.problems if len(self._prompts[p.task_id]) > room]
        self._asked = [(problem, n) for problem in fits for n in range(request.n_samples)]
        if self._too_long:
            _log.warning(
                "prompts longer than %d tokens, which count as failed: %d",
                room,
                len(self._too_long),
            )

    def candidates(self, done: Container[Key]) -> Iterator[Candidate]:
        """Write all candidates that are not done, in order."""
        for problem in self._too_long:
            tokens = len(self._prompts[problem.task_id])
            for sample in range(self.samples[problem.task_id]):
                candidate = Candidate(problem, sample, "", refused=f"a prompt of {tokens} tokens")
                if candidate.key not in done:
                    yield candidate
        missing = [(p, sample) for p, sample in self._asked if (p.task_id, sample) not in done]
        for start in range(0, len(missing), self.together):
            batch = missing[start : start + self.together]
            for (problem, sample), written in zip(batch, self._written(batch), strict=True):
                text, logprobs = written
                logprob = sum(logprobs) if self._logprobs else None
                yield Candidate(problem, sample, text, logprob=logprob)

    def figures(self) -> dict[str, Any] | None:
        """Cost of decoding (`DecodingFigures.record`); None if nothing was decoded."""
        return self._writer.figures.record() if self._writer.figures.texts else None

    def _written(self, batch: Sequence[tuple[Problem, int]]) -> list[tuple[str, Sequence[float]]]:
        """Write the text of each, up to a stop string, with the log-probabilities of its tokens.

        A plain completion that opens a Markdown block before it has answered, and was stopped, is
        written again without the prompt's stop strings: inside a fence they have no meaning.
        """
        if self._micro:  # as every version so far, whatever the tokenizer
            return [(c.text, c.logprobs) for c in self._completions(batch, self._stops)]
        texts, blocks = self._continued(batch, self._stops)
        again = [place for place, block in enumerate(blocks) if block and self._plain]
        if again:
            whole, _ = self._continued([batch[place] for place in again], self._own_stops)
            for place, text in zip(again, whole, strict=True):
                texts[place] = text
        return texts

    def _continued(
        self, batch: Sequence[tuple[Problem, int]], stops: Sequence[str]
    ) -> tuple[list[tuple[str, Sequence[float]]], list[bool]]:
        """Return each text up to a stop string, and whether that string cut off a block."""
        texts: list[tuple[str, Sequence[float]]] = []
        blocks: list[bool] = []
        written = self._completions(batch, stops)
        for (problem, _), completion in zip(batch, written, strict=True):
            prompt = self._prompts[problem.task_id]
            whole = written_text(self._writer.tokenizer, prompt, completion.tokens)
            text = cut(whole, stops)
            if (
                text != completion.text
            ):  # a tokenizer that decodes a whole and its parts differently
                _log.warning("%s: the decoded text differs from the stopped one", problem.task_id)
            texts.append((text, completion.logprobs))
            blocks.append(completion.finish == "stop" and opens_a_block(problem, whole))
        return texts, blocks

    def _completions(
        self, batch: Sequence[tuple[Problem, int]], stops: Sequence[str]
    ) -> list[Completion]:
        prompts = [self._prompts[problem.task_id] for problem, _ in batch]
        seeds = [row_seed(problem.task_id, sample) for problem, sample in batch]
        return self._writer.write(prompts, seeds, stops, self._logprobs)


CompletionSource = GivenCompletions | ModelCompletions
