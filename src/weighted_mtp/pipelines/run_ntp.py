"""Next-token prediction: the same model size and data with a single head (n = 1)."""

from __future__ import annotations

from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.compose import run
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.training.trainer import TrainResult


def run_ntp(request: RunRequest) -> TrainResult:
    """Train the next-token head alone (recipe `ntp`). From scratch the model has n = 1 and as many
    blocks in all; a checkpoint with more heads keeps them untouched.

    Raises:
        UserError: the recipe asks for more than one head.
    """
    if request.recipe.objective.heads != 1:
        raise UserError("the ntp pipeline trains one head: set objective.heads to 1")
    return run(request)
