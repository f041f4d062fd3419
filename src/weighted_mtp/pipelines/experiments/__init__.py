"""Controlled comparisons of objectives: a plan, a choice on validation, seeds, figures. Studies
train small tasks of papers from scratch, by the same rules.

result = run_experiment(ExperimentRequest(Path("runs/scarce"), regime="scarce"))
print(result["contrast"]["loss"])
result = run_study(StudyRequest(Path("runs/star"), STUDIES["star-graph"]))
print(result["contrast"]["difference"])
"""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.experiments.request import ExperimentRequest as ExperimentRequest
    from weighted_mtp.pipelines.experiments.run import run_experiment as run_experiment
    from weighted_mtp.pipelines.experiments.studies import STUDIES as STUDIES
    from weighted_mtp.pipelines.experiments.study import StudyRequest as StudyRequest
    from weighted_mtp.pipelines.experiments.study_run import run_study as run_study
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "request": "ExperimentRequest",
            "run": "run_experiment",
            "studies": "STUDIES",
            "study": "StudyRequest",
            "study_run": "run_study",
        },
    )
