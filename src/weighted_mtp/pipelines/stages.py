"""Recipes of two stages in one command: a model that the main stage needs is trained first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.logging import get_logger
from weighted_mtp.pipelines.checkpoint_utils import checkpoint_path, is_trained
from weighted_mtp.pipelines.checkpointing.remote_copies import Copies
from weighted_mtp.pipelines.checkpointing.remote_runs import sync_with_remote
from weighted_mtp.pipelines.checkpointing.resuming import tell_changes
from weighted_mtp.pipelines.compose import find_checkpoint, run
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.resolve import settle
from weighted_mtp.pipelines.run_directory import writing_run
from weighted_mtp.pipelines.training.trainer import TrainResult
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.environment import environment_of

log = get_logger(__name__)


@dataclass(frozen=True)
class FirstStage:
    """What is trained before the main stage.

    Attributes:
        name: of its directory in the run, and for the log.
        recipe: of it.
        then: the main stage's recipe, given the directory of the model that was trained.
    """

    name: str
    recipe: Recipe
    then: Callable[[Path], Recipe]


def run_two_stages(request: RunRequest, first: FirstStage) -> TrainResult:
    """Train the first stage in RUN/NAME and then the main one; resume whichever was interrupted.

    Raises:
        UserError: as for `run`.
    """
    request = replace(request, recipe=settle(request.recipe))
    # One process group for both stages.
    with (
        distributed.report_lost_rank(),
        environment_of(request.recipe.runtime),
        writing_run(request.run_dir),
    ):
        return _both(request, first)


def _both(request: RunRequest, first: FirstStage) -> TrainResult:
    checkpoint = find_checkpoint(request)  # refuses a run that must not start here
    tell_changes(request.run_dir, request.recipe, checkpoint, request.saved)
    folder = request.run_dir / first.name
    data_dir = request.data_dir or request.run_dir
    training = first.recipe.training
    sync_with_remote(first.recipe, folder, request.resume)
    distributed.barrier()
    if not distributed.from_main(is_trained(folder, training.steps)):
        log.info("first stage: the %s", first.name)
        resume = bool(distributed.from_main((folder / "config.yaml").exists()))
        result = run(RunRequest(first.recipe, folder, resume, data_dir, outer=request))
        if not result.finished:
            return result
    log.info("second stage: %s", request.recipe.objective.name)
    trained = checkpoint_path(folder, training.steps) / "model"
    distributed.check_shared(trained)
    main = first.then(trained)
    request = replace(request, recipe=main, resume=True, data_dir=data_dir, record=request.recipe)
    result = run(request)
    # Copies of the first stage that had not arrived when it ended.
    late = Copies(folder, training.keep_last, training.remote).settle(())
    return replace(result, uncopied=result.uncopied or late)


def training_of(recipe: Recipe, name: str, changes: dict[str, object]) -> dict[str, object]:
    """What a first stage changes in `training`: its own settings, and best checkpoints, early
    stopping and the remote directory, which are the main stage's.

    Args:
        name: of the stage, whose checkpoints get a directory of that name in the remote one.
        changes: the stage's own; None leaves the main stage's.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    given |= {"early_stopping": None, "keep_best": 0, "monitor": "loss", "monitor_mode": "min"}
    if recipe.training.remote is not None:
        given["remote"] = f"{recipe.training.remote}/{name}"
    return given
