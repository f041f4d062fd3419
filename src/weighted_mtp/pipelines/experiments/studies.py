"""The studies that `weighted-mtp experiment` knows besides the designs of `arms`."""

from __future__ import annotations

from weighted_mtp.micro_tasks.puzzles import StarGraph
from weighted_mtp.pipelines.experiments.arms import Arm
from weighted_mtp.pipelines.experiments.study import Claim, Measure, Study

BACHMANN = "Bachmann & Nagarajan 2024"
ZUHRI = "Zuhri et al. 2025"


def _heads(n: int, blocks: int, about: str, *more: str) -> Arm:
    """A model of n heads; `blocks` counts trunk and all heads."""
    shape = (f"model.architecture.n_layers={blocks}", f"model.architecture.n_future_tokens={n}")
    return Arm("baseline", about, (*shape, *(more or ("objective.name=uniform",))))


STAR = StarGraph()
STAR_GRAPH = Study(
    name="star-graph",
    about=f"Paths from the centre of G({STAR.degree}, {STAR.length}) to one of its leaves, nodes "
    f"named by {STAR.names} numbers; only the first step is a choice, among {STAR.degree}. Exact "
    "paths of held-out graphs, greedy",
    task=STAR,
    settings=(
        "model.architecture.dim=96",
        "model.architecture.n_heads=4",
        "data.max_length=64",
        "training.batch_size=128",
        "training.micro_batch_size=128",
    ),
    arms={
        "ntp": _heads(1, 5, "next token"),
        "mtp_2": _heads(2, 6, "2 heads, as many blocks before head 1"),
        "mtp_4": _heads(4, 8, "4 heads likewise; head 4 has the goal as target at the choice"),
        "top": _heads(1, 5, "next token, and the order of those to come", "objective.name=top"),
    },
    measures={
        "exact path": Measure("path", STAR.levels, True, "the whole path is right"),
        "first step": Measure("first step", STAR.levels, False, "the one choice is right"),
        "later steps": Measure(
            "later steps", STAR.levels, False, "nodes after the choice, given those before"
        ),
    },
    contrast=Claim(
        "top",
        "ntp",
        "the order of the tokens to come",
        1,
        f"{ZUHRI}: TOP finds paths on graphs where next-token training fails",
    ),
    comparisons=(
        Claim(
            "top",
            "mtp_4",
            "their order, not each of them",
            1,
            f"{ZUHRI}: multi-token prediction fails on graphs that TOP solves",
        ),
        Claim(
            "mtp_4",
            "ntp",
            "all tokens of the path at once",
            1,
            f"{BACHMANN}: predicting the whole path at once (teacherless) solves graphs where "
            "next-token training stays at 1/d",
        ),
        Claim("mtp_2", "ntp", "one token more"),
        Claim("mtp_4", "mtp_2", "how far ahead"),
    ),
    chance=1 / STAR.degree,
    steps=1500,
    n_test=1000,
)
STUDIES = {study.name: study for study in (STAR_GRAPH,)}
"""By name."""
