"""Controlled comparisons of objectives: a plan, a choice on validation, seeds, figures.

result = run_experiment(ExperimentRequest(Path("runs/scarce"), regime="scarce"))
print(result["contrast"]["loss"])
"""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.experiments.plan import ExperimentRequest as ExperimentRequest
    from weighted_mtp.pipelines.experiments.run import run_experiment as run_experiment
else:
    __all__, __getattr__, __dir__ = exports(
        __name__, {"plan": "ExperimentRequest", "run": "run_experiment"}
    )
