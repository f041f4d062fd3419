"""The first stage: a value head that tells, after every token, how likely the program is right."""

from __future__ import annotations

from weighted_mtp.pipelines.compose import run
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.training.trainer import TrainResult


def run_critic(request: RunRequest) -> TrainResult:
    """Train the value head, and as much of the trunk as the recipe says (recipe `critic`)."""
    return run(request)
