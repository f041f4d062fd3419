"""Fine-tune all heads with token weights from a critic; train that critic first, if asked to."""

from __future__ import annotations

from pathlib import Path

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.compose import run
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.stages import FirstStage, run_two_stages, training_of
from weighted_mtp.pipelines.training.trainer import TrainResult


def run_verifiable(request: RunRequest) -> TrainResult:
    """Train by a critic's TD errors (recipe `verifiable`), or by one of its controls.

    With `critic_stage` the critic is trained in RUN/critic, from the recipe's model, and the main
    stage starts from it; a stage that was interrupted is resumed.

    Raises:
        UserError: there is no value head to start from, and no stage to train one.
    """
    recipe = request.recipe
    if recipe.critic_stage is None:
        return run(request)

    def then(critic: Path) -> Recipe:
        config = recipe.model.model_copy(
            update={"path": critic, "architecture": None, "add_heads": None}
        )
        return recipe.model_copy(update={"model": config, "critic_stage": None})

    return run_two_stages(request, FirstStage("critic", critic_recipe(recipe), then))


def critic_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the first stage.

    Raises:
        UserError: the recipe has none.
    """
    stage = recipe.critic_stage
    if stage is None:
        raise UserError("critic_stage is not set")
    changes = training_of(recipe, "critic", stage.model_dump(exclude={"lam"}))
    value = recipe.objective.value.model_copy(update={"lam": stage.lam})
    if value.trunk == "frozen" and value.lm_coef == 0:
        changes["adapt"] = "full"  # all of it is the value head, which is never adapted
    objective = {"name": "critic", "options": {}, "value": value}
    return recipe.model_copy(
        update={
            "pipeline": "critic",
            "objective": recipe.objective.model_copy(update=objective),
            "training": recipe.training.model_copy(update=changes),
            "critic_stage": None,
        }
    )
