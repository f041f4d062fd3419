"""The three programs behind `trackers.py`, each imported only when it is used."""

from __future__ import annotations

import importlib
import math
import re
import time
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger

log = get_logger(__name__)

PARAMS_AT_ONCE = 100  # MLflow takes no more in a request


def scalars(kind: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, named `kind/figure`, `kind/figure/1`, … for each head of a
    list, and `kind/figure/key` for a mapping. What is not a finite number is left out."""
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
    """A run of Weights & Biases, online or offline, as the user's environment says.

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


def dotted(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Recipe keys as `--set` takes them, with values that any tracker can keep."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from dotted(f"{path}.{key}" if path else str(key), below)
    else:
        plain = value is None or isinstance(value, (bool, int, float, str))
        yield path, value if plain else str(value)


def _mlflow_name(name: str) -> str:
    """The characters that MLflow takes in a name."""
    return re.sub(r"[^\w./ -]", "_", name)
