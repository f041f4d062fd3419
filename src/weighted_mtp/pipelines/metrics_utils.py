"""Figures of a run: per-head summaries, and the JSONL file they are kept in.

Letters: n future tokens (heads).
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import check_regular
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.run_records import read_metrics, without_nan

__all__ = ["MetricsFile", "heads_in_words", "in_words", "read_metrics", "shown"]
log = get_logger(__name__)


def in_words(figures: dict[str, Any]) -> str:
    """`head 1: 0.12 nats, 96.1 %  head 2: …  3.12 tokens a forward  value: AUC 0.81 half-way, 0.93
    at the end`, for a person."""
    words = [heads_in_words(figures)] if "head_loss" in figures else []
    if len(figures.get("head_acceptance", [])) > 1:  # one head drafts nothing
        words.append(f"{shown(figures['tokens_per_forward'], '.2f')} tokens a forward")
    if "auc_at_50" in figures and "auc_at_100" in figures:
        half, end = (shown(figures[f"auc_at_{at}"], ".2f") for at in (50, 100))
        words.append(f"value: AUC {half} half-way, {end} at the end")
    elif "value_loss" in figures:
        words.append(f"value loss {shown(figures['value_loss'], '.4f')}")
    return "  ".join(words)


def shown(value: float | None, form: str) -> str:
    """A figure for a person, by a format such as `.2f`; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def heads_in_words(summary: dict[str, Any]) -> str:
    """`head 1: 0.12 nats, 96.1 %  head 2: …`, for a person."""
    pairs = zip(summary["head_loss"], summary["head_accuracy"], strict=True)
    return "  ".join(
        f"head {k}: {shown(loss, '.3f')} nats, {shown(accuracy, '.1%')}"
        for k, (loss, accuracy) in enumerate(pairs, 1)
    )


class MetricsFile:
    """`metrics.jsonl` of a run: one object per line, each with `kind`, `step`, and the seconds
    `elapsed` since the process began. Figures that are not finite are null: JSON has no NaN."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            check_regular(path)
        self.path = path
        self._warned = self._cut = False
        self._started = time.monotonic()

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Append one record. One that cannot be written is dropped with a warning, the first time.

        Raises:
            UserError: the run directory is gone, so that nothing can be saved.
        """
        elapsed = round(time.monotonic() - self._started, 3)
        line = _line({"kind": kind, "step": step, **figures, "elapsed": elapsed})
        try:
            # One unbuffered write: what a full disk cuts off is the end of this record alone.
            with self.path.open("ab", buffering=0) as file:
                if self._cut:
                    line = "\n" + line
                self._cut = file.write(line.encode()) != len(line.encode())
        except OSError as error:
            if not self.path.parent.is_dir():
                raise UserError(
                    f"{self.path.parent}: was deleted or moved while the run wrote to it; nothing "
                    f"after the last checkpoint is saved (step {step})"
                ) from error
            if not self._warned:
                log.warning("%s: cannot be written (%s); training continues", self.path, error)
            self._warned = True

    def rewind(self, step: int) -> None:
        """Drop records later than `step`: a resumed run writes them again."""
        if not self.path.exists():
            return
        kept = [r for r in read_metrics(self.path) if r["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(map(_line, kept)), encoding="utf-8")
        partial.replace(self.path)


def _line(record: dict[str, Any]) -> str:
    """Strict JSON, a line."""
    return json.dumps(without_nan(record), allow_nan=False) + "\n"
