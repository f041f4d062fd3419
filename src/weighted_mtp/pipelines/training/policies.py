"""When to keep a checkpoint, when to skip a step, and when to stop."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from weighted_mtp.core.config.sections import TrainingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.data.examples import Example
from weighted_mtp.runtime import distributed

log = get_logger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def check_held_out(config: TrainingConfig, there: bool) -> None:
    """Raise `UserError` if a setting depends on validations and there are no held-out rows.

    Args:
        there: whether there are held-out rows.
    """
    if not there and (config.early_stopping or config.keep_best):
        raise UserError(
            "training.early_stopping and training.keep_best need held-out rows: set data.validation"
        )


class BestCheckpoints:
    """Ranks validations by one figure.

    Attributes:
        steps: those of the `training.keep_best` best validations so far.
        stale: validations since the last improvement.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.ranking: list[tuple[float, int]] = []
        self.top: float | None = None
        self.stale = 0

    @property
    def steps(self) -> set[int]:
        return {step for _, step in self.ranking}

    @property
    def exhausted(self) -> bool:
        """Whether early stopping is on and its patience has run out."""
        early = self.config.early_stopping
        return early is not None and self.stale >= early.patience

    def observe(self, step: int, figures: Mapping[str, Any]) -> bool:
        """Rank a validation; return whether its checkpoint is to be kept.

        Raises:
            UserError: the monitored figure is not among them.
        """
        name = self.config.monitor
        value = figures.get(name)
        usable = value is None or isinstance(value, (int, float))
        if (name not in figures and self.top is None) or not usable:
            # Only the first validation must have it: a model that diverged later has no AUC.
            numbers = sorted(k for k, v in figures.items() if isinstance(v, (int, float)))
            raise UserError(
                f"training.monitor {name!r} is not a number of the validation; there are "
                f"{', '.join(numbers)}"
            )
        value = math.nan if value is None else float(value)
        score = value if self.config.monitor_mode == "min" else -value  # lower is better
        early = self.config.early_stopping
        margin = early.min_delta if early is not None else 0.0
        if math.isnan(score):
            self.stale += self.top is not None  # NaN from the start: no rows to measure it on
            return False
        if self.top is None or score < self.top - margin:
            self.top, self.stale = score, 0
        else:
            self.stale += 1
        keep = self.config.keep_best
        self.ranking = sorted([*self.ranking, (score, step)])[:keep]
        return step in self.steps

    def state_dict(self) -> dict[str, Any]:
        watched = [self.config.monitor, self.config.monitor_mode]
        return {"ranking": self.ranking, "top": self.top, "stale": self.stale, "watched": watched}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, unless it ranks another figure."""
        watched = [self.config.monitor, self.config.monitor_mode]
        if state.get("watched", watched) != watched:
            return
        self.ranking = [(float(score), int(step)) for score, step in state["ranking"]]
        self.top, self.stale = state["top"], int(state["stale"])


class SkippedSteps:
    """Counts steps that were skipped for a non-finite loss or gradient, and records their rows."""

    def __init__(self, run_dir: Path, limit: int) -> None:
        self.run_dir, self.limit, self.count = run_dir, limit, 0

    def add(
        self, step: int, loss: float, norm: float, examples: Sequence[Example], is_main: bool
    ) -> None:
        """Count a step; every rank calls this, the main one writes.

        Raises:
            UserError: more steps than allowed were skipped.
        """
        self.count += 1
        report = self.run_dir / f"nonfinite-step-{step}.json"
        if is_main:
            rows, tasks = [e.row for e in examples], [e.task_id for e in examples]
            record = {"step": step, "rows": rows, "task_ids": tasks}
            try:
                self.run_dir.mkdir(parents=True, exist_ok=True)
                report.write_text(json.dumps(record) + "\n", encoding="utf-8")
            except OSError as error:
                log.warning("%s: cannot be written (%s)", report, error)
        told = f"step {step}: loss {loss} and gradient norm {norm} are not finite; the rows are "
        if self.count > self.limit:
            before = f"{self.count - 1} steps were skipped before; " if self.count > 1 else ""
            raise UserError(
                f"{told}in {report}, {before}earlier checkpoints are untouched; lower "
                "training.learning_rate or look at those rows, then --resume"
            )
        if is_main:
            log.warning("%sin %s; skipped (%d of at most %d)", told, report, self.count, self.limit)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request to stop after the current step, instead of an
    exception inside it; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def agreed(self) -> bool:
        """Return True on every rank once one of them was asked to stop. The exchange runs on the
        CPU, where the end of another process raises an exception between two steps."""
        return distributed.any_rank(self.wanted, torch.device("cpu"))

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and distributed.is_lost(error):
            return  # torchrun sends SIGTERM now; the message about the lost rank must come first
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
