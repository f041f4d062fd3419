"""The studies that `weighted-mtp experiment` knows besides the designs of `arms`."""

from __future__ import annotations

from weighted_mtp.micro_tasks.puzzles import Polynomials, StarGraph, Stories
from weighted_mtp.micro_tasks.puzzles.stories import SYLLABLES
from weighted_mtp.pipelines.experiments.arms import Arm
from weighted_mtp.pipelines.experiments.study import STUDY_SIZES, Claim, Measure, Study

BACHMANN = "Bachmann & Nagarajan 2024"
ZUHRI = "Zuhri et al. 2025"
GLOECKLE = "Gloeckle et al. 2024"
"""What they report is given by sign, as their abstracts (and Gloeckle's appendix J) state it."""


def _heads(n: int, blocks: int, about: str, *more: str) -> Arm:
    """A model of n heads; `blocks` counts trunk and all heads."""
    shape = (f"model.architecture.n_layers={blocks}", f"model.architecture.n_future_tokens={n}")
    return Arm("baseline", about, (*shape, *(more or ("objective.name=uniform",))))


STAR = StarGraph(length=4, names=12)
STAR_GRAPH = Study(
    name="star-graph",
    about=f"Paths from the centre of G({STAR.degree}, {STAR.length}) to one of its leaves, nodes "
    f"named by {STAR.names} numbers; only the first step is a choice, among {STAR.degree}. Exact "
    "paths of held-out graphs, greedy",
    task=STAR,
    settings=(
        "model.architecture.dim=64",
        "model.architecture.n_heads=2",
        "data.max_length=64",
        "training.batch_size=128",
        "training.micro_batch_size=128",
    ),
    arms={
        "ntp": _heads(1, 5, "next token"),
        "mtp_2": _heads(2, 6, "2 heads, as many blocks before head 1"),
        "mtp_4": _heads(4, 8, "4 heads likewise; at the choice head 3 has the goal as target"),
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
    size=STUDY_SIZES["star-graph"],
)
RING = Polynomials()
TRAINED, BEYOND = RING.levels[: RING.trained_levels], RING.levels[RING.trained_levels :]
DEPTH = 5
"""Blocks on the path to head 1 of the model with one head."""
POLYNOMIAL_ARMS = {
    "n1": _heads(1, DEPTH, f"1 head, {DEPTH} blocks"),
    "n2_blocks": _heads(2, DEPTH, f"2 heads, {DEPTH} blocks in all"),
    "n4_blocks": _heads(4, DEPTH, f"4 heads, {DEPTH} blocks in all"),
    "n2_depth": _heads(2, DEPTH + 1, f"2 heads, {DEPTH} blocks before head 1, 1 beside"),
    "n4_depth": _heads(4, DEPTH + 3, f"4 heads, {DEPTH} blocks before head 1, 3 beside"),
}
INSIDE, OUTSIDE = "coefficients, 1–5", "coefficients, 6–8"
BETTER = f"{GLOECKLE}: multi-token prediction favours algorithmic reasoning, on this task"
POLYNOMIALS = Study(
    name="polynomials",
    about="Expressions of 1 to 8 operations (negation, sum, product, composition) in F₇[X]/(X⁵), "
    "up to 5 of them in training; the answer is five coefficients. Shares of right coefficients, "
    "each after the right ones before it: whole answers are near the floor at this size",
    task=RING,
    settings=(
        "model.architecture.dim=96",
        "model.architecture.n_heads=4",
        "data.max_length=96",
        "training.batch_size=64",
        "training.micro_batch_size=64",
    ),
    arms=POLYNOMIAL_ARMS,
    measures={
        INSIDE: Measure("value", TRAINED, False, "in distribution"),
        OUTSIDE: Measure("value", BEYOND, False, "out of distribution"),
        "answers, 1–5": Measure("value", TRAINED, True, "all five coefficients are right"),
        "answers, 6–8": Measure("value", BEYOND, True, "all five coefficients are right"),
        **{m: Measure("value", (m,), False, f"{m} operations") for m in RING.levels},
    },
    contrast=Claim("n2_blocks", "n1", "2 heads, as many blocks in all", 1, BETTER),
    comparisons=(
        Claim("n4_blocks", "n1", "4 heads, as many blocks in all", 1, BETTER),
        Claim("n2_depth", "n1", "2 heads, as many blocks before head 1"),
        Claim("n4_depth", "n1", "4 heads, as many blocks before head 1"),
        Claim("n2_depth", "n2_blocks", "a block more"),
        Claim("n2_blocks", "n1", "2 heads, out of distribution", 1, BETTER, OUTSIDE),
        Claim("n4_blocks", "n1", "4 heads, out of distribution", 1, BETTER, OUTSIDE),
        Claim("n4_depth", "n1", "4 heads, same depth, out of distribution", measure=OUTSIDE),
    ),
    chance=1 / 7,
    size=STUDY_SIZES["polynomials"],
    points=RING.levels,
    axes=("operations; 1 to 5 in training", "right coefficients"),
    lines={arm: tuple((arm, m) for m in RING.levels) for arm in POLYNOMIAL_ARMS},
)

SIZES = {"1M": (128, 5), "3M": (192, 7), "10M": (320, 8)}
"""Width and blocks; parameters without embeddings."""
HEADS = (1, 2, 4)
AGAIN = "second token, again"
EARLIER = (
    f"{GLOECKLE}: 2 heads favour induction in small models; in the smallest alone where the data "
    "itself calls for it"
)
STORIES = Stories()
INDUCTION = Study(
    name="induction",
    about="Stories with two characters whose names are two tokens, made up for each test story and "
    f"for {STORIES.made_up:.0%} of the characters in training. Right second tokens of names that "
    "were named before, teacher-forced",
    task=STORIES,
    settings=(
        "data.max_length=160",
        "training.batch_size=16",
        "training.micro_batch_size=16",
    ),
    arms={
        f"{size}_n{n}": Arm(
            "baseline",
            f"{n} head{'s' if n > 1 else ''}, {blocks} blocks in all of width {dim}",
            (
                "objective.name=uniform",
                f"model.architecture.dim={dim}",
                f"model.architecture.n_heads={dim // 32}",
                f"model.architecture.n_layers={blocks}",
                f"model.architecture.n_future_tokens={n}",
            ),
        )
        for size, (dim, blocks) in SIZES.items()
        for n in HEADS
    },
    measures={
        AGAIN: Measure("again", STORIES.levels, False, "names that were named before"),
        "second token, first time": Measure("new", STORIES.levels, False, "a guess"),
    },
    contrast=Claim("1M_n2", "1M_n1", "2 heads, 1 M parameters", 1, EARLIER),
    comparisons=(
        Claim("3M_n2", "3M_n1", "2 heads, 3 M parameters", 1, EARLIER),
        Claim("10M_n2", "10M_n1", "2 heads, 10 M parameters", 1, EARLIER),
        Claim("1M_n4", "1M_n1", "4 heads, 1 M parameters"),
        Claim("3M_n4", "3M_n1", "4 heads, 3 M parameters"),
        Claim("10M_n4", "10M_n1", "4 heads, 10 M parameters"),
    ),
    chance=1 / SYLLABLES,
    size=STUDY_SIZES["induction"],
    extra=tuple(f"10M_n{n}" for n in HEADS),
    points=tuple(SIZES),
    axes=("parameters without embeddings", "right second tokens of names"),
    lines={f"n = {n}": tuple((f"{size}_n{n}", AGAIN) for size in SIZES) for n in HEADS},
)

STUDIES = {study.name: study for study in (STAR_GRAPH, POLYNOMIALS, INDUCTION)}
"""By name."""
