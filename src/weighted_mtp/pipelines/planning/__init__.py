"""Memory of a training, by arithmetic, before anything is built."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.planning.estimate import Estimate as Estimate
    from weighted_mtp.pipelines.planning.memory import Memory as Memory
    from weighted_mtp.pipelines.planning.memory import peak_memory as peak_memory
    from weighted_mtp.pipelines.planning.plan import Choice as Choice
    from weighted_mtp.pipelines.planning.plan import Plan as Plan
    from weighted_mtp.pipelines.planning.plan import PlanRequest as PlanRequest
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {"estimate": "Estimate", "memory": "Memory peak_memory", "plan": "Choice Plan PlanRequest"},
    )
