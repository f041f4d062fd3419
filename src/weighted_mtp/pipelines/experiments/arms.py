"""What an experiment compares: its arms, the contrast it was made for, other comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from weighted_mtp.core.config.recipe import Recipe

Rows = Literal[
    "all", "right", "right_among_all", "without_mistakes", "random_60", "clean", "reference"
]
"""all: every row, in one order for all arms. right: those labelled right, as many a step.
right_among_all: of the very batches of `all`, the rows labelled right. without_mistakes: all, but
the tokens that were mutated, or replaced at random, are no targets. random_60: all, but 40 % of the
tokens are no targets. clean: all, before any token was replaced. reference: other problems."""

CHOSEN = "chosen"
"""In an arm's settings: those that were chosen on validation."""


STAGES = {"verifiable": ("critic_stage=null",), "rho1": ("reference_stage=null",)}
"""Critic and reference are there when an arm begins."""


@dataclass(frozen=True)
class Arm:
    """One way of training, from a common start.

    Attributes:
        recipe: the shipped recipe it follows.
        about: a short description.
        settings: changes to the recipe; `CHOSEN` stands for those chosen on validation.
        rows: what it learns from.
        reference: it compares its losses with those of the reference.
    """

    recipe: str
    about: str
    settings: tuple[str, ...] = ()
    rows: Rows = "all"
    reference: bool = False


@dataclass(frozen=True)
class Comparison:
    """`arm` − `other`, and what the difference shows."""

    arm: str
    other: str
    shows: str


@dataclass(frozen=True)
class Design:
    """An experiment.

    Attributes:
        settings: of every recipe.
        arm_settings: of the recipe of every arm.
        base: the common start, from scratch.
        contrast: the one comparison that is named before the run and not corrected for others.
        grid: settings to choose from, on validation, for the arm `chooser`.
        regimes: names of those it knows, the default first.
        reference: trained from the base, for the arms that need it.
        headroom: the arm from which, and that up to which, shares of the headroom are counted.
    """

    name: str
    settings: tuple[str, ...]
    arm_settings: tuple[str, ...]
    base: Arm
    arms: Mapping[str, Arm]
    contrast: Comparison
    comparisons: tuple[Comparison, ...]
    chooser: str
    grid: Mapping[str, tuple[str, ...]]
    regimes: tuple[str, ...]
    reference: Arm | None = None
    headroom: tuple[str, str] = ("uniform", "oracle")

    def recipe(
        self, arm: Arm, preset: str, chosen: tuple[str, ...], more: tuple[str, ...]
    ) -> Recipe:
        """Load the recipe of an arm.

        Raises:
            UserError: a setting is wrong.
        """
        own: list[str] = []
        for setting in arm.settings:
            own += chosen if setting == CHOSEN else (setting,)
        stage = STAGES.get(arm.recipe, ())
        phase = () if arm is self.base else self.arm_settings
        from weighted_mtp.core.config.recipe import load_recipe  # not for the names of designs

        return load_recipe(arm.recipe, preset, [*self.settings, *stage, *phase, *own, *more])


SETTINGS = (
    # Three fifths of the preset's time per step.
    "model.architecture.dim=96",
    "model.architecture.n_layers=8",
    # As fast on a CPU at this size as bfloat16, and no rounding.
    "runtime.compute_dtype=float32",
    "runtime.device=cpu",
    "data.micro.incorrect_per_problem=1",
)

BASE_SETTINGS = ("training.schedule=linear", "training.final_learning_rate=1e-3")
ARM_SETTINGS = (
    # An arm goes on with the learning rate at which its base ended: one that warmed up and
    # restarted would spend its few steps on getting back to where it began.
    "training.schedule=linear",
    "training.learning_rate=1e-3",
    "training.warmup_fraction=0",
)

REGIMES_OF_MISTAKES = ("scarce", "balanced", "noisy-labels")

BASE = Arm(
    "critic",
    "the common start of all arms",
    ("objective.value.lm_rows=all", *BASE_SETTINGS),
)


def _shuffled(*settings: str) -> Arm:
    """The control of an arm with these settings."""
    about = "its weights shuffled within each program"
    return Arm("verifiable", about, (*settings, "objective.name=shuffled"))


