"""Focal loss (Lin et al. 2017, arXiv 1708.02002) as an objective that is not part of the project.

A token that a head predicts with probability p has the weight (1 − p)^gamma, so that the loss
focuses on the tokens that are still hard. `recipe.yaml` names this file; run from the repository:

    weighted-mtp train --recipe examples/objective_from_outside/recipe.yaml --preset micro

An installed package offers the same class by name, with an entry point in its pyproject.toml:

    [project.entry-points."weighted_mtp.objectives"]
    focal = "my_package.objective:Focal"
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from weighted_mtp.pipelines.training.objectives import Objective, Pool, Section, Weighed


class Focal(Objective):
    """Every token of the rows counts by (1 − p)^gamma."""

    class Options(Section):
        """What a recipe sets under `objective.options`; unknown keys and bad values are refused."""

        gamma: NonNegativeFloat = 2.0

    # Other signals: "values" of a critic, which needs needs_value_head = True.
    signal: ClassVar[Literal["none", "values", "cross_entropy"]] = "cross_entropy"

    def weigh(self, pool: Pool) -> Weighed:
        """Return weights `[rows, positions, heads]`, and sums `[rows, …]` for the log."""
        wrong = -torch.expm1(-pool.signal)  # 1 − p, exact also where p is close to 1
        weights = torch.where(pool.valid, wrong**self.options.gamma, 0.0)
        sums = torch.stack([weights.sum((1, 2)), pool.valid.sum((1, 2))], dim=1)  # [rows, 2]
        return Weighed(weights, {"focal": sums})

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Turn the sums over all rows of a step into figures; a validation has none."""
        if "focal" not in sums:
            return {}
        total, count = sums["focal"].tolist()
        return {"focal": {"mean_weight": total / count if count else math.nan}}
