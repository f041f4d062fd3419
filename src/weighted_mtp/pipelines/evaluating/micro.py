"""Write programs for held-out micro tasks and run their tests (others: `run_benchmark`)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from weighted_mtp.core.config.data import MicroConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import Program, Row, Verdict
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.decoding import Sampling, Speculation
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.completions import programs_of
from weighted_mtp.evaluation.extraction import program_of
from weighted_mtp.evaluation.passk import pass_at_k
from weighted_mtp.evaluation.prompts import TEMPLATE, Prompting
from weighted_mtp.evaluation.result_files import write_all, write_json
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.evaluation.scores import score, tally
from weighted_mtp.evaluation.statistics import Interval
from weighted_mtp.micro_tasks import Split
from weighted_mtp.micro_tasks import generate as generate_micro
from weighted_mtp.pipelines.evaluating.writer import (
    ModelWriter,
    row_seed,
    run_data,
    warn_of_chat_model,
)
from weighted_mtp.pipelines.training.data import micro_families


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        path: a run, a checkpoint or a model directory.
        n_problems: held-out problems to draw.
        n_samples: programs written for each.
        ks: of pass@k, besides 1.
        template, max_difficulty: None takes those of the run (its families too), or Alpaca's, 11.
        stops: strings that end a program besides those of the template.
        speculation: draft with the model's heads; None decodes plainly.
        split: `test`, or `compositions`: two known operations put together as training never did.
        seed: of the problems; neither split shares one with training, whatever the seed.
    """

    path: Path
    n_problems: int = 200
    n_samples: int = 1
    ks: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 256
    stops: tuple[str, ...] = ()
    speculation: Speculation | None = None
    batch_size: int = 64
    device: str = "auto"
    dtype: str | None = None
    seed: int = 0
    template: str | None = None
    max_difficulty: int | None = None
    split: Split = "test"


@dataclass(frozen=True)
class Attempt:
    """One program written for one problem."""

    row: Row
    completion: str
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "task_id": self.row["task_id"],
            "instruction": self.row["instruction"],
            "completion": self.completion,
            **asdict(self.verdict),
        }


@dataclass(frozen=True)
class EvaluationResult:
    """What the programs did.

    Attributes:
        pass_at_1: mean over problems; None without any.
        pass_at: pass@k for the k that were asked for, with 95 % intervals.
        by_family: pass@1 and number of problems of each family.
        decoding: what writing the programs took (`DecodingFigures.record`).
    """

    pass_at_1: float | None
    by_family: dict[str, tuple[float, int]]
    attempts: list[Attempt]
    pass_at: dict[int, Interval] = field(default_factory=dict)
    decoding: dict[str, Any] | None = None


def run_evaluation(request: EvaluationRequest) -> EvaluationResult:
    """Evaluate on held-out micro tasks.

    Raises:
        UserError: the checkpoint or its tokenizer is missing or damaged.
    """
    writer = ModelWriter(
        request.path,
        request.device,
        request.sampling,
        request.max_new_tokens,
        request.dtype,
        request.speculation,
    )
    trained_on = run_data(request.path)
    micro = MicroConfig(**trained_on.get("micro", {}))
    if request.max_difficulty is not None:
        micro = MicroConfig(max_difficulty=request.max_difficulty)
    template = request.template or trained_on.get("template", "alpaca")
    warn_of_chat_model(request.path, template)
    with Sandbox() as judge:
        rows = generate_micro(
            request.n_problems, request.seed, judge, request.split, families=micro_families(micro)
        )
        tasks = [(row, sample) for row in rows for sample in range(request.n_samples)]
        completions = _write(writer, tasks, template, request)
        verdicts = judge(
            [
                _program(row, completion)
                for (row, _), completion in zip(tasks, completions, strict=True)
            ]
        )
    attempts = [
        Attempt(row, completion, verdict)
        for (row, _), completion, verdict in zip(tasks, completions, verdicts, strict=True)
    ]
    return replace(summarise_attempts(attempts, request.ks), decoding=writer.figures.record())


def _program(row: Row, completion: str) -> Program:
    """The code of a completion, out of its fence if it has one, and the row's tests."""
    metadata = row["metadata"]
    problem = Problem(
        row["task_id"],
        "asserts",
        row["instruction"],
        tests=tuple(metadata["tests"]),
        entry_point=metadata["entry_point"],
    )
    (program,) = programs_of(problem, program_of(problem, completion, chat=True))
    return program


def _write(
    writer: ModelWriter,
    tasks: Sequence[tuple[Row, int]],
    template: str,
    request: EvaluationRequest,
) -> list[str]:
    """A program for every (row, number of the sample), in order."""
    collator = AlpacaCollator(writer.tokenizer, template)
    stops = (*Prompting(TEMPLATE, template).stops, *request.stops)
    programs: list[str] = []
    with Progress(len(tasks), "program") as progress:
        for start in range(0, len(tasks), request.batch_size):
            part = tasks[start : start + request.batch_size]
            prompts = [collator.encode_prompt(r["instruction"], r["input"]) for r, _ in part]
            seeds = [row_seed(row["task_id"], sample) for row, sample in part]
            programs += [written.text for written in writer.write(prompts, seeds, stops)]
            progress.update(len(part))
    return programs


def summarise_attempts(attempts: Sequence[Attempt], ks: Sequence[int] = ()) -> EvaluationResult:
    """pass@1 over problems, and by family; pass@k for other k."""
    problems = tally((a.row["task_id"], a.verdict.passed) for a in attempts)
    family_of = {a.row["task_id"]: str(a.row["metadata"]["family"]) for a in attempts}
    scores = {task: pass_at_k(n, c, 1) for task, (n, c) in problems.items()}
    families: dict[str, list[float]] = defaultdict(list)
    for task, passed in scores.items():
        families[family_of[task]].append(passed)
    return EvaluationResult(
        pass_at_1=sum(scores.values()) / len(scores) if scores else None,
        by_family={f: (sum(s) / len(s), len(s)) for f, s in sorted(families.items())},
        attempts=list(attempts),
        pass_at=score(problems, ks).pass_at if problems else {},
    )


def save_result(result: EvaluationResult, path: Path) -> None:
    """Write every attempt as JSONL, and the summary beside it.

    Raises:
        UserError: they cannot be written; what could be is kept and named.
    """
    lines = [json.dumps(attempt.record()) + "\n" for attempt in result.attempts]
    summary: dict[str, Any] = {"pass@1": result.pass_at_1, "by_family": result.by_family}
    if result.pass_at:
        summary["pass_at"] = {str(k): asdict(found) for k, found in result.pass_at.items()}
    if result.decoding is not None:
        summary["decoding"] = result.decoding
    partial, kept = path.with_name(path.name + ".partial"), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb", buffering=0) as file:
            for line in lines:
                write_all(file, line.encode("ascii"))
                kept += 1
        partial.replace(path)
        write_json(path.with_suffix(".summary.json"), summary)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); {kept} of {len(lines)} programs and "
            f"verdicts are in {partial}"
        ) from error


def template_of(path: Path) -> str:
    """The prompt template a run was trained with; Alpaca's for a bare model directory."""
    return str(run_data(path).get("template", "alpaca"))
