"""The picture of a study: our accuracies, and beside them the signs that were published."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from weighted_mtp.analysis.experiment_picture import BAR, DARK, OTHER
from weighted_mtp.analysis.experiment_table import points

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = (DARK, OTHER, "#4c8c4a", "#8c6bb1", "#c9a227", "#5b5b5b")
FOUND = {"same": "same sign", "opposite": "OPPOSITE sign", "undecided": "undecided", None: ""}
SIGN = {1: "more", -1: "less"}


def plot_study(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Write the picture: left our accuracies with 95 % t-intervals, as lines or arm by arm with a
    dot for each seed; right every comparison, as published and as found."""
    words = _words(results)
    height = max(4.2, 0.6 + 0.15 * len(words))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, height), width_ratios=(1.35, 1), layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    if results["lines"]:
        _lines(left, results)
    else:
        _arms(left, results)
    left.set_title("here: mean, 95 % t-interval over seeds", fontsize=9)
    left.spines[["top", "right"]].set_visible(False)
    right.set_title("published, and here (percentage points)", fontsize=9)
    right.axis("off")
    right.text(0, 1, "\n".join(words), fontsize=7.5, va="top", transform=right.transAxes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _lines(panel: Axes, results: Mapping[str, Any]) -> None:
    names = list(results["lines"])
    for place, name in enumerate(names):
        tests = results["lines"][name]
        shift = 0.08 * (place - (len(names) - 1) / 2)
        x = [i + shift for i in range(len(tests))]
        y = [100 * test["mean"] for test in tests]
        colour = COLOURS[place % len(COLOURS)]
        panel.plot(x, y, "o-", color=colour, ms=4, lw=1.3, label=name)
        for at, test in zip(x, tests, strict=True):
            if test["low"] is not None:
                panel.vlines(at, 100 * test["low"], 100 * test["high"], color=colour, lw=1)
    panel.set_xticks(range(len(results["points"])), results["points"], fontsize=9)
    across, up = results["axes"]
    panel.set_xlabel(across, fontsize=9)
    panel.set_ylabel(f"{up} (%); dotted: chance", fontsize=9)
    panel.axhline(100 * results["chance"], color="#888888", ls=":", lw=1)
    panel.legend(fontsize=8, frameon=False)
    panel.grid(axis="y", color="#dddddd", lw=0.6)


def _arms(panel: Axes, results: Mapping[str, Any]) -> None:
    primary = results["primary"]
    for place, arm in enumerate(results["arms"].values()):
        test = arm["accuracy"][primary]
        seeds = [100 * x for x in test["by_seed"]]
        panel.plot(seeds, [place + 0.2] * len(seeds), ".", color=BAR, ms=6, zorder=1)
        if test["low"] is not None:
            panel.hlines(place, 100 * test["low"], 100 * test["high"], color=DARK, lw=2, zorder=2)
        panel.plot(100 * test["mean"], place, "D", color=DARK, ms=5, zorder=3)
    panel.set_yticks(range(len(results["arms"])), list(results["arms"]), fontsize=9)
    panel.invert_yaxis()
    panel.axvline(100 * results["chance"], color="#888888", ls=":", lw=1)
    panel.set_xlim(-2, 102)
    panel.set_xlabel(f"{primary} (%); dots: seeds; dotted: chance", fontsize=9)
    panel.grid(axis="x", color="#dddddd", lw=0.6)


def _words(results: Mapping[str, Any]) -> list[str]:
    """The right side, line by line: each comparison as published and as found."""
    lines: list[str] = []
    for claim in (results["contrast"], *results["comparisons"]):
        lines.append(f"{claim['arm']} − {claim['other']}, {claim['measure']}")
        if claim["sign"]:
            published = f"published: {SIGN[claim['sign']]} – {claim['published']}"
            lines += textwrap.wrap(published, 66, subsequent_indent="   ")
        found = FOUND[claim["sign_found"]]
        lines += [f"here: {points(claim['difference'])}" + (f", {found}" if found else ""), ""]
    return lines
