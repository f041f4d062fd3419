"""Which validations were best, and when it is time to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weighted_mtp.core.config.sections import TrainingConfig
from weighted_mtp.core.errors import UserError


def check_held_out(config: TrainingConfig, there: bool) -> None:
    """Raise `UserError` where validations are to decide something and there are no held-out rows.

    Args:
        there: whether there are some.
    """
    if not there and (config.early_stopping or config.keep_best):
        raise UserError(
            "training.early_stopping and training.keep_best need held-out rows: set data.validation"
        )


class Best:
    """Watches one validation figure.

    Attributes:
        steps: of the `training.keep_best` best validations so far.
        stale: validations since the last improvement.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.ranking: list[tuple[float, int]] = []
        self.top: float | None = None
        self.stale = 0

    @property
    def steps(self) -> set[int]:
        return {step for _, step in self.ranking}

    @property
    def exhausted(self) -> bool:
        """Early stopping is asked for, and patience is at its end."""
        early = self.config.early_stopping
        return early is not None and self.stale >= early.patience

    def observe(self, step: int, figures: Mapping[str, Any]) -> bool:
        """Take note of a validation; True if its checkpoint is to be kept.

        Raises:
            UserError: the monitored figure is not among them.
        """
        name = self.config.monitor
        value = figures.get(name)
        usable = value is None or isinstance(value, (int, float))
        if (name not in figures and self.top is None) or not usable:
            # Later it may be missing: a model that diverged has no AUC.
            numbers = sorted(k for k, v in figures.items() if isinstance(v, (int, float)))
            raise UserError(
                f"training.monitor {name!r} is not a number of the validation; there are "
                f"{', '.join(numbers)}"
            )
        value = math.nan if value is None else float(value)
        score = value if self.config.monitor_mode == "min" else -value  # lower is better
        early = self.config.early_stopping
        margin = early.min_delta if early is not None else 0.0
        if math.isnan(score):
            self.stale += self.top is not None  # null from the start: no rows to measure it on
            return False
        if self.top is None or score < self.top - margin:
            self.top, self.stale = score, 0
        else:
            self.stale += 1
        keep = self.config.keep_best
        self.ranking = sorted([*self.ranking, (score, step)])[:keep]
        return step in self.steps

    def state_dict(self) -> dict[str, Any]:
        watched = [self.config.monitor, self.config.monitor_mode]
        return {"ranking": self.ranking, "top": self.top, "stale": self.stale, "watched": watched}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state, unless it is that of another figure."""
        watched = [self.config.monitor, self.config.monitor_mode]
        if state.get("watched", watched) != watched:
            return
        self.ranking = [(float(score), int(step)) for score, step in state["ranking"]]
        self.top, self.stale = state["top"], int(state["stale"])
