"""Self-distillation: teach heads 2 … n to draft what head 1 would write.

Letters: B batch, S sequence, n future tokens (heads).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weighted_mtp.core.config.sections import ObjectiveConfig, PipelineName
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.data.batches import Batch
from weighted_mtp.data.tokens.row_tokens import Array, TokenisedRows
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.losses import (
    Distillation,
    LossTerms,
    MTPLoss,
    distillation_loss,
    mask_untaught,
)
from weighted_mtp.models.meta_mtp.draft_vocabulary import choose_ids
from weighted_mtp.pipelines.training.objectives.base import Objective, Sums, plain_targets
from weighted_mtp.runtime import distributed

log = get_logger(__name__)


class Distil(Objective):
    """Head k at t learns from head 1 at t + k − 1, in the same forward pass. Rows right and wrong
    alike by default: what is to be drafted is head 1's text, good or bad.

    Raises:
        UserError: there is no head to teach, or head weights are given in another way too.
    """

    pipelines: ClassVar[tuple[PipelineName, ...]] = ("baseline",)
    learns_from_head_1: ClassVar[bool] = True

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        if heads < 2:
            raise UserError(
                "objective distil teaches heads 2 to n, and n is 1; give a model without more "
                "heads some: --set model.add_heads=3"
            )
        given = (config.head_weights, config.final_head_weights, config.head_fractions)
        if config.head_curriculum != "none" or any(x is not None for x in given):
            raise UserError(
                "objective distil weighs its heads by objective.distil.beta; leave out "
                "objective.head_weights, final_head_weights, head_curriculum and head_fractions"
            )
        super().__init__(config, heads, seed)
        chosen = config.distil.model_dump(exclude={"beta", "vocabulary"})
        self.kind = Distillation(**chosen)
        self.vocabulary: Tensor | None = None

    def read_rows(self, rows: TokenisedRows, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Choose the tokens that are compared, if not all are."""
        most = self.config.distil.vocabulary
        if most is None:
            return
        counts = rows.target_counts(vocab_size)
        self.vocabulary = frequent_tokens(counts, most, tokenizer.stop_ids)
        if distributed.is_main_process():
            log.info(
                "objective.distil.vocabulary: %s of %s tokens, which are %.2f %% of the targets",
                f"{len(self.vocabulary):,}",
                f"{vocab_size:,}",
                100 * counts[self.vocabulary.numpy()].sum() / max(1, counts.sum()),
            )

    def draft_ids(self) -> Tensor | None:
        """What heads were not taught they need not draft."""
        return self.vocabulary

    def make_targets(self, batch: Batch) -> Tensor:
        """`[B, S, n]` as ever, without those whose teacher the batch does not contain: the last
        positions of a window bring tokens that the model does not read."""
        targets = plain_targets(batch, self.heads)
        if batch.packing is None:
            filled = torch.ones_like(targets[..., 0], dtype=torch.bool)
        else:
            filled = batch.packing.filled
        return mask_untaught(targets, filled)

    def compared(self, targets: Tensor) -> Tensor:
        known = super().compared(targets)
        if self.vocabulary is not None:
            known &= torch.isin(targets, self.vocabulary.to(targets.device))
        return known

    def loss(
        self,
        states: Sequence[Tensor],
        unembedding: Tensor,
        terms: LossTerms,
        chunk_rows: int | None = None,
    ) -> MTPLoss:
        vocabulary = self.vocabulary
        if vocabulary is not None:
            vocabulary = self.vocabulary = vocabulary.to(unembedding.device)
        return distillation_loss(states, unembedding, terms, self.kind, chunk_rows, vocabulary)

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Add `distil_loss`, the mean of what heads 2 … n are taught by."""
        if "taught" not in sums:
            return {}
        total, count = (x.tolist()[1:] for x in sums["taught"])
        means = [x / m if m else float("nan") for x, m in zip(total, count, strict=True)]
        return {"distil_loss": [float(f"{x:.7g}") for x in means]}

    def state_dict(self) -> dict[str, Any]:
        if self.vocabulary is None:
            return super().state_dict()
        return {"vocabulary": self.vocabulary.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.config.distil.vocabulary is not None:
            self.vocabulary = torch.tensor(state["vocabulary"], dtype=torch.int64)

    def _head_weights(self) -> Tensor:
        beta = self.config.distil.beta
        weights = torch.tensor([beta**k for k in range(self.heads)], dtype=torch.float64)
        weights[0] = 0.0
        return weights / weights.sum()


def frequent_tokens(counts: Array, most: int, stop_ids: Collection[int]) -> Tensor:
    """The ids of the `most` tokens with the highest counts `[V]`, ascending: those that end a text,
    and others that occur. Of equal counts the lower id comes first."""
    ends = [token for token in stop_ids if token < len(counts)]
    others = int((np.delete(counts, ends) > 0).sum())
    size = max(len(ends), min(most, len(ends) + others))
    ids = choose_ids(torch.from_numpy(counts), size, ends)
    assert ids is not None  # only a size that is to be found may be none
    return ids


def taught_sums(taught: Tensor, counted: Tensor) -> Sums:
    """Sum the distillation loss `[B, S, n]` to `[2, n]`: total and count of each head."""
    total = (taught.double() * counted).sum(dim=(0, 1))
    return {"taught": torch.stack([total, counted.sum(dim=(0, 1)).double()])}
