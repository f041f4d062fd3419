"""Where the completions of an evaluation come from: a model, a file, the references, mutants.

A source yields candidates problem by problem and may be asked for those alone that are missing, so
that an evaluation that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import open_regular
from weighted_mtp.core.logging import get_logger
from weighted_mtp.data.datasets import file_digest, read_lines, refuse_half_pairs, unreadable
from weighted_mtp.data.prepare.reading import decode
from weighted_mtp.data.prepare.source import BadRecordError
from weighted_mtp.evaluation.benchmarks import Benchmark, Problem
from weighted_mtp.evaluation.completions import written_text
from weighted_mtp.evaluation.extraction import cut, opens_a_block
from weighted_mtp.evaluation.mutants import mutants
from weighted_mtp.evaluation.prompts import TEMPLATE, Prompting
from weighted_mtp.pipelines.evaluating.writer import ModelWriter, row_seed

_log = get_logger(__name__)
CANONICAL, MUTANTS = "canonical", "mutants"
Key = tuple[str, int]


@dataclass(frozen=True)
class Candidate:
    """A completion to judge.

    Attributes:
        sample: number among those of the problem, from 0.
        text: what follows the prompt; with `whole` a program that stands for itself.
        refused: why there is no text; counts as a failure.
    """

    problem: Problem
    sample: int
    text: str
    whole: bool = False
    refused: str = ""

    @property
    def key(self) -> Key:
        """task_id and number."""
        return self.problem.task_id, self.sample


class CompletionSource(Protocol):
    """Where candidates come from.

    Attributes:
        samples: how many of each problem, by task_id; problems without any are not there.
    """

    @property
    def samples(self) -> Mapping[str, int]: ...

    def identity(self) -> dict[str, Any]:
        """What must be the same for an evaluation to go on."""
        ...

    def candidates(self, done: Container[Key]) -> Iterator[Candidate]:
        """All that are not done, in order."""
        ...

    def figures(self) -> dict[str, Any] | None:
        """What writing them took (`DecodingFigures.record`); None if nothing was written."""
        ...


class GivenCompletions:
    """Completions that are there already."""

    def __init__(self, candidates: Sequence[Candidate], identity: Mapping[str, Any]) -> None:
        self._candidates, self._identity = candidates, dict(identity)
        self.samples: dict[str, int] = {}
        for candidate in candidates:
            task_id = candidate.problem.task_id
            self.samples[task_id] = self.samples.get(task_id, 0) + 1

    def identity(self) -> dict[str, Any]:
        return self._identity

    def candidates(self, done: Container[Key]) -> Iterator[Candidate]:
        return (candidate for candidate in self._candidates if candidate.key not in done)

    def figures(self) -> None:
        return None


def read_completions(path: Path, benchmark: Benchmark, partial: bool = False) -> GivenCompletions:
    """A JSONL file in EvalPlus's format: `task_id`, and `completion` or `solution`.

    A completion follows the prompt; a solution is a whole program, and is taken where a line has
    both. Neither is cut at stop strings. The case of a task_id does not matter (`Mbpp/601`).

    Args:
        partial: problems may be missing; else that is an error.

    Raises:
        UserError: the file cannot be read, a line is none of this, or a problem is missing.
    """
    problems = {problem.task_id.lower(): problem for problem in benchmark.problems}
    counts: dict[str, int] = {}
    candidates = []
    try:
        with open_regular(path) as file:
            for number, line in read_lines(file, path):
                problem, text, whole = _given(line, f"{path}, line {number}", problems, benchmark)
                sample = counts.get(problem.task_id, 0)
                counts[problem.task_id] = sample + 1
                candidates.append(Candidate(problem, sample, text, whole))
    except OSError as error:
        raise unreadable(path, error) from error
    missing = [p.task_id for p in benchmark.problems if p.task_id not in counts]
    if missing and (not partial or not candidates):
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{path}: no completion for {len(missing)} of {len(benchmark.problems)} problems "
            f"({named}); add --partial to judge the others alone"
        )
    order = {problem.task_id: place for place, problem in enumerate(benchmark.problems)}
    candidates.sort(key=lambda c: (order[c.problem.task_id], c.sample))
    return GivenCompletions(candidates, {"completions": file_digest(path)})


def _given(
    line: bytes, where: str, problems: Mapping[str, Problem], benchmark: Benchmark
) -> tuple[Problem, str, bool]:
    try:
        record = decode(line, {})
    except BadRecordError as error:
        raise UserError(f"{where}: {error}") from error
    task_id = record.get("task_id")
    problem = problems.get(task_id.lower()) if isinstance(task_id, str) else None
    if problem is None:
        raise UserError(
            f"{where}: {benchmark.name} has no problem {task_id!r:.60} (of the "
            f"{len(benchmark.problems)} that are evaluated)"
        )
    whole = record.get("solution") is not None  # of the two, the one that EvalPlus takes
    field = "solution" if whole else "completion"
    text = record.get(field)
    if not isinstance(text, str):
        raise UserError(f"{where}: needs the field 'completion' or 'solution', a text")
    refuse_half_pairs({field: text}, where)
    return problem, text, whole


def reference_completions(
    kind: str, benchmark: Benchmark, n_samples: int, seed: int
) -> GivenCompletions:
    """The references, or references with a mistake each.

    Raises:
        UserError: the data set has none.
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
        _log.warning("problems that give no %s completion: %d", kind, without)
    return GivenCompletions(candidates, {"completions": kind, "n_samples": n_samples, "seed": seed})


