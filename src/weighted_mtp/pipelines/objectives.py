"""What a run optimises. The trainer asks an objective three things and knows nothing else of it.

Letters: B batch, S sequence, n future tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from weighted_mtp.core.config import ObjectiveConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Row
from weighted_mtp.data.collators import Batch


class Objective:
    """Every token weighted alike. Subclasses change what they need.

    Attributes:
        heads: n, how many heads are trained.
        head_weights: `[n]` c_k, a constant of the loss.
        needs_value_head: the adapter must have one.
    """

    needs_value_head = False

    def __init__(self, heads: int, head_weights: Sequence[float] | None = None) -> None:
        self.heads = heads
        self.head_weights = torch.full((heads,), 1.0 / heads, dtype=torch.float64)
        if head_weights is not None:
            usable = all(0 <= c < math.inf for c in head_weights) and sum(head_weights) > 0
            if len(head_weights) != heads or not usable:
                raise UserError(
                    f"objective.head_weights {list(head_weights)}: give one weight of 0 or more "
                    f"for each of the {heads} heads, not all 0"
                )
            self.head_weights = torch.tensor(head_weights, dtype=torch.float64)

    def select(self, rows: Sequence[Row]) -> list[Row]:
        """The rows this objective learns from."""
        return list(rows)

    def weights(self, batch: Batch, targets: Tensor) -> Tensor | None:
        """w `[B, S, n]` for `targets` `[B, S, n]`; None means 1 everywhere."""
        return None


class CorrectOnly(Objective):
    """Supervised fine-tuning on the solutions that pass their tests."""

    def select(self, rows: Sequence[Row]) -> list[Row]:
        """Rows labelled correct.

        Raises:
            UserError: there are none.
        """
        kept = [row for row in rows if row["is_correct"]]
        if not kept:
            raise UserError(
                "no row has is_correct true; the baseline learns from correct solutions"
            )
        return kept


def make_objective(config: ObjectiveConfig, model_heads: int) -> Objective:
    """The objective a recipe names, for a model of `model_heads` heads.

    Raises:
        UserError: more heads are asked for than the model has.
    """
    heads = config.heads or model_heads
    if heads > model_heads:
        raise UserError(f"objective.heads is {heads}, but the model has {model_heads} heads")
    return CorrectOnly(heads, config.head_weights)
