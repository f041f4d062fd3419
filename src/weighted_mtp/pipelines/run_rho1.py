"""Learn from the tokens on which the model is furthest behind a reference model."""

from __future__ import annotations

from weighted_mtp.pipelines.compose import RunRequest, run
from weighted_mtp.pipelines.training.trainer import TrainResult


def run_rho1(request: RunRequest) -> TrainResult:
    """Train all n heads on selected tokens (recipe `rho1`)."""
    return run(request)
