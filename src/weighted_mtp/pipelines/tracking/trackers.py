"""Metrics for other programs to show: TensorBoard, MLflow and Weights & Biases.

A tracker gets the records that `metrics.jsonl` gets. That file is always written and is the truth;
a tracker may fail without harm: it is fed from a thread of its own, so that training never waits
long for a server, and is switched off with one warning when it stops working.

One run directory is one run everywhere. The ids of its MLflow and W&B runs are kept in
`trackers.json`, and a resumed run continues with them. A tracker is given the recipe and the
figures, nothing about the machine, the user or the environment.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from weighted_mtp.core.errors import UserError, in_brief
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.logging import get_logger
from weighted_mtp.pipelines.tracking.backends import (
    MLflowTracker,
    TensorBoardTracker,
    WandbTracker,
    dotted,
)

log = get_logger(__name__)

BACKLOG = 1000
"""Records a slow tracker may lie behind before training waits for it."""
PATIENCE = 60.0
"""Seconds to wait for a tracker, in the middle of a run or at its end."""


class Tracker(Protocol):
    """Somewhere the records of a run go, besides `metrics.jsonl`."""

    def log(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Take one record, as `MetricsFile.write` does."""

    def close(self) -> None:
        """Finish the run: write what is left, let go of files and connections."""


class BackgroundTracker:
    """Feeds a tracker from its own thread, and switches it off when it fails or stops answering.

    Nothing it does ends the training: the first failure is one warning, the rest is silence.

    Args:
        name: for the warning.
        backlog: records that may wait; with more, `log` waits too.
        patience: seconds that `log` and `close` wait before they give up.
    """

    def __init__(
        self, name: str, tracker: Tracker, backlog: int = BACKLOG, patience: float = PATIENCE
    ) -> None:
        self._name, self._tracker, self._patience = name, tracker, patience
        self._queue: queue.Queue[tuple[str, int, Mapping[str, Any]] | None] = queue.Queue(backlog)
        self._off, self._closed = False, False
        self._thread = threading.Thread(target=self._feed, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Hand over one record; returns at once unless the tracker lies far behind."""
        if self._off or self._closed:
            return
        try:
            self._queue.put((kind, step, dict(figures)), timeout=self._patience)
        except queue.Full:
            self._switch_off(f"no answer for {self._patience:g} s")

    def close(self) -> None:
        """Wait until everything is written and the tracker has closed, or patience ends."""
        if self._closed:
            return
        self._closed = True
        with suppress(queue.Full):
            self._queue.put(None, timeout=0 if self._off else self._patience)
        if not self._off:
            self._thread.join(self._patience)
            if self._thread.is_alive():
                self._switch_off(f"not finished after {self._patience:g} s, so figures may be lost")

    def _feed(self) -> None:
        for record in iter(self._queue.get, None):
            if not self._off:
                self._attempt(self._tracker.log, *record)
        self._attempt(self._tracker.close)

    def _attempt(self, action: Callable[..., None], *record: Any) -> None:
        try:
            action(*record)
        except Exception as error:  # whatever a third-party package raises
            self._switch_off(in_brief(error, 300))

    def _switch_off(self, reason: str) -> None:
        if not self._off:
            self._off = True
            log.warning(
                "%s is switched off (%s); metrics.jsonl has every figure", self._name, reason
            )


def make_trackers(
    names: Sequence[str], run_dir: Path, params: Mapping[str, Any], resume_step: int
) -> list[Tracker]:
    """The trackers of a run; call it on one rank only, and close them when the run ends.

    TensorBoard writes to `run_dir/tensorboard`. MLflow writes to `run_dir/mlflow.db`, or to
    `MLFLOW_TRACKING_URI`. W&B does what its environment variables say, `WANDB_MODE` among them.

    Args:
        names: of `TRACKERS`.
        params: the recipe, nested or flat.
        resume_step: steps already done. What was logged after them is logged again: TensorBoard
            hides the first time, MLflow and W&B keep both.

    Raises:
        UserError: an unknown name, a missing package, or a tracker that cannot start.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"training.trackers: no tracker {name!r}; there are {', '.join(TRACKERS)}"
            )
    run_dir = run_dir.resolve()
    if names:
        run_dir.mkdir(parents=True, exist_ok=True)
    ids, flat = RunIds(run_dir / "trackers.json"), dict(dotted("", params))
    made: list[Tracker] = []
    try:
        for name in dict.fromkeys(names):
            made.append(BackgroundTracker(name, _start(name, run_dir, flat, resume_step, ids)))
    except UserError:
        for tracker in made:
            tracker.close()
        raise
    return made


class RunIds:
    """`trackers.json`: under which id each tracker knows this run.

    Raises:
        UserError: the file is there but cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._ids = path, dict[str, str]()
        if path.exists():
            try:
                self._ids = dict(read_json(path))
            except (OSError, ValueError, TypeError) as error:
                raise UserError(
                    f"{path}: cannot be read; delete it to start new MLflow and W&B runs"
                ) from error

    def get(self, name: str) -> str | None:
        """The id, if this run was tracked before."""
        return self._ids.get(name)

    def keep(self, name: str, run_id: str) -> None:
        """Remember an id."""
        self._ids[name] = run_id
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self._ids, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def _start(
    name: str, run_dir: Path, params: Mapping[str, Any], resume_step: int, ids: RunIds
) -> Tracker:
    try:
        return TRACKERS[name](run_dir, params, resume_step, ids)
    except UserError:
        raise
    except Exception as error:  # whatever a third-party package raises
        raise UserError(
            f"{name} cannot start ({in_brief(error, 300)}); put that right, or leave it out of "
            "training.trackers"
        ) from error


def _tensorboard(
    run_dir: Path, params: Mapping[str, Any], resume_step: int, ids: RunIds
) -> Tracker:
    return TensorBoardTracker(run_dir / "tensorboard", purge_step=resume_step + 1)


def _mlflow(run_dir: Path, params: Mapping[str, Any], resume_step: int, ids: RunIds) -> Tracker:
    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        uri = f"sqlite:///{(run_dir / 'mlflow.db').as_posix()}"
        artifacts = (run_dir / "mlflow-artifacts").as_uri()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    tracker = MLflowTracker(uri, experiment, run_dir.name, params, ids.get("mlflow"), artifacts)
    ids.keep("mlflow", tracker.run_id)
    return tracker


def _wandb(run_dir: Path, params: Mapping[str, Any], resume_step: int, ids: RunIds) -> Tracker:
    project = os.environ.get("WANDB_PROJECT") or PROJECT
    tracker = WandbTracker(project, run_dir.name, run_dir, params, ids.get("wandb"))
    ids.keep("wandb", tracker.run_id)
    return tracker


PROJECT = "weighted-mtp"
TRACKERS: Mapping[str, Callable[[Path, Mapping[str, Any], int, RunIds], Tracker]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
"""What `make_trackers` can make."""
