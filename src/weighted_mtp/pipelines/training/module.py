"""The one module that is wrapped, sharded and called: tokens in, loss out.

Trunk, value head, heads and fused loss run inside a single `forward`, so DDP and FSDP see one
forward and one backward, and nothing happens behind their back.

Letters: B batch, S sequence, n future tokens, F fractions of a response, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.evaluation.head_quality import head_sums, read_heads
from weighted_mtp.losses import MTPLoss, mtp_loss
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.objectives import Objective, Pool, Sums
from weighted_mtp.pipelines.training.objectives.base import plain_targets
from weighted_mtp.pipelines.training.objectives.critic import mean_value
from weighted_mtp.runtime.pooling import gather_rows
from weighted_mtp.value_weighting.rho1_weighting import reference_per_head

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Of the response: where held-out values are read."""

Task = Literal["train", "score", "validate"]


class StepOutput(NamedTuple):
    """What one micro-batch gives.

    Attributes:
        loss: its share of the step's loss, differentiable; 0 unless training.
        sums: additive figures; `heads` is `[2, 3, n]`: correct rows and incorrect ones; summed
            cross-entropy, hits, counted targets. A validation adds the `HeadSums`. Where no head
            ran, `tokens` counts the response tokens.
        signal: what weights are decided from, if this was a scoring pass.
        probe: `[B, 2]` row index and cross-entropy of the whole response under head 1 (0 if no head
            ran), if this was a validation; with a value head `[B, 3 + F]`, mean value and values
            along it.
    """

    loss: Tensor
    sums: Sums
    signal: Tensor | None = None
    probe: Tensor | None = None


