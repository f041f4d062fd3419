"""Learn from the tokens on which the model is furthest behind a reference model."""

from __future__ import annotations

from pathlib import Path

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.compose import run
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.stages import FirstStage, run_two_stages, training_of
from weighted_mtp.pipelines.training.trainer import TrainResult


def run_rho1(request: RunRequest) -> TrainResult:
    """Train all n heads on selected tokens (recipe `rho1`).

    With `reference_stage` the reference is trained in RUN/reference, by the `baseline` objective
    on correct rows, and scores every batch of the main stage. Both start from the recipe's model.
    """
    recipe = request.recipe
    if recipe.reference_stage is None:
        return run(request)

    def then(reference: Path) -> Recipe:
        rho1 = recipe.objective.rho1.model_copy(update={"reference_model": reference})
        objective = recipe.objective.model_copy(update={"rho1": rho1})
        return recipe.model_copy(update={"objective": objective, "reference_stage": None})

    return run_two_stages(request, FirstStage("reference", reference_recipe(recipe), then))


def reference_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the first stage.

    Raises:
        UserError: the recipe has none.
    """
    stage = recipe.reference_stage
    if stage is None:
        raise UserError("reference_stage is not set")
    changes = training_of(recipe, "reference", stage.model_dump())
    objective = recipe.objective.model_copy(update={"name": "baseline", "rows": "correct"})
    return recipe.model_copy(
        update={
            "pipeline": "baseline",
            "objective": objective,
            "training": recipe.training.model_copy(update=changes),
            "reference_stage": None,
        }
    )
