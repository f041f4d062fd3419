"""Objectives by name. A new weighting scheme is one small file here, one line below, one recipe."""

from __future__ import annotations

from collections.abc import Mapping

from weighted_mtp.core.config.sections import ObjectiveConfig, ObjectiveName
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.training.objectives.base import Objective, Pool, Sums
from weighted_mtp.pipelines.training.objectives.critic import Critic, PairwiseCritic, ValueObjective
from weighted_mtp.pipelines.training.objectives.rho1 import Rho1
from weighted_mtp.pipelines.training.objectives.supervised import CorrectOnly, Uniform
from weighted_mtp.pipelines.training.objectives.td_weighted import (
    RandomMatched,
    Shuffled,
    Verifiable,
)

OBJECTIVES: Mapping[ObjectiveName, type[Objective]] = {
    "baseline": CorrectOnly,
    "ntp": CorrectOnly,
    "uniform": Uniform,
    "critic": Critic,
    "verifiable": Verifiable,
    "random_matched": RandomMatched,
    "shuffled": Shuffled,
    "rho1": Rho1,
}


def make_objective(config: ObjectiveConfig, model_heads: int, seed: int = 0) -> Objective:
    """The objective a recipe names, for a model of `model_heads` heads.

    Raises:
        UserError: settings that do not fit the model or each other.
    """
    heads = config.heads or model_heads
    if heads > model_heads:
        raise UserError(f"objective.heads is {heads}, but the model has {model_heads} heads")
    kind = OBJECTIVES[config.name]
    if config.value.loss == "pairwise":
        if config.name != "critic":
            raise UserError(
                f"objective.value.loss pairwise trains a critic; {config.name} needs mse"
            )
        kind = PairwiseCritic
    return kind(config, heads, seed)


__all__ = ["OBJECTIVES", "Objective", "Pool", "Sums", "ValueObjective", "make_objective"]
