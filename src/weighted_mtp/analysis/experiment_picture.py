"""The picture of an experiment: every arm with its interval, and the contrast seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from weighted_mtp.analysis.experiment_table import equals, ranked, signed

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BAR, DARK, OTHER = "#9db4c8", "#1f4e79", "#b5532a"


def plot(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Write the picture.

    Left: the loss of every arm, as paired differences to the arm where the headroom begins, with a
    95 % t-interval and a dot for each seed. Right: the two arms
    of the contrast, each seed's pair joined by a line.
    """
    arms = ranked(results)
    figure, (left, right) = plt.subplots(
        *(1, 2),
        figsize=(10.5, 0.36 * len(arms) + 1.7),
        width_ratios=(2.2, 1),
        layout="constrained",
    )
    figure.suptitle(title, fontsize=11)
    _arms(left, results, arms)
    _contrast(right, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _arms(panel: Axes, results: Mapping[str, Any], arms: list[tuple[str, Any]]) -> None:
    named = (results["contrast"]["arm"], results["contrast"]["other"])
    paired = all("difference" in figures for _, figures in arms)
    for place, (name, figures) in enumerate(arms):
        test = figures["difference" if paired else "loss"]
        seeds = figures["difference_by_seed" if paired else "loss_by_seed"]
        colour = OTHER if name in named else DARK
        panel.plot(seeds, [place + 0.25] * len(seeds), ".", color=BAR, ms=5, zorder=1)
        if test["low"] is not None:
            panel.hlines(place, test["low"], test["high"], color=colour, lw=2, zorder=2)
        panel.plot(test["mean"], place, "D", color=colour, ms=5, zorder=3)
    panel.set_yticks(range(len(arms)), [name for name, _ in arms], fontsize=9)
    panel.invert_yaxis()
    words = "held-out loss of head 1 (nats per token)"
    panel.set_xlabel(f"{words}, difference to {results['start']}" if paired else words)
    panel.set_title("mean, 95 % t-interval; dots: seeds", fontsize=9)
    panel.grid(axis="x", color="#dddddd", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _contrast(panel: Axes, results: Mapping[str, Any]) -> None:
    contrast = results["contrast"]
    names = (contrast["arm"], contrast["other"])
    pairs = zip(*(results["arms"][name]["loss_by_seed"] for name in names), strict=True)
    for pair in pairs:
        panel.plot((0, 1), pair, "o-", color=OTHER, lw=0.8, ms=3.5, alpha=0.7)
    panel.set_xticks((0, 1), names, fontsize=9)
    panel.set_xlim(-0.35, 1.35)
    panel.set_ylabel("nats per token", fontsize=9)
    test = contrast["loss"]
    words = f"contrast {signed(test)}"
    if test["p"] is not None:
        words += f"\np {equals(test['p'])}"
    panel.set_title(words, fontsize=9)
    panel.grid(axis="y", color="#dddddd", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)
