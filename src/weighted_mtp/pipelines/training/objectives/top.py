"""Token-order prediction: beside what comes next, learn in which order the next tokens come.

Letters: B batch, S sequence, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from weighted_mtp.core.config.section import PositiveInt, Section
from weighted_mtp.core.config.sections import PipelineName
from weighted_mtp.data.batches import Batch
from weighted_mtp.losses import order_targets, token_order_loss
from weighted_mtp.pipelines.training.objectives.base import CorrectOnly, Sums


class TopOptions(Section):
    """Settings of `objective.options`.

    Attributes:
        window: tokens ahead that are ranked. More than about twenty change next to nothing.
        coef: factor of the order loss, added to the loss of the heads.
    """

    window: Annotated[PositiveInt, Field(le=4096)] = 32
    coef: NonNegativeFloat = 1.0


class Top(CorrectOnly):
    """The loss of the heads, plus `coef` times the mean loss of a second unembedding of head 1's
    state, which ranks the tokens to come (Zuhri et al. 2025, arXiv 2508.19228). It is divided by
    the targets of head 1 in the whole step, and only their positions rank: a prompt ranks nothing.
    """

    Options: ClassVar[type[Section]] = TopOptions
    pipelines: ClassVar[tuple[PipelineName, ...]] = ("baseline", "ntp")
    needs_order_head: ClassVar[bool] = True

    def order_loss(
        self, batch: Batch, hidden: Tensor, weight: Tensor, denominator: Tensor
    ) -> tuple[Tensor, Sums]:
        targets = order_targets(batch.labels, batch.length, self.options.window)
        if batch.packing is not None:
            hidden = batch.packing.unpack(hidden, 0)
        total = token_order_loss(hidden, weight, targets)
        sums = {"order": total.detach().double(), "order_count": targets.there.sum().double()}
        return self.options.coef * total / denominator.clamp(min=1).to(total), sums

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Add `order_loss`, nats per position."""
        if not float(sums.get("order_count", 0.0)):
            return {}
        return {"order_loss": float(f"{float(sums['order'] / sums['order_count']):.7g}")}
