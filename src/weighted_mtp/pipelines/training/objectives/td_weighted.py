"""Verifiable: token weights from the critic's TD errors; and the two controls a gain must beat.

Letters: R rows of a pool, S sequence, n future tokens (heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.pipelines.training.objectives.base import Pool, Sums
from weighted_mtp.pipelines.training.objectives.critic import ValueObjective, across_turns
from weighted_mtp.value_weighting.controls import (
    counter_uniform,
    random_matched_weights,
    shuffle_weights,
)
from weighted_mtp.value_weighting.rho1_weighting import align_reference
from weighted_mtp.value_weighting.td_weighting import (
    TDStatsEMA,
    build_weights,
    compute_advantages,
    compute_td_errors,
    moments_mean_std,
    renormalise,
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

    signal: ClassVar[Literal["none", "values", "cross_entropy"]] = "values"

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        super().__init__(config, heads, seed)
        self.td, self.lam = config.td, config.td.lam
        self.pooled = self.td.whiten == "batch" or self.td.renormalise
        self.ema = TDStatsEMA(self.td.ema_decay)

    def begin_step(self, step: int, steps: int) -> None:
        super().begin_step(step, steps)
        td = self.td
        if td.final_lam is not None:
            self.lam = schedule(self.progress, td.lam, td.final_lam, td.lam_hold, td.lam_shape)

    def td_errors(self, pool: Pool) -> Tensor:
        """δ `[R, S + 1]` of each response token."""
        return compute_td_errors(*_td_inputs(pool), self.td.gamma, pool.truncated)

    def advantages(self, pool: Pool) -> Tensor:
        """A `[R, S + 1]` of each response token."""
        return compute_advantages(*_td_inputs(pool), self.td.gamma, self.lam, pool.truncated)

    def token_weights(self, pool: Pool) -> Tensor:
        """w `[R, S + 1]` of each response token."""
        td, mask, advantages = self.td, pool.mask, self.advantages(pool)
        if td.whiten == "batch":
            advantages = whiten(advantages, mask, *moments_mean_std(td_moments(advantages, mask)))
        elif td.whiten == "ema":
            advantages = whiten(advantages, mask, self.ema.mean, self.ema.std)
        weights = build_weights(advantages, mask, td.beta, td.min_weight, td.max_weight)
        return renormalise(weights, mask) if td.renormalise else weights

    def weights(self, pool: Pool) -> Tensor:
        """A token has one weight, whichever head predicts it."""
        return align_reference(self.token_weights(pool), self.heads, pool.signal.shape[1])

    def figures(self, pool: Pool, weights: Tensor) -> Sums:
        """`[2, ·]`: correct rows, incorrect rows."""
        errors, advantages = self.td_errors(pool), self.advantages(pool)
        td, per_token = self.td, weights[:, :, 0]  # [R, S], of the token after each position
        sums: dict[str, list[Tensor]] = {"td_error": [], "advantage": [], "weight": []}
        for group in (pool.correct, ~pool.correct):
            mask = pool.mask & group[:, None]
            predicted = mask[:, 1:]
            sums["td_error"].append(td_moments(errors, mask))
            sums["advantage"].append(td_moments(advantages, mask))
            sums["weight"].append(weight_sums(per_token, predicted, td.min_weight, td.max_weight))
        return {name: torch.stack(parts) for name, parts in sums.items()}

    def end_step(self, sums: Mapping[str, Tensor]) -> None:
        """Statistics move once a step, after they were used."""
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

    def _weight_stats(self, sums: Tensor) -> dict[str, float]:
        """Once brought to mean 1, a weight no longer shows whether it was clipped."""
        stats = weight_stats(sums)
        hidden = ("clipped_low", "clipped_high") if self.td.renormalise else ()
        return {name: value for name, value in stats.items() if name not in hidden}

    def _uniform(self, pool: Pool) -> Tensor:
        """`[R, S + 1]` noise that depends on seed, step, row and position alone."""
        return counter_uniform(self.seed, self.step, pool.rows, pool.labels.shape[1])


class RandomMatched(Verifiable):
    """Control: weights drawn at random with the mean and spread of the real ones."""

    def __init__(self, config: ObjectiveConfig, heads: int, seed: int = 0) -> None:
        super().__init__(config, heads, seed)
        self.pooled = True

    def token_weights(self, pool: Pool) -> Tensor:
        real, td = super().token_weights(pool), self.td
        mean, std = moments_mean_std(td_moments(real, pool.mask))
        # Weights brought to mean 1 may leave the clamp's range.
        low, high = (0.0, 1e3) if td.renormalise else (td.min_weight, td.max_weight)
        noise = self._uniform(pool)
        return random_matched_weights(pool.mask, noise, mean, std, low, high).to(real.dtype)


class Shuffled(Verifiable):
    """Control: the real weights of each response, permuted among its tokens."""

    def token_weights(self, pool: Pool) -> Tensor:
        return shuffle_weights(super().token_weights(pool), pool.mask, self._uniform(pool))


def _td_inputs(pool: Pool) -> tuple[Tensor, Tensor, Tensor]:
    """Values `[R, S + 1, 1]` (the state after EOS has none), rewards `[R]`, mask `[R, S + 1]`."""
    mask = pool.mask
    values = across_turns(F.pad(pool.signal, (0, 1)).unsqueeze(-1), mask)
    return values, pool.correct.to(values.dtype), mask
