"""What a run optimises, as the trainer sees it. A new scheme is one small file beside this one.

Letters: B batch, R rows of a pool, S sequence, n future tokens (heads), m micro-batches of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.data.rows.metadata import Indices, Metadata
from weighted_mtp.losses import count_targets, shift_labels
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter

Sums = dict[str, Tensor]
"""Figures that add up over micro-batches and ranks, float64."""


class Pool(NamedTuple):
    """Rows whose token weights are decided together: a batch, that of all ranks, or a whole step.

    Attributes:
        labels: `[R, S + 1]` as in a batch.
        correct, truncated, rows: `[R]`.
        signal: what the weights come from: values `[R, S]`, or the policy's cross-entropy
            `[R, S, n]`.
        reference: `[R, S + 1, n]` (or without n) the reference model's cross-entropy of each token
            under each head, if there is one.
    """

    labels: Tensor
    correct: Tensor
    truncated: Tensor
    rows: Tensor
    signal: Tensor
    reference: Tensor | None

    @classmethod
    def of(cls, fields: Sequence[Tensor | None]) -> Pool:
        """From its fields in order."""
        return cls(*fields)  # type: ignore[arg-type]  # only the last may be None

    @property
    def mask(self) -> Tensor:
        """`[R, S + 1]` true on response tokens, but for one at position 0: no state precedes it and
        no head predicts it, so its weight would only spoil means and permutations."""
        mask = self.labels != IGNORE_INDEX
        mask[:, 0] = False
        return mask


class Objective:
    """Every token weighted alike. Subclasses change what they need.

    Attributes:
        heads: n, how many heads are trained.
        head_weights: `[n]` c_k of the present step.
        needs_value_head: the adapter must have one.
        needs_reference: rows must carry a reference model's losses.
        runs_heads: False if the language-model loss has no part in it.
        gradient_to_trunk: whether the value loss reaches what the value head reads.
        value_coef: factor of the value loss.
        signal: what `weights` is computed from; "none" means every weight is 1.
        pooled: `weights` depends on the whole pool, not on each row by itself.
        group_size: rows that are drawn together (2 for pairs).
    """

    needs_value_head: ClassVar[bool] = False
    needs_reference = False
    default_rows: ClassVar[Literal["correct", "all"]] = "all"
    signal: ClassVar[Literal["none", "values", "cross_entropy"]] = "none"
    pooled = False
    runs_heads = True
    gradient_to_trunk = False
    value_coef = 0.0
    group_size = 1

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        self.config, self.heads, self.seed = config, heads, seed
        self.step, self.progress = 0, 0.0
        self._start = _checked(config.head_weights, heads, "head_weights")
        self._end = _checked(config.final_head_weights, heads, "final_head_weights")
        if self._end is not None and self._start is None:
            raise UserError("objective.final_head_weights needs objective.head_weights")
        fractions = config.head_fractions
        if fractions is not None and len(fractions) != heads - 1:
            raise UserError(
                f"objective.head_fractions {list(fractions)}: give one for each head after the "
                f"first, {heads - 1} in all"
            )
        if config.head_curriculum != "none":
            self._check_curriculum()
        self.head_weights = self._head_weights()

    @property
    def scores_whole_steps(self) -> bool:
        """Weights are decided over all micro-batches, which takes a scoring pass."""
        return self.pooled and self.config.scope == "step"

    # --- data ---

    def candidates(self, metadata: Metadata) -> Indices:
        """The rows this objective learns from.

        Raises:
            UserError: there are none.
        """
        if (self.config.rows or self.default_rows) == "all":
            return np.arange(len(metadata))
        kept = np.flatnonzero(metadata.is_correct)
        if not len(kept):
            raise UserError(
                f"no row has is_correct true; the {self.config.name} objective learns from "
                "correct solutions"
            )
        return kept

    def prepare(self, adapter: MetaLlamaMTPAdapter) -> None:
        """Freeze what is not trained: heads that get no gradient would keep DDP waiting."""
        for head in list(adapter.transformer.extra_heads)[self.heads - 1 :]:
            head.requires_grad_(False)

    # --- a step ---

    def begin_step(self, step: int, steps: int) -> None:
        """Move every schedule to step 0 … steps − 1."""
        self.step, self.progress = step, step / max(1, steps - 1)
        self.head_weights = self._head_weights()

    def targets(self, batch: Batch) -> Tensor:
        """`[B, S, n]` what each trained head should predict."""
        return plain_targets(batch, self.heads)

    def counts(self, batch: Batch) -> Tensor:
        """`[n + 1]` float64: valid targets of each head, and what the value loss is divided by."""
        per_head = count_targets(self.targets(batch))
        return torch.cat([per_head, self.value_count(batch).double().view(1)])

    def value_count(self, batch: Batch) -> Tensor:
        """How many terms this batch adds to the value loss: response tokens with a state before."""
        return batch.predicted.sum()

    def denominators(self, counts: Tensor) -> Tensor:
        """D `[n + 1]` of the step from the counts `[m, n + 1]` of its micro-batches (all ranks)."""
        return counts.sum(0)

    def weights(self, pool: Pool) -> Tensor:
        """w `[R, S, n]`, no gradient; asked for only if there is a signal."""
        raise NotImplementedError

    def value_loss(self, batch: Batch, values: Tensor, denominator: Tensor) -> tuple[Tensor, Sums]:
        """The value head's share of the loss, from its values `[B, S]`."""
        return values.sum() * 0.0, {}

    def figures(self, pool: Pool, weights: Tensor) -> Sums:
        """Additive statistics of a batch's weights."""
        return {}

    def end_step(self, sums: Mapping[str, Tensor]) -> None:
        """After the optimizer step, with the sums of all micro-batches and ranks."""

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Figures for the log."""
        return {}

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Whatever later steps depend on (numbers only)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""

    def _head_weights(self) -> Tensor:
        """c `[n]` of the present step."""
        return self._head_weights_at(self.progress)

    def _head_weights_at(self, progress: float) -> Tensor:
        """c `[n]`: constant, moving, or a curriculum's (Aynetdinov & Akbik 2025, arXiv 2505.22757:
        a head is added, or dropped, at each fraction of the training). Whatever heads a curriculum
        leaves active, their c_k are scaled so that their sum is that of all heads."""
        kind = self.config.head_curriculum
        weights = torch.full((self.heads,), 1.0 / self.heads, dtype=torch.float64)
        if self._start is not None:
            end = self._start if self._end is None else self._end
            weights = torch.lerp(self._start, end, progress)
        if kind == "none":
            return weights
        changes = self._curriculum_fractions()
        active = [progress >= x if kind == "forward" else progress < x for x in changes]
        kept = weights * torch.tensor([True, *active])
        return kept * (weights.sum() / kept.sum())

    def _curriculum_fractions(self) -> Sequence[float]:
        """Where in the training heads 2 … n are added, or dropped."""
        if self.config.head_fractions is not None:
            return self.config.head_fractions
        fractions = [k / self.heads for k in range(1, self.heads)]
        return fractions if self.config.head_curriculum == "forward" else fractions[::-1]

    def _check_curriculum(self) -> None:
        """Refuse a curriculum under which the active heads weigh nothing at some time.

        Raises:
            UserError: they do.
        """
        for progress in (0.0, *self._curriculum_fractions(), 1.0):
            if not self._head_weights_at(progress).isfinite().all():  # 0 / 0
                raise UserError(
                    f"objective.head_curriculum {self.config.head_curriculum}: at {progress:.0%} "
                    "of the training all active heads have weight 0; give head 1 a weight in "
                    "objective.head_weights (and final_head_weights)"
                )


def plain_targets(batch: Batch, heads: int) -> Tensor:
    """`[B, S, n]` the tokens ahead of each position that the model runs, −100 past the end."""
    targets = shift_labels(batch.labels, heads, length=batch.length)
    if batch.packing is None:
        return targets
    return targets.masked_fill(~batch.packing.filled.unsqueeze(2), IGNORE_INDEX)


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
