"""One picture of the controlled experiments: what each way of using wrong rows gains, by regime.

    python benchmarks/when_weighting_pays.py [--out docs/figures/when-weighting-pays.png]

Reads `results/experiments/*.json`, trains nothing. Each arm is the difference of its held-out loss
to `uniform` of the same run (the arms of a seed share base, rows and order), mean and 95 %
t-interval over ten seeds.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from weighted_mtp.analysis.experiment_picture import DARK, OTHER  # draws to files, no window

RESULTS = Path(__file__).parent / "results/experiments"
LEFT_OUT, BY_LABEL, BY_CRITIC, KNOWN = "#7a8b99", DARK, OTHER, "#222222"


class Way(NamedTuple):
    """An arm, and in which run of the regime it is."""

    arm: str
    words: str
    colour: str
    design: str = "wmtp"


WAYS = (
    Way("filter", "wrong rows left out, as many right ones", LEFT_OUT),
    Way("filter_same_rows", "wrong rows left out, none instead", LEFT_OUT),
    Way("label_weighted", "wrong rows at a tenth, by their labels", BY_LABEL, "within"),
    Way("chosen", "a critic's weights", BY_CRITIC),
    Way("chosen_shuffled", "the same, shuffled within each row", BY_CRITIC),
    Way("within", "labels between rows, the critic within", BY_CRITIC, "within"),
    Way("oracle", "exactly the wrong tokens left out", KNOWN),
)
REGIMES = {
    "scarce": "1 right row to 12 wrong ones",
    "balanced": "as many right as wrong",
    "noisy-labels": "the same, 30 % of the labels flipped",
}


@cache
def read(regime: str, design: str) -> dict[str, Any] | None:
    """The results of a run; None if there was none."""
    path = RESULTS / f"{design}-{regime}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def draw(panel: Axes, regime: str) -> None:
    """One regime."""
    for place, way in enumerate(WAYS):
        results = read(regime, way.design)
        if results is None or way.arm not in results["arms"]:
            panel.text(
                -1e-3, place, "not run", fontsize=8, color="#999999", ha="right", va="center"
            )
            continue
        test = results["arms"][way.arm]["difference"]
        panel.barh(place, test["mean"], color=way.colour, height=0.55, alpha=0.85)
        panel.hlines(place, test["low"], test["high"], color="black", lw=1.2)
    panel.axvline(0, color="#555555", lw=0.8)
    panel.set_title(REGIMES[regime], fontsize=10)
    panel.grid(axis="x", color="#dddddd", lw=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out = Path(__file__).parents[1] / "docs/figures/when-weighting-pays.png"
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    figure, panels = plt.subplots(
        1, len(REGIMES), figsize=(12, 3.4), sharex=True, sharey=True, layout="constrained"
    )
    for panel, regime in zip(panels, REGIMES, strict=True):
        draw(panel, regime)
    panels[0].set_yticks(range(len(WAYS)), [way.words for way in WAYS], fontsize=9)
    panels[0].invert_yaxis()
    words = (
        "held-out loss less that of learning from all rows alike, nats per token; left is better"
    )
    figure.supxlabel(words, fontsize=9)
    figure.savefig(options.out, dpi=130)


if __name__ == "__main__":
    main()
