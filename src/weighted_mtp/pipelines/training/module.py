"""The module that is wrapped, sharded and called: tokens in, loss out.

Trunk, value head, heads and fused loss run inside a single `forward`, because DDP and FSDP hook
into one forward and one backward pass of the wrapped module.

Letters: B batch, S sequence, n future tokens, F fractions of a response, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch, Packing
from weighted_mtp.evaluation.head_quality import head_sums, read_heads
from weighted_mtp.losses import LossTerms, MTPLoss, loss_of_terms
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.objectives import Objective, Pool, Sums
from weighted_mtp.pipelines.training.objectives.base import plain_targets, targets_of
from weighted_mtp.pipelines.training.objectives.critic import mean_value
from weighted_mtp.pipelines.training.objectives.distil import taught_sums
from weighted_mtp.runtime.pooling import gather_rows
from weighted_mtp.value_weighting.rho1_weighting import reference_per_head

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Fractions of the response at which held-out values are read."""

Task = Literal["train", "score", "validate", "read"]

HeadLoss = Callable[[Sequence[Tensor], Tensor, LossTerms, int | None], MTPLoss]
"""`loss_of_terms`, or what an objective has in its place."""


class StepOutput(NamedTuple):
    """The result of one micro-batch.

    Attributes:
        loss: its share of the step's loss, differentiable; 0 unless training.
        sums: additive figures; `heads` is `[2, 3, n]`: correct rows and incorrect ones; summed
            cross-entropy, hits, counted targets. A validation adds the `HeadSums`. Where no head
            ran, `tokens` counts the response tokens.
        signal: what weights are decided from, in a scoring pass.
        probe: `[B, 2]` row index and cross-entropy of the whole response under head 1 (0 if no head
            ran), if this was a validation; with a value head `[B, 3 + F]`, mean value and values
            along it.
        states: `[B, S, D]` of head 1, `[P, L, D]` if packed, where they were asked for.
    """

    loss: Tensor
    sums: Sums
    signal: Tensor | None = None
    probe: Tensor | None = None
    states: Tensor | None = None


