"""The value head's objectives: what the critic learns, and what it may train besides its head.

Letters: B batch, S sequence, n future tokens (heads).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.config.sections import ObjectiveConfig, PipelineName
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.data.rows.metadata import Indices, Metadata
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.training.objectives.base import Objective, Sums
from weighted_mtp.value_weighting.td_weighting import compute_td_targets, compute_value_loss


class ValueObjective(Objective):
    """Trains the value head towards its TD targets."""

    pipelines: ClassVar[tuple[PipelineName, ...]] = ("verifiable",)
    needs_value_head: ClassVar[bool] = True

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        super().__init__(config, heads, seed)
        self.gradient_to_trunk = bool(config.value.gradient_to_trunk)
        self.value_coef = config.value.coef

    def candidates(self, metadata: Metadata) -> Indices:
        """Select rows as the base class does; both kinds of solution must be among them.

        Raises:
            UserError: no correct row, or no incorrect one.
        """
        chosen = super().candidates(metadata)
        labels = metadata.is_correct[chosen]
        for wanted in (True, False):
            if not (labels == wanted).any():
                kind = "correct" if wanted else "incorrect"
                raise UserError(
                    f"no {kind} samples: all {len(chosen)} rows have is_correct "
                    f"{str(not wanted).lower()}; a critic learns from both kinds (micro tasks: "
                    "data.micro.incorrect_per_problem=1)"
                )
        return chosen

    def value_count(self, batch: Batch) -> Tensor:
        """States before response tokens, except the last of a truncated row, whose outcome is not
        known."""
        before = batch.predicted
        return before.sum() - (before.any(1) & batch.truncated).sum()

    def value_loss(self, batch: Batch, values: Tensor, denominator: Tensor) -> tuple[Tensor, Sums]:
        """Σ (V_t − target_t)² / D over the states before response tokens."""
        value = self.config.value
        mask = batch.labels != IGNORE_INDEX  # [B, S + 1]
        padded = F.pad(values, (0, 1)).unsqueeze(-1)  # [B, S + 1, 1]; the last is never read
        targets = compute_td_targets(
            across_turns(padded.detach(), mask),
            batch.correct.to(values.dtype),
            mask,
            value.gamma,
            value.lam,
            truncated=batch.truncated,
        )
        each = compute_value_loss(padded, targets, mask, value.clip, value.huber)  # [B, S + 1]
        total = each.sum()
        count = self.value_count(batch).double()
        sums = {"value": torch.stack([total.detach().double(), count])}
        return total / denominator.clamp(min=1), sums

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        if "value" not in sums:
            return {}
        total, count = sums["value"].tolist()
        return {"value_loss": total / count if count else math.nan}


class Critic(ValueObjective):
    """The first stage: P(correct) after every token, on a trunk that is frozen, partly trained, or
    trained with it; with `lm_coef`, the heads keep learning."""

    pipelines: ClassVar[tuple[PipelineName, ...]] = ("critic",)

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        super().__init__(config, heads, seed)
        value = config.value
        self.value_coef = 1.0
        self.runs_heads = value.lm_coef > 0
        self.gradient_to_trunk = value.gradient_to_trunk is not False and value.trunk != "frozen"
        if self.runs_heads and value.trunk != "all":
            raise UserError(
                "objective.value.lm_coef trains the whole model: set objective.value.trunk=all, or "
                "lm_coef=0"
            )

    def prepare(self, adapter: MetaLlamaMTPAdapter) -> None:
        """Freeze whatever neither loss may change."""
        super().prepare(adapter)
        if self.runs_heads:
            return
        value, transformer = self.config.value, adapter.transformer
        transformer.requires_grad_(False)
        if value.trunk == "frozen":
            return
        path = list(transformer.layers)
        if value.trunk == "top" and value.top_blocks > len(path):
            raise UserError(
                f"objective.value.top_blocks {value.top_blocks}: the next-token path has "
                f"{len(path)} blocks"
            )
        chosen = path if value.trunk == "all" else path[-value.top_blocks :]
        for block in [*chosen, transformer.norm]:
            block.requires_grad_(True)
        if value.trunk == "all":
            transformer.tok_embeddings.requires_grad_(True)

    def make_targets(self, batch: Batch) -> Tensor:
        """Restrict the language-model loss, if any, to `lm_rows`."""
        targets = super().make_targets(batch)
        if self.config.value.lm_rows == "all":
            return targets
        return targets.masked_fill(~batch.correct[:, None, None], IGNORE_INDEX)

    def _head_weights(self) -> Tensor:
        return super()._head_weights() * self.config.value.lm_coef


class PairwiseCritic(Critic):
    """−log σ(V̄⁺ − V̄⁻) over pairs of a right and a wrong solution of one problem, V̄ the mean value
    along the response (Bradley & Terry 1952). The pairs are drawn by `data.sampling.draw_pairs`."""

    group_size = 2

    def value_count(self, batch: Batch) -> Tensor:
        """Pairs in the batch both rows of which have a value."""
        return _comparable(batch.labels).sum()

    def value_loss(self, batch: Batch, values: Tensor, denominator: Tensor) -> tuple[Tensor, Sums]:
        """Rows 2i and 2i + 1 are a pair."""
        mean = mean_value(values, batch.labels)
        pairs = len(mean) // 2 * 2
        margin = mean[0:pairs:2] - mean[1:pairs:2]
        each = torch.where(_comparable(batch.labels), -F.logsigmoid(margin), 0.0)
        total = each.sum() + values.sum() * 0.0
        count = self.value_count(batch).double()
        return total / denominator.clamp(min=1), {
            "value": torch.stack([total.detach().double(), count])
        }


def _comparable(labels: Tensor) -> Tensor:
    """`[B / 2]` pairs of rows that both have a state before a response token."""
    known = (labels != IGNORE_INDEX)[:, 1:].any(1)
    pairs = len(known) // 2 * 2
    return known[0:pairs:2] & known[1:pairs:2]


def across_turns(values: Tensor, mask: Tensor) -> Tensor:
    """Values `[B, S, 1]` as they count after each response token.

    After the last token of an answer others speak, and the next state that the model acts in is the
    one before its next answer; the states in between predict nothing and are never trained. So the
    value after the answer is the value there. A response in one piece is left as it is.
    """
    S = mask.shape[1]
    here = torch.arange(S, device=mask.device).expand_as(mask)
    there = here.masked_fill(~mask, S).flip(1).cummin(1).values.flip(1)  # this or the next one
    following = F.pad(there[:, 1:], (0, 1), value=S)
    source = torch.where(following < S, following - 1, here)
    return values.gather(1, source.unsqueeze(-1))


def mean_value(values: Tensor, labels: Tensor) -> Tensor:
    """V̄ `[B]`: the mean over the states that predict response tokens."""
    before = (labels != IGNORE_INDEX)[:, 1:]  # [B, S]
    wide = values if values.dtype == torch.float64 else values.float()
    return torch.where(before, wide, 0.0).sum(1) / before.sum(1).clamp(min=1)
