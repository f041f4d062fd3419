"""Verifiable: token weights from the critic's TD errors, and the two controls it must beat.

Letters: R rows of a pool, S sequence, n future tokens (heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.pipelines.training.objectives.base import Pool, Signal, Weighed
from weighted_mtp.pipelines.training.objectives.critic import ValueObjective, across_turns
from weighted_mtp.value_weighting.controls import (
    counter_uniform,
    random_matched_weights,
    shuffle_weights,
)
from weighted_mtp.value_weighting.rho1_weighting import align_reference
from weighted_mtp.value_weighting.td_weighting import (
    TDStatsEMA,
    advantages_of,
    build_weights,
    compute_td_errors,
    moments_mean_std,
    renormalise,
    scale_rows,
    schedule,
    td_moments,
    td_stats,
    weight_stats,
    weight_sums,
    whiten,
)

GROUPS = ("correct", "incorrect")


class Verifiable(ValueObjective):
    """w_j = clamp(exp(A_j / β)): tokens after which success became likelier count more. Values,
    weights and all heads come from one forward pass; the critic keeps learning."""

    signal: ClassVar[Signal] = "values"

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        super().__init__(config, heads, seed)
        self.td, self.lam = config.td, config.td.lam
        self.ema = TDStatsEMA(self.td.ema_decay)

    @classmethod
    def pools(cls, config: ObjectiveConfig) -> bool:
        return cls.pooled or config.td.whiten == "batch" or config.td.renormalise

    def begin_step(self, step: int, steps: int) -> None:
        super().begin_step(step, steps)
        td = self.td
        if td.final_lam is not None:
            self.lam = schedule(self.progress, td.lam, td.final_lam, td.lam_hold, td.lam_shape)

    def td_errors(self, pool: Pool) -> Tensor:
        """δ `[R, S + 1]` of each response token."""
        # No state follows EOS; what stands there is never read.
        values = across_turns(F.pad(pool.signal, (0, 1)).unsqueeze(-1), pool.mask)
        rewards = pool.correct.to(values.dtype)
        return compute_td_errors(values, rewards, pool.mask, self.td.gamma, pool.truncated)

    def advantages(self, pool: Pool, errors: Tensor) -> Tensor:
        """A `[R, S + 1]` of each response token, from its δ."""
        return advantages_of(errors, pool.mask, self.td.gamma * self.lam)

    def token_weights(self, pool: Pool, advantages: Tensor) -> Tensor:
        """w `[R, S + 1]` of each response token."""
        td, mask = self.td, pool.mask
        if td.whiten == "batch":
            advantages = whiten(advantages, mask, *moments_mean_std(td_moments(advantages, mask)))
        elif td.whiten == "ema":
            advantages = whiten(advantages, mask, self.ema.mean, self.ema.std)
        weights = build_weights(advantages, mask, td.beta, td.min_weight, td.max_weight)
        if td.rows == "labels":
            weights = scale_rows(weights, mask, torch.where(pool.correct, 1.0, td.wrong_weight))
        return renormalise(weights, mask) if td.renormalise else weights

    def weigh(self, pool: Pool) -> Weighed:
        """A token has one weight, whichever head predicts it."""
        errors, td = self.td_errors(pool), self.td
        advantages = self.advantages(pool, errors)
        per_token = self.token_weights(pool, advantages)
        moments = {
            "td_error": td_moments(errors, pool.mask, per_row=True),
            "advantage": td_moments(advantages, pool.mask, per_row=True),
            "weight": weight_sums(per_token, pool.mask, td.min_weight, td.max_weight, per_row=True),
        }
        groups = torch.stack([pool.correct, ~pool.correct], 1).unsqueeze(2)
        figures = {name: torch.where(groups, x[:, None], 0.0) for name, x in moments.items()}
        return Weighed(align_reference(per_token, self.heads, pool.signal.shape[1]), figures)

    def end_step(self, sums: Mapping[str, Tensor]) -> None:
        """Update running statistics once a step, after they were used."""
        self.ema.update(sums["advantage"].sum(0))

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, Any]:
        figures = super().summarise(sums)
        for name, stats in (
            ("td_error", td_stats),
            ("advantage", td_stats),
            ("weight", self._weight_stats),
        ):
            if name in sums:
                figures[name] = stats(sums[name].sum(0))
                for group, part in zip(GROUPS, sums[name], strict=True):
                    figures[f"{name}_{group}"] = stats(part)
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {"ema": self.ema.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ema.load_state_dict(state["ema"])

    @property
    def _scales(self) -> bool:
        return self.td.renormalise or self.td.rows == "labels"

    def _weight_stats(self, sums: Tensor) -> dict[str, float]:
        """Leave out what is unknown: a weight that was scaled does not show if it was clipped."""
        stats = weight_stats(sums)
        hidden = ("clipped_low", "clipped_high") if self._scales else ()
        return {name: value for name, value in stats.items() if name not in hidden}

    def _uniform(self, pool: Pool) -> Tensor:
        """`[R, S + 1]` noise that depends on seed, step, row and position alone."""
        return counter_uniform(self.seed, self.step, pool.rows, pool.labels.shape[1])


class RandomMatched(Verifiable):
    """Control: weights drawn at random with the mean and spread of the real ones."""

    pooled = True

    def token_weights(self, pool: Pool, advantages: Tensor) -> Tensor:
        real, td = super().token_weights(pool, advantages), self.td
        mean, std = moments_mean_std(td_moments(real, pool.mask))
        # Weights that were scaled may lie outside the bounds of the clamp.
        low, high = (0.0, 1e3) if self._scales else (td.min_weight, td.max_weight)
        noise = self._uniform(pool)
        return random_matched_weights(pool.mask, noise, mean, std, low, high).to(real.dtype)


class Shuffled(Verifiable):
    """Control: the real weights of each response, permuted among its tokens."""

    def token_weights(self, pool: Pool, advantages: Tensor) -> Tensor:
        real = super().token_weights(pool, advantages)
        return shuffle_weights(real, pool.mask, self._uniform(pool))