class TrainingModule(nn.Module):
    """An adapter under an objective.

    Args:
        compute_dtype: bfloat16 runs matrix products in it (autocast); the weights stay as they are.
        chunk_rows: rows of logits held at a time, see `losses`.

    Attributes:
        drops: the adapters drop some of their inputs, in training passes only.
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
        self.drops = False
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
        """Run one micro-batch.

        Args:
            task: `train` gives a loss; `score` only the signal from which weights are decided;
                `validate` unweighted figures of all rows; `read` runs all heads, for their states.
            denominators: `[n + 1]` D of the whole step, for `train`.
            weights: `[B, S, n]`, if they were decided over the whole step. The scoring pass has
                then given the figures that come from the signal, and they are not given again.
        """
        if self.drops:  # weights and held-out figures come from the model that is kept
            self.train(task == "train")
        mixed = self.compute_dtype != torch.float32
        device_type = batch.tokens.device.type
        with torch.autocast(device_type, dtype=self.compute_dtype, enabled=mixed):
            if task == "score":
                return self._score(batch)
            if task == "validate":
                return self._validate(batch)
            if task == "read":
                states = self._states(batch, all_heads=True)
                return StepOutput(states[0].new_zeros(()), {}, states=states[0])
            if denominators is None:
                raise ValueError("training needs the denominators of the step")
            return self._train(batch, denominators, weights)

    def _train(self, batch: Batch, denominators: Tensor, weights: Tensor | None) -> StepOutput:
        objective = self.objective
        seen, wanted = self._places(batch)
        states = self._states(batch, objective.runs_heads, wanted)
        values = self._values(states[0], batch)  # [B, S]
        sums = Sums()
        if objective.signal != "none" and weights is None:
            signal, sums = self._signal(batch, seen, states, values)
            weights, figures = self._weigh(pool_of(batch, signal, objective.needs_reference))
            sums |= figures

        loss = states[0].sum() * 0.0
        if objective.runs_heads:
            targets, head_weights = objective.sampled(batch)
            terms = LossTerms(targets, denominators[:-1], weights, head_weights)
            out = self._loss(seen, states, terms, objective.loss)
            loss = out.loss
            if objective.signal != "cross_entropy":
                counted = targets != IGNORE_INDEX
                if out.taught is None:
                    counted &= head_weights > 0
                else:  # head 1 teaches: its cross-entropy is known too
                    sums |= taught_sums(out.taught, counted)
                if weights is not None:
                    counted &= weights != 0  # the loss skips the others: their CE is not known
                counted &= objective.compared(targets)
                sums["heads"] = _head_sums(out.ce, out.hit, counted, batch.correct)
        else:
            sums["tokens"] = batch.predicted.sum().double()
        if values is not None:
            value_loss, value_sums = objective.value_loss(batch, values, denominators[-1])
            loss = loss + objective.value_coef * value_loss
            sums |= value_sums
        if objective.needs_order_head and self.adapter.order_head is not None:
            weight = self.adapter.order_head.weight
            order_loss, order_sums = objective.order_loss(batch, states[0], weight, denominators[0])
            loss = loss + order_loss
            sums |= order_sums
        return StepOutput(loss, sums)

    def _score(self, batch: Batch) -> StepOutput:
        seen, wanted = self._places(batch)
        states = self._states(batch, self.objective.signal == "cross_entropy", wanted)
        signal, sums = self._signal(batch, seen, states, self._values(states[0], batch))
        return StepOutput(states[0].new_zeros(()), sums, signal)

    @torch.no_grad()
    def _signal(
        self, batch: Batch, seen: Batch, states: Sequence[Tensor], values: Tensor | None
    ) -> tuple[Tensor, Sums]:
        """What the weights come from; with cross-entropies the head figures of all tokens too,
        since the weighted loss knows only those of the tokens it keeps."""
        objective = self.objective
        if objective.signal == "labels":
            return torch.zeros_like(batch.labels[:, 1 : 1 + batch.length], dtype=torch.float32), {}
        if objective.signal == "values":
            if values is None:
                raise ValueError("the objective weighs tokens by values, but has no value head")
            return values, {}
        targets = objective.targets(batch)
        ones = torch.ones(len(states))
        out = self._loss(seen, states, LossTerms(targets, ones))
        counted = (targets != IGNORE_INDEX) & (objective.head_weights.to(targets.device) > 0)
        return out.ce, {"heads": _head_sums(out.ce, out.hit, counted, batch.correct)}

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
            if objective.group_size == 1:  # pairs are formed over all held-out rows, in `step`
                sums |= objective.value_loss(batch, values, values.new_ones(()))[1]
            columns.append(mean_value(values, batch.labels)[:, None].double())
            columns.append(values_along(values, batch.labels).double())
        return StepOutput(states[0].new_zeros(()), sums, None, torch.cat(columns, dim=1))

    def _places(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """Where the heads have to run, if that is not everywhere: the batch as it is packed at
        those places alone, and the places."""
        if not self.objective.reads_targets_only or batch.states is not None:
            return batch, None
        if batch.tokens.device.type != "cpu":  # elsewhere the number of places is waited for
            return batch, None
        packing = batch.packing or Packing.of_padded(*batch.tokens.shape)
        packing, wanted = packing.only((self.objective.targets(batch) != IGNORE_INDEX).any(-1))
        return batch._replace(packing=packing), wanted

    def _states(self, batch: Batch, all_heads: bool, wanted: Tensor | None = None) -> list[Tensor]:
        """Compute the normalised states of every position, the next-token path first."""
        n, transformer = self.objective.heads, self.adapter.transformer
        if batch.states is not None:
            heads = list(transformer.extra_heads)[: n - 1] if all_heads else []
            return read_heads_only(transformer, heads, batch, batch.states)
        return read_batch(transformer, batch, all_heads and n > 1, wanted)[:n]

    def _values(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Compute values `[B, S]`, in the value head's own dtype."""
        if not self.objective.needs_value_head or self.adapter.value_head is None:
            return None
        if not self.objective.gradient_to_trunk:
            hidden = hidden.detach()
        values: Tensor = self.adapter.value_head(hidden).squeeze(-1)
        return values if batch.packing is None else batch.packing.unpack(values, 0)

    def _weigh(self, pool: Pool) -> tuple[Tensor, Sums]:
        """Weights and figures of this batch, decided over the batches of all ranks if need be."""
        everyone, own = gather_rows(pool) if self.objective.pooled else (pool, slice(None))
        weighed = self.objective.weigh_checked(Pool.of(everyone))
        return weighed.select(own, pool.signal.shape[1])

    def _loss(
        self,
        batch: Batch,
        states: Sequence[Tensor],
        terms: LossTerms,
        loss: HeadLoss | None = None,
    ) -> MTPLoss:
        unembedding = self.adapter.transformer.output.weight
        return batch_loss(batch, states, unembedding, terms, self.chunk_rows, loss)


