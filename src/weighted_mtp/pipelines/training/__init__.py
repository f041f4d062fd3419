"""The trainer, its step, and what every objective shares."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.training.module import TrainingModule as TrainingModule
    from weighted_mtp.pipelines.training.objectives import Objective as Objective
    from weighted_mtp.pipelines.training.objectives import make_objective as make_objective
    from weighted_mtp.pipelines.training.trainer import Trainer as Trainer
    from weighted_mtp.pipelines.training.trainer import TrainResult as TrainResult
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "module": "TrainingModule",
            "objectives": "Objective make_objective",
            "trainer": "Trainer TrainResult",
        },
    )
