"""The table and the picture of an experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


@dataclass(frozen=True)
class Line:
    """One arm.

    Attributes:
        scores: for each split: mean and the bounds of its interval, in [0, 1].
        difference: to the arm that all are compared with, likewise, on the first split.
        by_seed: mean of each seed on the first split.
        preferred: share of held-out pairs whose right program is the likelier one.
        loss: of head 1 on held-out correct programs. tokens: targets trained on.
    """

    name: str
    about: str
    scores: dict[str, tuple[float, float, float]]
    difference: tuple[float, float, float] | None
    by_seed: tuple[float, ...]
    preferred: tuple[float, ...]
    loss: float
    tokens: int


def markdown_table(lines: Sequence[Line], splits: Sequence[str], against: str) -> str:
    """The lines as Markdown, best first."""
    header = ["arm", "trained on", *(f"pass@1 {split}" for split in splits)]
    header += [f"difference to {against}", "right preferred", "head 1 loss", "target tokens"]
    rows = [header, ["---"] * len(header)]
    for line in lines:
        difference = "–" if line.difference is None else _signed(line.difference)
        rows.append(
            [
                f"`{line.name}`",
                line.about,
                *(_percent(line.scores[split]) for split in splits),
                difference,
                _spread(line.preferred),
                "–" if math.isnan(line.loss) else f"{line.loss:.3f}",
                f"{line.tokens / 1000:,.0f} k",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def comparison_table(
    rows: Sequence[tuple[str, str, str, Sequence[tuple[float, float, float]]]],
    splits: Sequence[str],
) -> str:
    """Arm, the one it is compared with, what the difference shows, and that on each split."""
    lines = [["what it shows", "arms", *splits], ["---"] * (2 + len(splits))]
    for arm, other, shows, differences in rows:
        lines.append([shows, f"`{arm}` − `{other}`", *map(_signed, differences)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(lines: Sequence[Line], splits: Sequence[str], path: Path, title: str) -> None:
    """pass@1 of every arm with its interval, a panel for each split; dots are seeds."""
    figure, panels = plt.subplots(
        1, len(splits), figsize=(5 * len(splits), 0.45 * len(lines) + 1.6), layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    places = range(len(lines))
    for panel, split in zip(panels, splits, strict=True):
        means = [100 * line.scores[split][0] for line in lines]
        low = [100 * (line.scores[split][0] - line.scores[split][1]) for line in lines]
        high = [100 * (line.scores[split][2] - line.scores[split][0]) for line in lines]
        panel.barh(places, means, color="#9db4c8", height=0.6)
        panel.errorbar(means, places, xerr=[low, high], fmt="none", ecolor="#1f4e79", capsize=3)
        if split == splits[0]:
            for place, line in zip(places, lines, strict=True):
                panel.plot([100 * x for x in line.by_seed], [place] * len(line.by_seed), "k.", ms=4)
        panel.set_yticks(list(places), [line.name for line in lines], fontsize=9)
        panel.invert_yaxis()
        panel.set_xlim(left=0)
        panel.set_xlabel("pass@1 (%)")
        panel.set_title(split, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers of a Markdown file, at its end if there are none yet."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin in old and end in old:
        head, _, rest = old.partition(begin)
        new = head + block + rest.partition(end)[2]
    else:
        new = (old.rstrip() + "\n\n" if old.strip() else "") + block + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(new, encoding="utf-8")
    partial.replace(path)


def _percent(interval: tuple[float, float, float]) -> str:
    mean, low, high = (100 * x for x in interval)
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _spread(values: Sequence[float]) -> str:
    """The mean over the seeds that have the figure, and the lowest and highest."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "–"
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * sum(values) / len(values):.1f} % ({low:.1f}–{high:.1f})"


def _signed(interval: tuple[float, float, float]) -> str:
    mean, low, high = (100 * x for x in interval)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
