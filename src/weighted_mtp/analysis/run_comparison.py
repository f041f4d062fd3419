"""Two runs side by side: what one gains on the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from weighted_mtp.analysis.experiment_table import points, signed
from weighted_mtp.analysis.html_parts import Table
from weighted_mtp.core.run_records import differences, head_figures

HEADER = ("figure", "this run", "the other", "difference")
CAPTION = (
    "Differences of pass@1 with 95 % intervals over the problems that both runs were asked. They "
    "tell these two models apart; to tell the methods apart that trained them takes several seeds."
)
FREE = {"model", "tokenizer", "n_problems", "problems", "n_samples", "dtype", "ties", "speculation"}
"""Settings of an evaluation that two runs need not share."""


class PassRates(NamedTuple):
    """pass@1 of two runs on the problems that both were asked.

    Attributes:
        data: the split or data set.
        problems: how many of them.
        mine, theirs: shares in [0, 1].
        difference: `mean`, `low` and `high` of mine − theirs, paired by problem.
    """

    data: str
    problems: int
    mine: float
    theirs: float
    difference: Mapping[str, float]


def compare_runs(
    name: str,
    rates: Sequence[PassRates],
    held_out: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Sequence[str]],
) -> Table:
    """The table of a run beside another; without rows where nothing is common to them.

    Args:
        name: of the other run.
        rates: by split or data set.
        held_out: the last validation record of this run and of the other ({} for none); their
            figures of head 1 are left out if they are of different tokens.
        asked: what differs in how the programs were written and judged, by split or data set.
    """
    rows: list[tuple[str, ...]] = [
        (
            f"pass@1, {each.data}, {each.problems} problems",
            f"{100 * each.mine:.1f} %",
            f"{100 * each.theirs:.1f} %",
            f"{points(each.difference)} points",
        )
        for each in rates
    ]
    tokens = [record.get("tokens") for record in held_out]
    if tokens[0] is not None and tokens[0] == tokens[1]:
        rows += _held_out(held_out)
    told = "".join(
        f" {data} was not evaluated alike: {'; '.join(each)}." for data, each in asked.items()
    )
    return Table(f"Beside {name}", HEADER, rows, CAPTION + told)


def unlike(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two evaluations, but for the model, how many problems
    and programs, and what changes no distribution (drafts). Nothing where one is not recorded."""
    if not (mine and theirs):
        return []
    return [
        f"{key.rpartition('.')[2]} {here} against {there}"
        for key, here, there in sorted(differences(mine, theirs), key=lambda each: each[0])
        if FREE.isdisjoint(key.split("."))
    ]


def _held_out(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Accuracy and loss of head 1."""
    rows = []
    for name, key, factor, places, unit, step in (
        ("next-token accuracy", "head_accuracy", 100, 1, "%", "points"),
        ("next-token loss", "head_loss", 1, 3, "nats", "nats"),
    ):
        mine, theirs = (head_figures(record, key) for record in records)
        if mine and theirs and math.isfinite(mine[0]) and math.isfinite(theirs[0]):
            values = [f"{factor * x[0]:.{places}f} {unit}" for x in (mine, theirs)]
            difference = {"mean": mine[0] - theirs[0], "low": None, "high": None}
            rows.append((name, *values, f"{signed(difference, factor, places)} {step}"))
    return rows
