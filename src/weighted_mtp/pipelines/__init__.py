"""Compositions of data, model and objective on the one trainer."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.request import RunRequest as RunRequest
    from weighted_mtp.pipelines.train import run_pipeline as run_pipeline
    from weighted_mtp.pipelines.train import run_request as run_request
    from weighted_mtp.pipelines.training.trainer import TrainResult as TrainResult
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "request": "RunRequest",
            "train": "run_pipeline run_request",
            "training.trainer": "TrainResult",
        },
    )