def _random(*settings: str) -> Arm:
    """The same, by chance alone."""
    about = "random weights of its mean and spread"
    return Arm("verifiable", about, (*settings, "objective.name=random_matched"))


WMTP_ARMS: dict[str, Arm] = {
    "uniform": Arm("baseline", "right and wrong programs alike", ("objective.name=uniform",)),
    "filter": Arm("baseline", "programs labelled right, as many rows", rows="right"),
    "filter_same_rows": Arm(
        "baseline", "the rows labelled right of those that uniform sees", rows="right_among_all"
    ),
    "value_only": Arm(
        "verifiable",
        "as uniform, with the value loss",
        ("objective.td.min_weight=1", "objective.td.max_weight=1"),
    ),
    "verifiable": Arm("verifiable", "weighted by TD errors, default λ and β"),
    "verifiable_shuffled": _shuffled(),
    "verifiable_random": _random(),
    "chosen": Arm("verifiable", "weighted by TD errors, λ and β chosen on validation", (CHOSEN,)),
    "chosen_shuffled": _shuffled(CHOSEN),
    "chosen_random": _random(CHOSEN),
    "surprise": Arm(
        "baseline",
        "in wrong programs, tokens the model finds unlikely count less",
        ("objective.name=surprise",),
    ),
    "dft": Arm(
        "baseline", "programs labelled right, by their likelihood", ("objective.name=dft",), "right"
    ),
    "oracle": Arm(
        "baseline",
        "as uniform, without the tokens that were mutated",
        ("objective.name=oracle",),
        "without_mistakes",
    ),
}

WMTP_COMPARISONS = (
    Comparison("chosen", "chosen_random", "weights from evidence, not just uneven ones"),
    Comparison("chosen", "value_only", "weights at all"),
    Comparison("chosen", "uniform", "the whole method"),
    Comparison("chosen", "filter", "weighting wrong programs, not leaving them out"),
    Comparison("chosen", "filter_same_rows", "the same, from the same rows"),
    Comparison("chosen", "surprise", "a critic, not the model's own loss"),
    Comparison("chosen", "oracle", "what is left to gain"),
    Comparison("verifiable", "verifiable_shuffled", "default λ, β: the right tokens"),
    Comparison("verifiable", "verifiable_random", "default λ, β: evidence"),
    Comparison("verifiable", "uniform", "default λ, β: the whole method"),
    Comparison("value_only", "uniform", "the value loss alone"),
    Comparison("surprise", "uniform", "the model's own loss"),
    Comparison("filter", "uniform", "leaving wrong programs out"),
    Comparison("filter_same_rows", "uniform", "the same, from the same rows"),
    Comparison("dft", "filter", "likelihood as weight"),
    Comparison("oracle", "uniform", "the headroom"),
)

GRID = {
    f"λ {lam}, β {beta}": (f"objective.td.lam={lam}", f"objective.td.beta={beta}")
    for lam, beta in (
        (0.0, 0.1),
        (0.5, 0.1),
        (0.8, 0.1),
        (0.95, 0.1),
        (0.5, 0.3),
        (0.8, 0.3),
        (0.95, 0.3),
        (0.95, 0.9),
    )
}

WMTP = Design(
    "wmtp",
    SETTINGS,
    ARM_SETTINGS,
    BASE,
    WMTP_ARMS,
    Comparison("chosen", "chosen_shuffled", "weights on the right tokens"),
    WMTP_COMPARISONS,
    "chosen",
    GRID,
    REGIMES_OF_MISTAKES,
)

_STILL = "objective.value.coef=0"
"""Neither value head nor trunk learns from values: the head keeps what it knew when the arm began,
however far the rows of the arm are from those it learnt from."""

SELECTED = "the 60 % of the tokens furthest behind the reference"
RHO1_ARMS: dict[str, Arm] = {
    "uniform": Arm("baseline", "every token", ("objective.name=uniform",)),
    "same": Arm(
        "rho1",
        f"{SELECTED}'s own head",
        ("objective.rho1.reference_heads=same",),
        reference=True,
    ),
    "next": Arm(
        "rho1",
        f"{SELECTED}'s next-token loss",
        ("objective.rho1.reference_heads=next",),
        reference=True,
    ),
    "random_60": Arm(
        "baseline", "60 % of the tokens, at random", ("objective.name=uniform",), "random_60"
    ),
    "difficult": Arm(
        "rho1", "the 60 % of the tokens with the highest loss", ("objective.rho1.mode=difficult",)
    ),
    "oracle": Arm(
        "baseline",
        "every token that was not replaced",
        ("objective.name=uniform",),
        "without_mistakes",
    ),
    "clean": Arm("baseline", "the programs as they were", ("objective.name=uniform",), "clean"),
}

