"""Read what a run recorded: its metrics, and the programs that were evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json, read_json_lines
from weighted_mtp.core.logging import get_logger

log = get_logger(__name__)

Records = Sequence[dict[str, Any]]
METRICS = ("metrics.jsonl", "critic/metrics.jsonl")
"""In a run directory: of the main stage, and of a critic stage before it."""
SPLITS = ("test", "compositions")
_TEXTS = ("task_id", "instruction", "completion", "status", "detail")


@dataclass(frozen=True)
class RunRecords:
    """Everything a run directory records about a run.

    Attributes:
        stages: metrics of the `main` stage and, where there was one, of the `critic` before it.
        attempts: evaluated programs of each split.
        settings: config.yaml; "" if it is missing.
    """

    name: str
    stages: Mapping[str, Records]
    attempts: Mapping[str, Sequence[Mapping[str, Any]]]
    settings: str


def find_run(path: Path) -> Path:
    """Return the run directory: `path` itself, or that of a checkpoint or model in a run."""
    for place in (path, *path.resolve().parents[:3]):
        if any((place / name).exists() for name in METRICS):
            return place
    return path


def read_run(run_dir: Path) -> RunRecords:
    """Read the records of a run directory.

    Raises:
        UserError: `run_dir` is not a run, or has not trained a step.
    """
    config = run_dir / "config.yaml"
    return RunRecords(
        run_dir.resolve().name,
        read_stages(run_dir),
        {split: read_attempts(run_dir, split) for split in SPLITS},
        config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )


def read_stages(run_dir: Path) -> dict[str, Records]:
    """Read the metrics of the stages; a run that only reached the critic has that as `main`.

    Raises:
        UserError: as for `read_run`.
    """
    found: dict[str, Records] = {}
    for stage, name in zip(("main", "critic"), METRICS, strict=True):
        path = run_dir / name
        records = read_metrics(path) if path.is_file() else []
        if any(r["kind"] == "train" for r in records):
            found[stage] = records
    if not found:
        metrics = run_dir / METRICS[0]
        if not metrics.exists():
            raise UserError(f"{metrics}: no such file; give the directory of a training run")
        raise UserError(f"{metrics}: contains no training step yet; train first")
    return found if "main" in found else {"main": found["critic"]}


def read_attempts(run_dir: Path, split: str) -> list[dict[str, Any]]:
    """Read the micro tasks' programs that `weighted-mtp evaluate` saved; invalid lines (cut off by
    a kill or a full disk) are skipped."""
    return _attempts(run_dir / "evaluation" / f"micro-{split}.jsonl")


def read_evaluations(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Read `task_id` of the programs of every other data set, by its name, and whether they
    passed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((run_dir / "evaluation").glob("*/attempts.jsonl")):
        if not path.parent.name.startswith("micro-"):
            records, _ = read_json_lines(path)
            found[path.parent.name] = [
                {"task_id": str(record.get("task_id", "")), "passed": record["status"] == "passed"}
                for record in records
                if "status" in record
            ]
    return found


def evaluation_settings(run_dir: Path, data: str) -> dict[str, Any]:
    """Read with which settings a split or data set was evaluated; {} if that is not recorded."""
    folder = f"micro-{data}.evaluation" if data in SPLITS else data
    path = run_dir / "evaluation" / folder / "config.json"
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _attempts(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    records, others = read_json_lines(path)
    attempts = [
        {**record, **{key: str(record.get(key, "")) for key in _TEXTS}}
        for record in records
        if isinstance(record.get("passed"), bool)
    ]
    others += len(records) - len(attempts)
    if others:
        log.warning("%s: %d lines are not results", path, others)
    return attempts


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete records of a metrics file (the last line of a killed run may be cut).
    `null` becomes NaN; so do the bare NaN of older versions."""
    records = []
    for record in read_json_lines(path)[0]:
        kind, step = record.get("kind"), record.get("step")
        if isinstance(kind, str) and isinstance(step, int) and not isinstance(step, bool):
            records.append(map_values(record, lambda x: math.nan if x is None else x))
    return records


def without_nan(value: Any) -> Any:
    """Replace numbers that are not finite by None: JSON has none."""

    def strict(x: Any) -> Any:
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return map_values(value, strict)


def map_values(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to a value, or to those in a list or mapping at any depth."""
    if isinstance(value, dict):
        return {key: map_values(below, change) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_values(below, change) for below in value]
    return change(value)


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, old and new value of whatever differs, in mappings at any depth; a missing
    one is None."""
    if old == new:
        return
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        yield key, old, new
        return
    for name in dict.fromkeys([*old, *new]):
        yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)


def last(records: Records, kind: str) -> dict[str, Any]:
    """Return the last record of a kind; empty if there is none."""
    return next((r for r in reversed(records) if r["kind"] == kind), {})


def curve(records: Records, kind: str, key: str) -> tuple[list[int], list[Any]]:
    """Return steps and values of one figure."""
    chosen = [r for r in records if r["kind"] == kind and key in r]
    return [r["step"] for r in chosen], [r[key] for r in chosen]


def number(value: Any) -> float:
    """Return a figure as a float; NaN for one that is missing or not a number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def head_figures(record: Mapping[str, Any], key: str) -> list[float]:
    """Return a figure of every head; empty if it is missing or null."""
    values = record.get(key)
    return [number(value) for value in values] if isinstance(values, list) else []


def heads_curve(records: Records, kind: str, key: str) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and values of a figure of each head, by `head 1`, …"""
    found = [(r["step"], head_figures(r, key)) for r in records if r["kind"] == kind]
    found = [(step, values) for step, values in found if values]
    steps = [step for step, _ in found]
    return {
        f"head {k + 1}": (steps, [x[k] if k < len(x) else math.nan for _, x in found])
        for k in range(max((len(values) for _, values in found), default=0))
    }
