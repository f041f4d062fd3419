"""The loss curves of a run as one PNG.

Letters: n future tokens (heads).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from weighted_mtp.core.terminal import printable

Series = tuple[Sequence[int], Sequence[Any]]
COLOURS = ("#1f4e79", "#c8553d", "#588157", "#8e6c8a", "#b08900", "#5c677d", "#2a9d8f", "#6d4c41")


def plot_losses(
    train: Series, validation: Series, accuracy: Series, path: Path, title: str
) -> None:
    """Draw loss (left) and held-out accuracy (right), one colour for each head.

    Args:
        train: steps and, for each, n training losses in nats a token.
        validation: steps and n held-out losses.
        accuracy: steps and n held-out accuracies in [0, 1].
        path: PNG to write.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    figure.suptitle(printable(title).replace("$", r"\$"), fontsize=11)  # no formula
    for head in range(_width(train)):
        colour = COLOURS[head % len(COLOURS)]
        name = "next token" if head == 0 else f"token +{head + 1}"
        left.plot(train[0], _smooth(_column(train, head)), color=colour, lw=1.4, label=name)
        left.plot(validation[0], _column(validation, head), "o", color=colour, ms=4)
        right.plot(accuracy[0], _column(accuracy, head), "o-", color=colour, ms=4, lw=1.4)
    left.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    left.set_title("loss: training (lines), held out (dots)", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    right.set(xlabel="step", ylim=(0, 1))
    right.set_title("held-out accuracy of each head", fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _width(series: Series) -> int:
    return max(map(len, series[1]), default=0)


def _column(series: Series, head: int) -> list[float]:
    return [values[head] if head < len(values) else math.nan for values in series[1]]


def _smooth(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Exponential moving average, started at the first value; NaN is a gap and leaves no trace."""
    smooth: list[float] = []
    last = math.nan
    for value in values:  # one that is missing leaves a gap, and the average as it was
        if not math.isnan(value):
            last = value if math.isnan(last) else keep * last + (1 - keep) * value
        smooth.append(math.nan if math.isnan(value) else last)
    return smooth
