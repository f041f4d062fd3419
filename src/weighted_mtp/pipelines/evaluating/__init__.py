"""Evaluate models by running the programs they write; run experiments made of evaluations.

result = evaluate(EvaluationRequest(path=Path("runs/weighted")))
print(result.pass_at_1, result.by_family)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weighted_mtp.pipelines.evaluating.evaluator import EvaluationResult, evaluate
    from weighted_mtp.pipelines.evaluating.experiment import ExperimentRequest, run_experiment
    from weighted_mtp.pipelines.evaluating.request import EvaluationRequest

__all__ = [
    "EvaluationRequest",
    "EvaluationResult",
    "ExperimentRequest",
    "evaluate",
    "run_experiment",
]
_MODULES = {
    "EvaluationRequest": "request",
    "EvaluationResult": "evaluator",
    "ExperimentRequest": "experiment",
    "evaluate": "evaluator",
    "run_experiment": "experiment",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the evaluator needs torch, importing this package should not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
