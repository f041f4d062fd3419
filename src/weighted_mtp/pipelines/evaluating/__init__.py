"""Evaluate models by running the programs they write.

result = evaluate(EvaluationRequest(path=Path("runs/weighted")))
print(result.pass_at_1, result.by_family)
"""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.evaluating.evaluator import EvaluationResult as EvaluationResult
    from weighted_mtp.pipelines.evaluating.evaluator import evaluate as evaluate
    from weighted_mtp.pipelines.evaluating.request import EvaluationRequest as EvaluationRequest
    from weighted_mtp.pipelines.evaluating.writer import ModelWriter as ModelWriter
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "evaluator": "EvaluationResult evaluate",
            "request": "EvaluationRequest",
            "writer": "ModelWriter",
        },
    )
