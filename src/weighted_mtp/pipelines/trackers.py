"""Metrics for other programs to show: TensorBoard, MLflow and Weights & Biases.

A tracker gets the records that `metrics.jsonl` gets. That file is always written and is the truth;
a tracker may fail without harm: it is fed from a thread of its own, so that training never waits
long for a server, and is switched off with one warning when it stops working.

One run directory is one run everywhere. The ids of its MLflow and W&B runs are kept in
`trackers.json`, and a resumed run goes on with them. A tracker is given the recipe and the figures,
nothing about the machine, the user or the environment.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger

log = get_logger(__name__)

BACKLOG = 1000
"""Records a slow tracker may lie behind before training waits for it."""
PATIENCE = 60.0
"""Seconds to wait for a tracker, in the middle of a run or at its end."""
PARAMS_AT_ONCE = 100  # MLflow takes no more in a request


class Tracker(Protocol):
    """Somewhere the records of a run go, besides `metrics.jsonl`."""

    def log(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Take one record, as `MetricsFile.write` does."""

    def close(self) -> None:
        """Finish the run: write what is left, let go of files and connections."""


def scalars(kind: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, named `kind/figure`, `kind/figure/1`, … for each head of a
    list, and `kind/figure/key` for a mapping. What is no number or not finite is left out."""
    return {
        name: float(value)
        for name, value in _numbered(kind, figures)
        if not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    }


class TensorBoardTracker:
    """Event files for TensorBoard.

    Args:
        directory: where they go.
        purge_step: hide what an earlier part of the run logged at this step and later.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, directory: Path, purge_step: int | None = None) -> None:
        tensorboard = _package("torch.utils.tensorboard", "tensorboard")
        self._writer = tensorboard.SummaryWriter(str(directory), purge_step=purge_step)

    def log(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Add one point to each curve."""
        for name, value in scalars(kind, figures).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class MLflowTracker:
    """A run in an MLflow store.

    Args:
        uri: of the store: `sqlite:///…`, or a server's.
        params: the flattened recipe; logged once, since MLflow lets no parameter change.
        run_id: continue this run, if the store knows it.
        artifacts: where a new experiment keeps its artifacts; None leaves that to the store.

    Attributes:
        run_id: of the run being logged.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        run_id: str | None = None,
        artifacts: str | None = None,
    ) -> None:
        mlflow = _package("mlflow", "mlflow")
        self._entities = _package("mlflow.entities", "mlflow")
        self._failure: type[Exception] = _package("mlflow.exceptions", "mlflow").MlflowException
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if run_id is None or not self._reopen(run_id):
            run_id = self._start(experiment, run_name, params, artifacts)
        self.run_id = run_id

    def log(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Log one record in one request."""
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(_mlflow_name(name), value, now, step)
            for name, value in scalars(kind, figures).items()
        ]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.run_id, status="FINISHED")

    def _reopen(self, run_id: str) -> bool:
        try:
            self._client.update_run(run_id, status="RUNNING")
        except self._failure as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("the MLflow store does not know run %s; a new one is started", run_id)
            return False
        return True

    def _start(
        self, experiment: str, run_name: str, params: Mapping[str, Any], artifacts: str | None
    ) -> str:
        known = self._client.get_experiment_by_name(experiment)
        if known is None:
            where = self._client.create_experiment(experiment, artifact_location=artifacts)
        else:
            where = known.experiment_id
        run_id: str = self._client.create_run(where, run_name=run_name).info.run_id
        entries = [self._entities.Param(_mlflow_name(k), str(v)) for k, v in params.items()]
        for start in range(0, len(entries), PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=entries[start : start + PARAMS_AT_ONCE])
        return run_id


class WandbTracker:
    """A run of Weights & Biases, on line or off line as the user's environment says.

    What W&B gathers by itself (console, git, code, requirements, host, system load) is turned off.

    Args:
        directory: W&B keeps its files in `wandb/` below it.
        config: the flattened recipe.
        run_id: continue this run.

    Attributes:
        run_id: of the run being logged.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(
        self,
        project: str,
        run_name: str,
        directory: Path,
        config: Mapping[str, Any],
        run_id: str | None = None,
    ) -> None:
        wandb = _package("wandb", "wandb")
        only_ours = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=project,
            name=run_name,
            dir=str(directory),
            config=dict(config),
            allow_val_change=True,
            id=run_id,
            resume="allow",
            reinit="create_new",
            settings=only_ours,
        )
        # W&B's own step never goes back; ours does when a run is resumed, so it is a figure.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self.run_id: str = self._run.id

    def log(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Log one record."""
        self._run.log({**scalars(kind, figures), "step": step})

    def close(self) -> None:
        """Finish the run and wait for what is not uploaded yet."""
        self._run.finish()


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
            self._switch_off(_in_brief(error))

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
    ids, flat = RunIds(run_dir / "trackers.json"), dict(_dotted("", params))
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
                self._ids = dict(json.loads(path.read_text(encoding="utf-8")))
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
            f"{name} cannot start ({_in_brief(error)}); put that right, or leave it out of "
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


def _package(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"training.trackers: {extra} cannot be imported ({error}); "
            f"pip install 'weighted-mtp[{extra}]'"
        ) from error


def _numbered(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _numbered(f"{path}/{key}", below)
    elif isinstance(value, (list, tuple)):
        for number, below in enumerate(value, 1):
            yield from _numbered(f"{path}/{number}", below)
    else:
        yield path, value


def _dotted(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Recipe keys as `--set` takes them, with values that any tracker can keep."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _dotted(f"{path}.{key}" if path else str(key), below)
    else:
        plain = value is None or isinstance(value, (bool, int, float, str))
        yield path, value if plain else str(value)


def _mlflow_name(name: str) -> str:
    """The characters that MLflow takes in a name."""
    return re.sub(r"[^\w./ -]", "_", name)


def _in_brief(error: Exception) -> str:
    """A third party's error in one short line, without the credentials of an address in it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return re.sub(r"//[^/@\s]*@", "//", text)[:300]
