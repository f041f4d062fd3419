"""What a run optimises, as the trainer sees it; `registry` finds objectives by name.

Letters: B batch, R rows of a pool, S sequence, n future tokens (heads), m micro-batches of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weighted_mtp.core.config.recipe import validate_section
from weighted_mtp.core.config.section import Section
from weighted_mtp.core.config.sections import ObjectiveConfig, PipelineName
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.data.rows.metadata import Indices, Metadata
from weighted_mtp.data.tokens.row_tokens import TokenisedRows
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.losses import (
    LossTerms,
    MTPLoss,
    count_targets,
    loss_of_terms,
    shift_labels,
)
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.training.objectives.head_weights import HeadWeights
from weighted_mtp.value_weighting.controls import counter_uniform

Signal = Literal["none", "labels", "values", "cross_entropy"]
"""What token weights may come from."""
_POSITIONS = 0x9051
"""Added to the seed: other chance than that of shuffled and random weights."""
Sums = dict[str, Tensor]
"""Figures that add up over micro-batches and ranks, float64."""


class Pool(NamedTuple):
    """Rows whose token weights are decided together: a batch, the batches of all ranks, or a whole
    step.

    Attributes:
        labels: `[R, S + 1]` as in a batch.
        correct, truncated, rows: `[R]`.
        signal: what the weights come from: values `[R, S]` (0 where they come from labels), or the
            policy's cross-entropy `[R, S, n]`.
        reference: `[R, S + 1, n]` (or without n) the reference model's cross-entropy of each token
            under each head, if there is one.
        valid: `[R, S, n]` whether a head has a target; None where the signal is values.
    """

    labels: Tensor
    correct: Tensor
    truncated: Tensor
    rows: Tensor
    signal: Tensor
    reference: Tensor | None = None
    valid: Tensor | None = None

    @classmethod
    def of(cls, fields: Sequence[Tensor | None]) -> Pool:
        """Build a pool from its fields in order."""
        return cls(*fields)  # type: ignore[arg-type]  # only the last two may be None

    @property
    def mask(self) -> Tensor:
        """`[R, S + 1]` true on response tokens, except at position 0: no state precedes it and no
        head predicts it, so its weight would only distort means and permutations."""
        mask = self.labels != IGNORE_INDEX
        mask[:, 0] = False
        return mask


class Weighed(NamedTuple):
    """Token weights and what is reported about them.

    Attributes:
        weights: w `[R, S, n]`; taken as constants.
        figures: additive statistics `[R, …]` of each row, by name; their sums over a step reach
            `summarise`. They are per row because a rank weighs the rows of others too, but counts
            only its own.
    """

    weights: Tensor
    figures: Mapping[str, Tensor] = MappingProxyType({})

    def select(self, rows: slice, length: int) -> tuple[Tensor, Sums]:
        """Weights `[B, S, n]` of some rows, without padding, and the sums of their figures."""
        sums = {name: x[rows].double().sum(0) for name, x in self.figures.items()}
        return self.weights[rows, :length], sums


class Objective:
    """Every token weighted alike. Subclasses change what they need.

    Attributes:
        Options: a `Section` with the settings of `objective.options`; there are none by default.
        options: those settings, validated.
        pipelines: where it may run. `verifiable` starts from a critic, `rho1` has a reference.
        heads: n, how many heads are trained.
        head_weights: `[n]` c_k of the present step.
        needs_value_head: the adapter must have one.
        needs_order_head: the adapter must have a second unembedding, which `order_loss` trains.
        needs_reference: rows must carry a reference model's losses.
        needs_mutations: mutated tokens are no targets, which micro tasks alone can tell.
        runs_heads: False if the language-model loss has no part in it.
        gradient_to_trunk: whether the value loss reaches what the value head reads.
        value_coef: factor of the value loss.
        signal: what `weigh` starts from; "labels" are those of rows, "none" means every weight is 1
            and `weigh` is not called.
        pooled: weights depend on the whole pool, not on each row by itself.
        group_size: rows that are drawn together (2 for pairs).
        learns_from_head_1: what head 1 predicts is a target, so that nothing may change it.
    """

    Options: ClassVar[type[Section]] = Section
    pipelines: ClassVar[tuple[PipelineName, ...]] = ("baseline", "ntp")
    needs_value_head: ClassVar[bool] = False
    needs_order_head: ClassVar[bool] = False
    needs_reference = False
    needs_mutations: ClassVar[bool] = False
    learns_from_head_1: ClassVar[bool] = False
    default_rows: ClassVar[Literal["correct", "all"]] = "all"
    signal: ClassVar[Signal] = "none"
    pooled = False
    runs_heads = True
    gradient_to_trunk = False
    value_coef = 0.0
    group_size = 1

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        self.config, self.heads, self.seed = config, heads, seed
        self.options: Any = self.parse_options(config)
        self.pooled = self.pools(config)
        self.step, self.progress = 0, 0.0
        self._schedule = HeadWeights(config, heads)
        self.head_weights = self._head_weights()

    @classmethod
    def parse_options(cls, config: ObjectiveConfig) -> Section:
        """Validate `objective.options`.

        Raises:
            UserError: unknown keys or bad values.
        """
        where = f"objective {config.name}"
        return validate_section(cls.Options, config.options, where, "objective.options")

    @classmethod
    def pools(cls, config: ObjectiveConfig) -> bool:
        """Return `pooled`, where it depends on the settings."""
        return cls.pooled

    @property
    def reads_targets_only(self) -> bool:
        """Whether states are read where they have a target, and nowhere else: there is the loss of
        the heads alone, and it is none that a subclass has made."""
        if not self.runs_heads or self.needs_value_head or self.signal == "values":
            return False
        return type(self).loss is Objective.loss and not self.needs_order_head

    @property
    def scores_whole_steps(self) -> bool:
        """Whether weights are decided over all micro-batches, which takes a scoring pass."""
        return self.pooled and self.config.scope == "step"

    # --- data ---

    def candidates(self, metadata: Metadata) -> Indices:
        """Select the rows this objective learns from.

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

    def read_rows(self, rows: TokenisedRows, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Look at all rows that a new run will read, before it begins. Not called for text."""

    def draft_ids(self) -> Tensor | None:
        """`[V']` the draft vocabulary that goes with the trained heads; None leaves the model's."""
        return None

    def prepare(self, adapter: MetaLlamaMTPAdapter) -> None:
        """Freeze what is not trained: DDP would wait for the gradient of a head that gets none."""
        for head in list(adapter.transformer.extra_heads)[self.heads - 1 :]:
            head.requires_grad_(False)

    # --- a step ---

    def begin_step(self, step: int, steps: int) -> None:
        """Move every schedule to step 0 … steps − 1."""
        self.step, self.progress = step, step / max(1, steps - 1)
        self.head_weights = self._head_weights()

    def make_targets(self, batch: Batch) -> Tensor:
        """`[B, S, n]` what each trained head should predict."""
        return plain_targets(batch, self.heads)

    def compared(self, targets: Tensor) -> Tensor:
        """`[B, S, n]` the targets whose cross-entropy `loss` computes."""
        return targets != IGNORE_INDEX

    def targets(self, batch: Batch) -> Tensor:
        """The targets that a batch carries; `make_targets` where it carries none."""
        return self.make_targets(batch) if batch.targets is None else batch.targets

    def with_targets(self, batch: Batch) -> Batch:
        """Return the batch with its targets, so that a step computes them once."""
        return batch._replace(targets=self.targets(batch))

    def sampled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The targets `[B, S, n]` to learn from in this step, and c `[n]` of each.

        Of heads 2 … n, `objective.head_positions` of the positions keep theirs, drawn for (seed,
        step, row, position) so that neither micro-batches nor ranks matter; c is larger by as much,
        and the denominators count all, so that the loss is the same on average.
        """
        targets, share = self.targets(batch), self.config.head_positions
        c = self.head_weights.to(targets.device)
        if share == 1 or self.heads == 1:
            return targets, c
        draws = counter_uniform(self.seed + _POSITIONS, self.step, batch.rows, targets.shape[1])
        dropped = (draws >= share)[..., None].repeat(1, 1, self.heads)
        dropped[..., 0] = False
        factors = torch.full_like(c, 1 / share)
        factors[0] = 1.0
        return targets.masked_fill(dropped, IGNORE_INDEX), c * factors

    def counts(self, batch: Batch) -> Tensor:
        """`[n + 1]` float64: valid targets of each head, and what the value loss is divided by."""
        per_head = count_targets(self.targets(batch))
        return torch.cat([per_head, self.value_count(batch).double().view(1)])

    def value_count(self, batch: Batch) -> Tensor:
        """Terms this batch adds to the value loss: response tokens that have a state before."""
        return batch.predicted.sum()

    def denominators(self, counts: Tensor) -> Tensor:
        """D `[n + 1]` of the step from the counts `[m, n + 1]` of its micro-batches (all ranks)."""
        return counts.sum(0)

    def weigh(self, pool: Pool) -> Weighed:
        """Decide the token weights of a pool; called once for it, and only if there is a signal."""
        raise NotImplementedError

    def weigh_checked(self, pool: Pool) -> Weighed:
        """Call `weigh` without gradients and check what it returns: it may be somebody else's code.

        Raises:
            UserError: it is not `Weighed`, or its shapes do not fit the pool.
        """
        with torch.no_grad():
            weighed: object = self.weigh(pool)
        R, S = pool.signal.shape[:2]
        wanted = f"objective {self.config.name}: weigh must return Weighed(weights, figures)"
        if not isinstance(weighed, Weighed):
            raise UserError(f"{wanted}, not {type(weighed).__name__}")
        if weighed.weights.shape != (R, S, self.heads):
            raise UserError(
                f"{wanted}, weights [rows, positions, heads] {[R, S, self.heads]}, not "
                f"{list(weighed.weights.shape)}"
            )
        for name, figure in weighed.figures.items():
            if figure.shape[:1] != (R,):
                raise UserError(
                    f"{wanted}, figures with an entry for each of {R} rows; {name} has the shape "
                    f"{list(figure.shape)}"
                )
        return weighed

    def loss(
        self,
        states: Sequence[Tensor],
        unembedding: Tensor,
        terms: LossTerms,
        chunk_rows: int | None = None,
    ) -> MTPLoss:
        """Compute the heads' share of the loss. Arguments as for `loss_of_terms`; of a packed batch
        all are `[P, L, …]`."""
        return loss_of_terms(states, unembedding, terms, chunk_rows)

    def value_loss(self, batch: Batch, values: Tensor, denominator: Tensor) -> tuple[Tensor, Sums]:
        """Compute the value head's share of the loss from its values `[B, S]`."""
        return values.sum() * 0.0, {}

    def order_loss(
        self, batch: Batch, hidden: Tensor, weight: Tensor, denominator: Tensor
    ) -> tuple[Tensor, Sums]:
        """Compute the share of the loss of a second unembedding.

        Args:
            hidden: states of head 1, `[B, S, D]`, or as packed.
            weight: `[V, D]`.
            denominator: targets of head 1 in the whole step.
        """
        return (hidden.sum() + weight.sum()) * 0.0, {}

    def end_step(self, sums: Mapping[str, Tensor]) -> None:
        """Update running statistics after the optimizer step, from the sums over all micro-batches
        and ranks."""

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        """Compute figures for the log from the sums of those that `weigh` returned."""
        return {}

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Return what later steps depend on, as plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""

    def _head_weights(self) -> Tensor:
        """Return c `[n]` of the present step."""
        return self._schedule.at(self.progress)


class CorrectOnly(Objective):
    """The baseline: solutions that pass their tests, every token weighted alike."""

    pipelines: ClassVar[tuple[PipelineName, ...]] = ("baseline",)
    default_rows: ClassVar[Literal["correct", "all"]] = "correct"


class NextToken(CorrectOnly):
    """The same with the next-token head alone."""

    pipelines: ClassVar[tuple[PipelineName, ...]] = ("ntp",)


class Uniform(Objective):
    """The control without weights: all rows, right and wrong alike."""


def plain_targets(batch: Batch, heads: int) -> Tensor:
    """`[B, S, n]` the tokens ahead of each position that the model runs, −100 past the end."""
    targets = shift_labels(batch.labels, heads, length=batch.length)
    if batch.packing is None:
        return targets
    return targets.masked_fill(~batch.packing.filled.unsqueeze(2), IGNORE_INDEX)


def targets_of(batch: Batch, heads: int) -> Tensor:
    """`[B, S, n]` the targets that a batch carries for the first heads, else `plain_targets`."""
    if batch.targets is None:
        return plain_targets(batch, heads)
    return batch.targets[:, :, :heads]