class TrainingModule(nn.Module):
    """An adapter under an objective.

    Args:
        compute_dtype: bfloat16 runs matrix products in it (autocast); the weights stay as they are.
        chunk_rows: rows of logits held at a time, see `losses`.
    """

    def __init__(
        self,
        adapter: MetaLlamaMTPAdapter,
        objective: Objective,
        compute_dtype: torch.dtype = torch.float32,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.objective = objective
        self.compute_dtype = compute_dtype
        self.chunk_rows = chunk_rows
        objective.prepare(adapter)

    def grouping_plan(self) -> list[str]:
        """The transformer's, by its names in this module."""
        return [f"adapter.transformer.{name}" for name in self.adapter.transformer.grouping_plan()]

    def forward(
        self,
        batch: Batch,
        task: Task = "train",
        denominators: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> StepOutput:
        """One micro-batch.

        Args:
            task: `train` gives a loss; `score` only the signal from which weights are decided;
                `validate` unweighted figures of all rows.
            denominators: `[n + 1]` D of the whole step, for `train`.
            weights: `[B, S, n]`, if they were decided over the whole step.
        """
        mixed = self.compute_dtype != torch.float32
        device_type = batch.tokens.device.type
        with torch.autocast(device_type, dtype=self.compute_dtype, enabled=mixed):
            if task == "score":
                return self._score(batch)
            if task == "validate":
                return self._validate(batch)
            if denominators is None:
                raise ValueError("training needs the denominators of the step")
            return self._train(batch, denominators, weights)

    def _train(self, batch: Batch, denominators: Tensor, weights: Tensor | None) -> StepOutput:
        objective = self.objective
        states = self._states(batch, all_heads=objective.runs_heads)
        values = self._values(states[0], batch)  # [B, S]
        targets = objective.targets(batch)
        scored, sums = None, Sums()
        if objective.signal != "none":
            if objective.signal == "cross_entropy":
                scored = self._cross_entropy(batch, states, targets)
            signal = scored.ce if scored is not None else values
            pool = pool_of(batch, signal, objective.needs_reference)
            if weights is None:
                weights = self._weights(pool)
            sums = objective.figures(pool, weights)

        loss = states[0].sum() * 0.0
        if objective.runs_heads:
            head_weights = objective.head_weights.to(targets.device)
            out = self._loss(batch, states, targets, denominators[:-1], weights, head_weights)
            loss = out.loss
            counted = (targets != IGNORE_INDEX) & (head_weights > 0)
            if scored is None and weights is not None:
                counted &= weights != 0  # others were skipped: their cross-entropy is not known
            seen = out if scored is None else scored
            sums["heads"] = _head_sums(seen.ce, seen.hit, counted, batch.correct)
        else:
            sums["tokens"] = batch.predicted.sum().double()
        if values is not None:
            value_loss, value_sums = objective.value_loss(batch, values, denominators[-1])
            loss = loss + objective.value_coef * value_loss
            sums |= value_sums
        return StepOutput(loss, sums)

    def _score(self, batch: Batch) -> StepOutput:
        by_values = self.objective.signal == "values"
        states = self._states(batch, all_heads=not by_values)
        signal = self._values(states[0], batch)
        if not by_values:
            signal = self._cross_entropy(batch, states, self.objective.targets(batch)).ce
        return StepOutput(states[0].new_zeros(()), {}, signal)

    def _validate(self, batch: Batch) -> StepOutput:
        objective = self.objective
        states = self._states(batch, all_heads=objective.runs_heads)
        values, sums = self._values(states[0], batch), Sums()
        columns = [batch.rows[:, None].double(), states[0].new_zeros(len(batch.rows), 1).double()]
        if objective.runs_heads:
            targets = plain_targets(batch, objective.heads)
            places = None if batch.packing is None else batch.packing.slots
            unembedding = self.adapter.transformer.output.weight
            seen = read_heads(states, unembedding, targets, places, self.chunk_rows)
            ce, hit = (seen.spread(x, *targets.shape[:2]) for x in (seen.ce, seen.hit))
            sums["heads"] = _head_sums(ce, hit, targets != IGNORE_INDEX, batch.correct)
            sums |= head_sums(seen, batch.correct[seen.rows // batch.length])._asdict()
            columns[1] = ce[:, :, 0].double().sum(1, keepdim=True)
        else:
            sums["tokens"] = batch.predicted.sum().double()
        if values is not None:
            if objective.group_size == 1:  # rows of a file are no pairs: those are found later
                sums |= objective.value_loss(batch, values, values.new_ones(()))[1]
            columns.append(mean_value(values, batch.labels)[:, None].double())
            columns.append(values_along(values, batch.labels).double())
        return StepOutput(states[0].new_zeros(()), sums, None, torch.cat(columns, dim=1))

    def _states(self, batch: Batch, all_heads: bool) -> list[Tensor]:
        """Normalised states of every position the model runs, the next-token path first."""
        n = self.objective.heads
        return read_batch(self.adapter.transformer, batch, all_heads and n > 1)[:n]

    def _values(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """`[B, S]`, in the value head's own format."""
        if not self.objective.needs_value_head or self.adapter.value_head is None:
            return None
        if not self.objective.gradient_to_trunk:
            hidden = hidden.detach()
        values: Tensor = self.adapter.value_head(hidden).squeeze(-1)
        return values if batch.packing is None else batch.packing.unpack(values, 0)

    def _weights(self, pool: Pool) -> Tensor:
        """Decided by this batch alone, or by the batches of all ranks together."""
        if not self.objective.pooled:
            return self.objective.weights(pool)
        everyone, own = gather_rows(pool)
        S = pool.signal.shape[1]
        return self.objective.weights(Pool.of(everyone))[own, :S]

    @torch.no_grad()
    def _cross_entropy(self, batch: Batch, states: Sequence[Tensor], targets: Tensor) -> MTPLoss:
        """Of every valid target, unweighted."""
        return self._loss(batch, states, targets, torch.ones(len(states)), None, None)

    def _loss(
        self,
        batch: Batch,
        states: Sequence[Tensor],
        targets: Tensor,
        denominators: Tensor,
        weights: Tensor | None,
        head_weights: Tensor | None,
    ) -> MTPLoss:
        unembedding = self.adapter.transformer.output.weight
        return batch_loss(
            batch,
            states,
            unembedding,
            targets,
            denominators,
            weights,
            head_weights,
            self.chunk_rows,
        )


def read_batch(transformer: Transformer, batch: Batch, all_heads: bool = False) -> list[Tensor]:
    """Normalised states `[B, S, D]` of each head, `[P, L, D]` of a packed batch: there a token sees
    its own document, from whose beginning positions count."""
    if batch.packing is None:
        return transformer.head_states(batch.tokens, return_all_heads=all_heads)
    packing = batch.packing
    mask = packing if packing.unpacks_cheaply else packing.mask
    return transformer.head_states(
        batch.tokens, return_all_heads=all_heads, positions=packing.positions, mask=mask
    )


def batch_loss(
    batch: Batch,
    states: Sequence[Tensor],
    unembedding: Tensor,
    targets: Tensor,
    denominators: Tensor,
    weights: Tensor | None = None,
    head_weights: Tensor | None = None,
    chunk_rows: int | None = None,
) -> MTPLoss:
    """`mtp_loss` of states from `read_batch`; targets and weights come, and cross-entropies go, as
    `[B, S, n]`, packed or not."""
    packing = batch.packing
    if packing is not None:
        targets = packing.pack(targets, IGNORE_INDEX)
        weights = None if weights is None else packing.pack(weights, 0)
    out = mtp_loss(states, unembedding, targets, denominators, weights, head_weights, chunk_rows)
    if packing is None:
        return out
    return MTPLoss(out.loss, packing.unpack(out.ce, 0), packing.unpack(out.hit, 0))


def pool_of(batch: Batch, signal: Tensor | None, with_reference: bool = True) -> Pool:
    """The rows of a batch with their signal."""
    if signal is None:
        raise ValueError("the objective weighs tokens by values, but there is no value head")
    reference = batch.reference if with_reference else None  # an empty batch always has one
    if reference is not None and signal.ndim == 3:
        # Batches are put together: they must agree on the heads, empty ones too.
        reference = reference_per_head(reference, signal.shape[2])
    return Pool(
        batch.labels,
        batch.correct,
        batch.truncated,
        batch.rows,
        signal.detach().float(),
        reference,
    )


def values_along(values: Tensor, labels: Tensor) -> Tensor:
    """`[B, F]` values after a quarter, half, three quarters and all of each response (all: the
    state that predicts EOS)."""
    before = (labels != IGNORE_INDEX)[:, 1:]  # [B, S] states that predict a response token
    last = (before.sum(1) - 1).clamp(min=0)  # m tokens, m states; state 0 precedes the response
    ordinals = torch.stack([(fraction * last).ceil().long() for fraction in FRACTIONS], dim=1)
    places = (~before).byte().argsort(dim=1, stable=True)  # those states first, in order
    return values.detach().gather(1, places.gather(1, ordinals))


def _head_sums(ce: Tensor, hit: Tensor, counted: Tensor, correct: Tensor) -> Tensor:
    """`[2, 3, n]` float64 from `[B, S, n]`."""
    groups = []
    for group in (correct, ~correct):
        mask = counted & group[:, None, None]
        parts = (ce.double() * mask, (hit & mask).double(), mask.double())
        groups.append(torch.stack([x.sum(dim=(0, 1)) for x in parts]))
    return torch.stack(groups)
