"""Supervised fine-tuning of all heads on correct solutions, every token weighted alike."""

from __future__ import annotations

from weighted_mtp.pipelines.compose import run
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.training.trainer import TrainResult


def run_baseline(request: RunRequest) -> TrainResult:
    """Train all n heads uniformly (recipe `baseline`)."""
    return run(request)
