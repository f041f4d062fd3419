"""Files of an evaluation: a journal to resume from, and results in the formats of other tools.

DIR/attempts.jsonl               the journal: a program on each line, as soon as it is judged
DIR/config.json                  settings; an evaluation with other settings does not resume here
DIR/problems.jsonl               task_id, instruction and input of every problem
DIR/samples.jsonl                EvalPlus: task_id and solution
DIR/samples_eval_results.json    EvalPlus: verdicts
DIR/results.json                 Language Model Evaluation Harness: figures and settings
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from weighted_mtp import __version__
from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import parse_json, read_json
from weighted_mtp.core.line_file import LineFile
from weighted_mtp.core.types import Verdict
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.scores import Scores

JOURNAL, CONFIG, RESULTS = "attempts.jsonl", "config.json", "results.json"
PROBLEMS = "problems.jsonl"
_METRICS = {"mbpp": ("pass_at_{k}", "none")}
_METRIC = ("pass@{k}", "create_test")
"""Names of figures and filters in the Language Model Evaluation Harness."""
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
}
_EVALPLUS = {"passed": "pass", "timeout": "timeout"}


class Written(NamedTuple):
    """A completion before it is judged; see `Attempt`."""

    task_id: str
    sample: int
    completion: str
    logprob: float | None = None


@dataclass(frozen=True)
class Attempt:
    """One program for one problem, and the result of running it.

    Attributes:
        sample: its number among the samples of the problem, from 0.
        completion: as the model wrote it, or as it was given.
        solution: the program extracted from it.
        logprob: summed log-probability of the tokens that were written, in nats; None unless asked
            for.
    """

    task_id: str
    sample: int
    completion: str
    solution: str
    status: str
    detail: str
    seconds: float
    logprob: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status == "passed"

    @classmethod
    def of(cls, written: Written, solution: str, verdict: Verdict) -> Attempt:
        """Combine a completion and its verdict."""
        found = verdict.status, verdict.detail, round(verdict.seconds, 4)
        task_id, sample, completion, logprob = written
        return cls(task_id, sample, completion, solution, *found, logprob)


class Journal:
    """Attempts on disk, one on each line, in the order they were judged.

    Nothing is written before the first attempt. A last line that a kill cut short is judged again.

    Args:
        directory: of the results.
        identity: settings that must be equal for attempts to be taken over.
        known: all task_ids.
        overwrite: discard existing attempts.

    Attributes:
        attempts: those found on disk, then those appended.

    Raises:
        UserError: the directory contains results with other settings, or a file is damaged.
    """

    def __init__(
        self,
        directory: Path,
        identity: Mapping[str, Any],
        known: Iterable[str],
        overwrite: bool = False,
    ) -> None:
        self.directory, self.path = directory, directory / JOURNAL
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._known = frozenset(known)
        self._overwrite = overwrite
        self._lines = LineFile(self.path)
        self.attempts: list[Attempt] = []
        if directory.exists() and not directory.is_dir():
            raise UserError(
                f"{directory}: is not a directory; --output names the results directory"
            )
        if self.path.exists() and not overwrite:
            self._check_identity()
            self._read()

    @property
    def done(self) -> frozenset[tuple[str, int]]:
        """task_id and sample number of every attempt."""
        return frozenset((attempt.task_id, attempt.sample) for attempt in self.attempts)

    def append(self, attempt: Attempt) -> None:
        """Write an attempt to disk.

        Raises:
            UserError: it cannot be written.
        """
        try:
            if not self._lines.is_open:
                self._begin()
            self._lines.append(asdict(attempt))
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); {len(self.attempts)} judged "
                "programs are kept there; free some space, then run the same command to resume"
            ) from error
        self.attempts.append(attempt)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def _begin(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._overwrite:
            self.path.unlink(missing_ok=True)
        write_json(self.directory / CONFIG, self._identity)

    def _check_identity(self) -> None:
        path = self.directory / CONFIG
        try:
            there = read_json(path)
            other = [key for key in self._identity if there.get(key) != self._identity[key]]
        except (OSError, ValueError, AttributeError) as error:
            raise _broken(path, error) from error
        if other:
            key = other[0]
            raise UserError(
                f"{self.directory}: contains an evaluation with another {' and '.join(other)} "
                f"({key}: {_brief(there.get(key))}, now {_brief(self._identity[key])}); choose "
                "another --output, or add --overwrite"
            )

    def _read(self) -> None:
        seen: set[tuple[str, int]] = set()
        for number, line in enumerate(self._lines.read(), 1):
            where = f"{self.path}, line {number}"
            attempt = self._parse(line, where)
            if (attempt.task_id, attempt.sample) in seen:
                raise _broken(where, f"{attempt.task_id} {attempt.sample} is given twice")
            seen.add((attempt.task_id, attempt.sample))
            self.attempts.append(attempt)

    def _parse(self, line: bytes, where: str) -> Attempt:
        try:
            record = parse_json(line)
            record.setdefault("logprob", None)  # journals of earlier versions
            attempt = Attempt(**{field.name: record[field.name] for field in fields(Attempt)})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _broken(where, error) from error
        for field in fields(Attempt):
            value = getattr(attempt, field.name)
            wanted = _KINDS[str(field.type)]
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise _broken(where, f"{field.name} is {value!r:.40}")
        if attempt.task_id not in self._known:
            raise _broken(where, f"no problem {attempt.task_id!r:.60}")
        return attempt


def _broken(where: Path | str, why: object) -> UserError:
    reason = one_line(why, 120)
    return UserError(f"{where}: broken ({reason}); repair it, or add --overwrite to start over")


def _brief(value: Any) -> str:
    return f"{json.dumps(value):.60}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that readers never see a part of it.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def write_problems(directory: Path, problems: Iterable[Problem]) -> None:
    """Write how each problem was put, for `prepare attempts`.

    Raises:
        UserError: the file cannot be written.
    """
    lines = (
        json.dumps({"task_id": p.task_id, "instruction": p.instruction, "input": p.input}) + "\n"
        for p in problems
    )
    write_text(directory / PROBLEMS, "".join(lines))


def write_evalplus(directory: Path, attempts: Sequence[Attempt], digest: str, date: str) -> None:
    """`samples.jsonl` and `samples_eval_results.json`, as EvalPlus reads and writes them.

    There are no extra ("plus") tests here, so `plus_status` is null, and the lists of failed tests
    are empty.
    """
    verdicts: dict[str, list[dict[str, Any]]] = {}
    lines = []
    for attempt in attempts:
        task_id = evalplus_id(attempt.task_id)
        lines.append(json.dumps({"task_id": task_id, "solution": attempt.solution}) + "\n")
        verdicts.setdefault(task_id, []).append(
            {
                "task_id": task_id,
                "solution": attempt.solution,
                "base_status": _EVALPLUS.get(attempt.status, "fail"),
                "plus_status": None,
                "base_fail_tests": [],
                "plus_fail_tests": [],
            }
        )
    write_text(directory / "samples.jsonl", "".join(lines))
    results = {"date": date, "hash": digest, "eval": verdicts}
    write_json(directory / "samples_eval_results.json", results)


def evalplus_id(task_id: str) -> str:
    """Translate a task_id: `mbpp/601` is `Mbpp/601` in EvalPlus."""
    return task_id.replace("m", "M", 1) if task_id.startswith("mbpp/") else task_id


def read_decoding(directory: Path) -> dict[str, Any] | None:
    """Return the cost of decoding that an existing `results.json` states, if any."""
    try:
        found = read_json(directory / RESULTS)
        return dict(found["weighted_mtp"]["decoding"])
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return None


def harness_results(
    dataset: str,
    scores: Scores,
    settings: Mapping[str, Any],
    total: int,
    seconds: float,
    decoding: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return `results.json` as the Language Model Evaluation Harness writes it, for one task.

    The means and standard errors are where the harness has them; intervals, statuses and the cost
    of decoding are under `weighted_mtp`.

    Args:
        settings: of the evaluation, as in `config.json`.
        total: problems of the data set.
    """
    name, filtered = _METRICS.get(dataset, _METRIC)
    figures: dict[str, Any] = {"alias": dataset}
    for k, interval in scores.pass_at.items():
        metric = name.format(k=k)
        figures[f"{metric},{filtered}"] = interval.mean
        figures[f"{metric}_stderr,{filtered}"] = scores.standard_error[k]
    judged = len(scores.problems)
    shots = 3 if settings.get("prompt") == "3-shot" else 0
    return {
        "results": {dataset: figures},
        "group_subtasks": {dataset: []},
        "configs": {dataset: {"task": dataset, "num_fewshot": shots, **settings}},
        "versions": {dataset: f"weighted-mtp {__version__}"},
        "n-shot": {dataset: shots},
        "higher_is_better": {dataset: {name.format(k=k): True for k in scores.pass_at}},
        "n-samples": {dataset: {"original": total, "effective": judged}},
        "config": {
            "model": "weighted-mtp",
            "model_args": str(settings.get("model", "")),
            "limit": None if judged == total else judged,
            "gen_kwargs": settings.get("sampling"),
        },
        "total_evaluation_time_seconds": str(round(seconds, 3)),
        "weighted_mtp": {
            "version": __version__,
            "pass@k": {
                str(k): {"mean": i.mean, "low": i.low, "high": i.high, "confidence": 0.95}
                for k, i in scores.pass_at.items()
            },
            "statuses": scores.statuses,
            "decoding": None if decoding is None else dict(decoding),
            "problems": {task: {"n": n, "c": c} for task, (n, c) in scores.problems.items()},
        },
    }
