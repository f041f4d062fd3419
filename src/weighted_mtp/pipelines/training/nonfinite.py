"""Steps whose loss or gradient is not finite: skipped and counted, then refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.data.batches import Example

log = get_logger(__name__)


class SkippedSteps:
    """Counts steps that never reached the weights and keeps their rows for inspection."""

    def __init__(self, run_dir: Path, limit: int) -> None:
        self.run_dir, self.limit, self.count = run_dir, limit, 0

    def add(
        self, step: int, loss: float, norm: float, examples: Sequence[Example], is_main: bool
    ) -> None:
        """Note one; every rank calls this, the main one writes.

        Raises:
            UserError: it is one too many.
        """
        self.count += 1
        report = self.run_dir / f"nonfinite-step-{step}.json"
        if is_main:
            rows, tasks = [e.row for e in examples], [e.task_id for e in examples]
            record = {"step": step, "rows": rows, "task_ids": tasks}
            try:
                self.run_dir.mkdir(parents=True, exist_ok=True)
                report.write_text(json.dumps(record) + "\n", encoding="utf-8")
            except OSError as error:
                log.warning("%s: cannot be written (%s)", report, error)
        told = f"step {step}: loss {loss} and gradient norm {norm} are not finite; the rows are "
        if self.count > self.limit:
            before = f"{self.count - 1} steps were skipped before; " if self.count > 1 else ""
            raise UserError(
                f"{told}in {report}, {before}earlier checkpoints are untouched; lower "
                "training.learning_rate or look at those rows, then --resume"
            )
        if is_main:
            log.warning("%sin %s; skipped (%d of at most %d)", told, report, self.count, self.limit)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])
