"""What a run optimises: the project's objectives, and the registry that others add to."""

from __future__ import annotations

from weighted_mtp.core.config.section import Section
from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.training.objectives.base import (
    CorrectOnly,
    NextToken,
    Objective,
    Pool,
    Sums,
    Uniform,
    Weighed,
)
from weighted_mtp.pipelines.training.objectives.critic import Critic, PairwiseCritic, ValueObjective
from weighted_mtp.pipelines.training.objectives.dft import DFT
from weighted_mtp.pipelines.training.objectives.distil import Distil
from weighted_mtp.pipelines.training.objectives.label_weighted import LabelWeighted
from weighted_mtp.pipelines.training.objectives.oracle import Oracle
from weighted_mtp.pipelines.training.objectives.registry import (
    find_objective,
    register_objective,
    resolve_objective,
)
from weighted_mtp.pipelines.training.objectives.rho1 import Rho1
from weighted_mtp.pipelines.training.objectives.surprise import Surprise
from weighted_mtp.pipelines.training.objectives.td_weighted import (
    RandomMatched,
    Shuffled,
    Verifiable,
)
from weighted_mtp.pipelines.training.objectives.top import Top

register_objective("baseline")(CorrectOnly)
register_objective("ntp")(NextToken)
register_objective("uniform")(Uniform)
register_objective("dft")(DFT)
register_objective("surprise")(Surprise)
register_objective("label_weighted")(LabelWeighted)
register_objective("oracle")(Oracle)
register_objective("top")(Top)
register_objective("critic")(Critic)
register_objective("verifiable")(Verifiable)
register_objective("random_matched")(RandomMatched)
register_objective("shuffled")(Shuffled)
register_objective("rho1")(Rho1)
register_objective("distil")(Distil)


def make_objective(config: ObjectiveConfig, model_heads: int, seed: int = 0) -> Objective:
    """Build the objective a recipe names, for a model of `model_heads` heads.

    Raises:
        UserError: no such objective, or settings that do not fit the model or each other.
    """
    heads = config.heads or model_heads
    if heads > model_heads:
        raise UserError(f"objective.heads is {heads}, but the model has {model_heads} heads")
    kind = find_objective(config.name)
    if config.value.loss == "pairwise":
        if kind is not Critic:
            raise UserError(
                f"objective.value.loss pairwise trains a critic; {config.name} needs mse"
            )
        kind = PairwiseCritic
    return kind(config, heads, seed)


__all__ = [
    "Objective",
    "Pool",
    "Rho1",
    "Section",
    "Sums",
    "ValueObjective",
    "Verifiable",
    "Weighed",
    "find_objective",
    "make_objective",
    "register_objective",
    "resolve_objective",
]