RHO1 = Design(
    "rho1",
    SETTINGS,
    ARM_SETTINGS,
    Arm(
        "baseline",
        "the common start of all arms",
        ("objective.name=uniform", *BASE_SETTINGS),
    ),
    RHO1_ARMS,
    Comparison("same", "random_60", "the excess loss chooses the tokens"),
    (
        Comparison("same", "uniform", "the whole method"),
        Comparison("next", "random_60", "the same, with the next-token reference"),
        Comparison("next", "uniform", "the whole method, with the next-token reference"),
        Comparison("same", "next", "which reference"),
        Comparison("same", "difficult", "a reference, not the loss alone"),
        Comparison("difficult", "uniform", "the loss alone (negative control)"),
        Comparison("random_60", "uniform", "fewer tokens"),
        Comparison("same", "oracle", "what is left to gain"),
        Comparison("oracle", "uniform", "the headroom"),
        Comparison("clean", "oracle", "noise in the context alone"),
    ),
    "same",
    {},
    ("noisy-tokens",),
    Arm("baseline", "trained on clean programs of other problems", rows="reference"),
)
CRITIC_ARMS: dict[str, Arm] = {
    "uniform": WMTP_ARMS["uniform"],
    "label_weighted": Arm(
        "baseline",
        "every token of a wrong program counts a tenth",
        ("objective.name=label_weighted",),
    ),
    "learning": Arm(
        "verifiable", "weighted by TD errors of a critic that goes on learning", (CHOSEN,)
    ),
    "still": Arm("verifiable", "the same, its critic kept as it was", (CHOSEN, _STILL)),
    "still_shuffled": _shuffled(CHOSEN, _STILL),
    "oracle": WMTP_ARMS["oracle"],
}

CRITIC = Design(
    "critic",
    SETTINGS,
    ARM_SETTINGS,
    BASE,
    CRITIC_ARMS,
    Comparison("still", "label_weighted", "a critic, not just the labels of the rows"),
    (
        Comparison("still", "still_shuffled", "weights on the right tokens"),
        Comparison("still", "learning", "keeping the critic as it was"),
        Comparison("still", "uniform", "the whole method"),
        Comparison("label_weighted", "uniform", "the labels of the rows"),
        Comparison("label_weighted", "learning", "the labels, not a critic that learns"),
        Comparison("still", "oracle", "what is left to gain"),
        Comparison("oracle", "uniform", "the headroom"),
    ),
    "still",
    GRID,
    REGIMES_OF_MISTAKES,
)

_WITHIN = ("objective.td.rows=labels", _STILL)
WITHIN = Design(
    "within",
    SETTINGS,
    ARM_SETTINGS,
    BASE,
    {
        "uniform": WMTP_ARMS["uniform"],
        "label_weighted": CRITIC_ARMS["label_weighted"],
        "still": replace(
            CRITIC_ARMS["still"], about="weighted by TD errors of a critic that is kept as it was"
        ),
        "within": Arm(
            "verifiable",
            "rows weighted by their labels as label_weighted, tokens within them by the critic",
            (CHOSEN, *_WITHIN),
        ),
        "within_shuffled": _shuffled(CHOSEN, *_WITHIN),
        "oracle": WMTP_ARMS["oracle"],
    },
    Comparison("within", "label_weighted", "a critic within the rows, labels between them"),
    (
        Comparison("within", "within_shuffled", "weights on the right tokens"),
        Comparison("within", "still", "labels between the rows, not the critic"),
        Comparison("within", "uniform", "the whole method"),
        Comparison("label_weighted", "uniform", "the labels of the rows"),
        Comparison("within", "oracle", "what is left to gain"),
        Comparison("oracle", "uniform", "the headroom"),
    ),
    "within",
    GRID,
    REGIMES_OF_MISTAKES,
)
DESIGNS = {design.name: design for design in (WMTP, CRITIC, WITHIN, RHO1)}
