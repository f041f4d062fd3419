"""How much each head counts in the loss, and how that moves over the training.

Letters: n future tokens (heads).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.core.errors import UserError


class HeadWeights:
    """The c_k of a recipe: constant, moving, or by a curriculum (Aynetdinov & Akbik 2025, arXiv
    2505.22757: a head is added, or dropped, at each fraction of the training).

    Raises:
        UserError: settings that do not fit the number of heads or each other.
    """

    def __init__(self, config: ObjectiveConfig, heads: int) -> None:
        self.heads, self.curriculum = heads, config.head_curriculum
        start = _checked(config.head_weights, heads, "head_weights")
        end = _checked(config.final_head_weights, heads, "final_head_weights")
        if end is not None and start is None:
            raise UserError("objective.final_head_weights needs objective.head_weights")
        self._start = torch.full((heads,), 1.0 / heads, dtype=torch.float64)
        if start is not None:
            self._start = start
        self._end = self._start if end is None else end
        fractions = config.head_fractions
        if fractions is None:
            fractions = tuple(k / heads for k in range(1, heads))
            fractions = fractions if self.curriculum == "forward" else fractions[::-1]
        elif len(fractions) != heads - 1:
            raise UserError(
                f"objective.head_fractions {list(fractions)}: give one for each head after the "
                f"first, {heads - 1} in all"
            )
        self._fractions = fractions
        if self.curriculum == "none":
            return
        for progress in (0.0, *fractions, 1.0):
            if not self.at(progress).isfinite().all():  # 0 / 0
                raise UserError(
                    f"objective.head_curriculum {self.curriculum}: at {progress:.0%} of the "
                    "training all active heads have weight 0; give head 1 a weight in "
                    "objective.head_weights (and final_head_weights)"
                )

    def at(self, progress: float) -> Tensor:
        """Return c `[n]` at a fraction of the training. The c_k of the active heads are scaled so
        that they sum to those of all heads."""
        weights = torch.lerp(self._start, self._end, progress)
        if self.curriculum == "none":
            return weights
        forward = self.curriculum == "forward"
        active = [progress >= x if forward else progress < x for x in self._fractions]
        kept = weights * torch.tensor([True, *active])
        return kept * (weights.sum() / kept.sum())


def _checked(weights: Sequence[float] | None, heads: int, name: str) -> Tensor | None:
    if weights is None:
        return None
    usable = all(0 <= c < math.inf for c in weights) and sum(weights) > 0
    if len(weights) != heads or not usable:
        raise UserError(
            f"objective.{name} {list(weights)}: give one weight of 0 or more for each of the "
            f"{heads} heads, not all 0"
        )
    return torch.tensor(weights, dtype=torch.float64)