class ModelCompletions:
    """Completions that a model writes, `batch_size` at a time.

    Each has a seed of its own (`row_seed`): neither the batch size nor where an evaluation was
    stopped changes a text.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        prompting: Prompting,
        writer: ModelWriter,
        n_samples: int,
        batch_size: int,
        identity: Mapping[str, Any],
        stops: Sequence[str] = (),
    ) -> None:
        self._writer, self._batch_size = writer, batch_size
        self._own_stops, self._stops = tuple(stops), (*prompting.stops, *stops)
        self._plain = prompting.style != TEMPLATE
        self._identity = {**identity, "n_samples": n_samples}
        self._prompts = {p.task_id: writer.encode(prompting.render(p)) for p in benchmark.problems}
        self.samples = {problem.task_id: n_samples for problem in benchmark.problems}
        shortest, room = min(map(len, self._prompts.values())), writer.longest_prompt
        if shortest > room:
            raise UserError(
                f"no prompt fits: the shortest has {shortest} tokens, the model's positions leave "
                f"{max(0, room)} beside the new tokens; lower --max-new-tokens"
            )
        fits = [p for p in benchmark.problems if len(self._prompts[p.task_id]) <= room]
        self._too_long = [p for p in benchmark.problems if len(self._prompts[p.task_id]) > room]
        self._asked = [(problem, sample) for problem in fits for sample in range(n_samples)]
        if self._too_long:
            _log.warning(
                "prompts longer than %d tokens, which count as failed: %d",
                room,
                len(self._too_long),
            )

    def identity(self) -> dict[str, Any]:
        return self._identity

    def candidates(self, done: Container[Key]) -> Iterator[Candidate]:
        for problem in self._too_long:
            tokens = len(self._prompts[problem.task_id])
            for sample in range(self.samples[problem.task_id]):
                candidate = Candidate(problem, sample, "", refused=f"a prompt of {tokens} tokens")
                if candidate.key not in done:
                    yield candidate
        missing = [(p, sample) for p, sample in self._asked if (p.task_id, sample) not in done]
        for start in range(0, len(missing), self._batch_size):
            batch = missing[start : start + self._batch_size]
            for (problem, sample), text in zip(batch, self._written(batch), strict=True):
                yield Candidate(problem, sample, text)

    def figures(self) -> dict[str, Any] | None:
        return self._writer.figures.record() if self._writer.figures.texts else None

    def _written(self, batch: Sequence[tuple[Problem, int]]) -> list[str]:
        """The text of each, ended at the stop strings.

        A plain completion that opens a block before it has answered, and was stopped, is written
        again whole: inside of a fence the stop strings mean nothing.
        """
        texts, blocks = self._continued(batch, self._stops)
        again = [place for place, block in enumerate(blocks) if block and self._plain]
        if again:
            whole, _ = self._continued([batch[place] for place in again], self._own_stops)
            for place, text in zip(again, whole, strict=True):
                texts[place] = text
        return texts

    def _continued(
        self, batch: Sequence[tuple[Problem, int]], stops: Sequence[str]
    ) -> tuple[list[str], list[bool]]:
        """The text of each up to a stop string, and whether that string cut off a block."""
        prompts = [self._prompts[problem.task_id] for problem, _ in batch]
        seeds = [row_seed(problem.task_id, sample) for problem, sample in batch]
        texts, blocks = [], []
        written = self._writer.write(prompts, seeds, stops)
        for (problem, _), prompt, completion in zip(batch, prompts, written, strict=True):
            whole = written_text(self._writer.tokenizer, prompt, completion.tokens)
            text = cut(whole, stops)
            if text != completion.text:  # decoded at once and piece by piece: a strange tokenizer
                _log.warning("%s: decoding stopped elsewhere than its text ends", problem.task_id)
            texts.append(text)
            blocks.append(completion.finish == "stop" and opens_a_block(problem, whole))
        return texts, blocks