def read_batch(
    transformer: Transformer, batch: Batch, all_heads: bool = False, wanted: Tensor | None = None
) -> list[Tensor]:
    """Compute the normalised states `[B, S, D]` of each head, `[P, L, D]` of a packed batch, where
    a token attends to its own document only and positions count from its beginning; `[1, R, D]` if
    only some places are `wanted`."""
    positions, mask = _documents(batch)
    return transformer.head_states(
        batch.tokens, return_all_heads=all_heads, positions=positions, mask=mask, wanted=wanted
    )


def read_heads_only(
    transformer: Transformer, heads: Sequence[nn.Module], batch: Batch, states: Tensor
) -> list[Tensor]:
    """The same of head 1 and some more from stored states `[B, S, 2, D]`, which head 1's are."""
    stream = transformer.stream_dtype or transformer.tok_embeddings.weight.dtype
    trunk, first = states.to(stream).unbind(2)
    return [first, *transformer.states_from(trunk, heads, *_documents(batch))]


def _documents(batch: Batch) -> tuple[Tensor | None, Tensor | Packing | None]:
    """Positions and mask of a batch, as the transformer takes them."""
    packing = batch.packing
    if packing is None:
        return None, None
    if packing.source.device.type != "cpu":  # a kernel for each document is little work for a GPU
        packing = packing._replace(runs=())
    by_row = packing.runs or packing.unpacks_cheaply
    return packing.positions, packing if by_row else packing.mask


def batch_loss(
    batch: Batch,
    states: Sequence[Tensor],
    unembedding: Tensor,
    terms: LossTerms,
    chunk_rows: int | None = None,
    loss: HeadLoss | None = None,
) -> MTPLoss:
    """Compute `loss_of_terms`, or another loss, of states from `read_batch`. The terms and the
    cross-entropies are `[B, S, n]`, whether the batch is packed or not."""
    packing, loss = batch.packing, loss or loss_of_terms
    if packing is None:
        return loss(states, unembedding, terms, chunk_rows)
    weights = None if terms.weights is None else packing.pack(terms.weights, 0)
    terms = terms._replace(targets=packing.pack(terms.targets, IGNORE_INDEX), weights=weights)
    out = loss(states, unembedding, terms, chunk_rows)
    taught = None if out.taught is None else packing.unpack(out.taught, 0)
    return MTPLoss(out.loss, packing.unpack(out.ce, 0), packing.unpack(out.hit, 0), taught)


def pool_of(batch: Batch, signal: Tensor, with_reference: bool = True) -> Pool:
    """Make a pool of the rows of a batch and their signal."""
    reference = batch.reference if with_reference else None  # an empty batch always has one
    valid = None
    if signal.ndim == 3:
        valid = targets_of(batch, signal.shape[2]) != IGNORE_INDEX
        if reference is not None:
            # Batches are concatenated: they must have the same number of heads, empty ones too.
            reference = reference_per_head(reference, signal.shape[2])
    signal = signal.detach().float()
    return Pool(batch.labels, batch.correct, batch.truncated, batch.rows, signal, reference, valid)


def values_along(values: Tensor, labels: Tensor) -> Tensor:
    """Read the values `[B, F]` after a quarter, half, three quarters and all of each response (all:
    the state that predicts EOS)."""
    before = (labels != IGNORE_INDEX)[:, 1:]  # [B, S] states that predict a response token
    last = (before.sum(1) - 1).clamp(min=0)  # m tokens, m states; state 0 precedes the response
    ordinals = torch.stack([(fraction * last).ceil().long() for fraction in FRACTIONS], dim=1)
    places = (~before).byte().argsort(dim=1, stable=True)  # those states first, in order
    return values.detach().gather(1, places.gather(1, ordinals))


def _head_sums(ce: Tensor, hit: Tensor, counted: Tensor, correct: Tensor) -> Tensor:
    """Sum `[B, S, n]` to `[2, 3, n]` float64, as in `StepOutput.sums`."""
    groups = []
    for group in (correct, ~correct):
        mask = counted & group[:, None, None]
        parts = (ce.double() * mask, (hit & mask).double(), mask.double())
        groups.append(torch.stack([x.sum(dim=(0, 1)) for x in parts]))
    return torch.stack(groups)
