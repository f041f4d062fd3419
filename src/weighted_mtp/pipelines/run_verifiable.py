"""Fine-tune all heads with token weights from a critic; train that critic first, if asked to."""

from __future__ import annotations

from dataclasses import replace

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.pipelines.checkpoint_utils import checkpoint_path, is_trained
from weighted_mtp.pipelines.checkpointing.remote_copies import Copies
from weighted_mtp.pipelines.checkpointing.remote_runs import meet
from weighted_mtp.pipelines.checkpointing.resuming import tell_changes
from weighted_mtp.pipelines.compose import RunRequest, find_checkpoint, run
from weighted_mtp.pipelines.run_critic import run_critic
from weighted_mtp.pipelines.run_directory import writing_run
from weighted_mtp.pipelines.training.objectives import resolve_objective
from weighted_mtp.pipelines.training.trainer import TrainResult
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.environment import environment_of

log = get_logger(__name__)


def run_verifiable(request: RunRequest) -> TrainResult:
    """Train by a critic's TD errors (recipe `verifiable`), or by one of its controls.

    With `critic_stage` the critic is trained in RUN/critic, from the recipe's model, and the main
    stage starts from it; a stage that was interrupted is resumed.

    Raises:
        UserError: there is no value head to start from, and no stage to train one.
    """
    if request.recipe.critic_stage is None:
        return run(request)
    request = replace(request, recipe=resolve_objective(request.recipe))
    # One group for both stages.
    with (
        distributed.naming_the_step(),
        environment_of(request.recipe.runtime),
        writing_run(request.run_dir),
    ):
        return _both_stages(request)


def _both_stages(request: RunRequest) -> TrainResult:
    checkpoint = find_checkpoint(request)  # refuses what must not be started here
    tell_changes(request.run_dir, request.recipe, checkpoint)
    folder = request.run_dir / "critic"
    data_dir = request.data_dir or request.run_dir
    recipe = critic_recipe(request.recipe)
    training = recipe.training
    meet(training.remote, folder, request.resume)
    distributed.barrier()
    if not distributed.from_main(is_trained(folder, training.steps)):
        log.info("first stage: the critic")
        resume = bool(distributed.from_main((folder / "config.yaml").exists()))
        result = run_critic(RunRequest(recipe, folder, resume, data_dir, outer=request))
        if not result.finished:
            return result
    log.info("second stage: %s", request.recipe.objective.name)
    start = checkpoint_path(folder, training.steps) / "model"
    distributed.check_shared(start)
    config = request.recipe.model.model_copy(update={"path": start, "architecture": None})
    main = request.recipe.model_copy(update={"model": config, "critic_stage": None})
    request = replace(request, recipe=main, resume=True, data_dir=data_dir, record=request.recipe)
    result = run(request)
    # What of the first stage had not arrived when it ended.
    late = Copies(folder, training.keep_last, training.remote).settle(())
    return replace(result, uncopied=result.uncopied or late)


def critic_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the first stage.

    Raises:
        UserError: the recipe has none.
    """
    stage = recipe.critic_stage
    if stage is None:
        raise UserError("critic_stage is not set")
    changes = {k: v for k, v in stage.model_dump(exclude={"lam"}).items() if v is not None}
    changes |= {"early_stopping": None, "keep_best": 0, "monitor": "loss", "monitor_mode": "min"}
    if recipe.training.remote is not None:
        changes["remote"] = f"{recipe.training.remote}/critic"
    value = recipe.objective.value.model_copy(update={"lam": stage.lam})
    objective = {"name": "critic", "options": {}, "value": value}
    return recipe.model_copy(
        update={
            "pipeline": "critic",
            "objective": recipe.objective.model_copy(update=objective),
            "training": recipe.training.model_copy(update=changes),
            "critic_stage": None,
        }
    )
