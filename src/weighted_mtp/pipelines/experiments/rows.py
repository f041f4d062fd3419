"""The rows of an experiment: generated, drawn, labelled, and dealt out to the arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json_lines
from weighted_mtp.core.types import Row
from weighted_mtp.data.batches import Example
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.data.loading import ShuffledGroups
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import Split, generate
from weighted_mtp.micro_tasks.originals import posed_problems
from weighted_mtp.pipelines.experiments.arms import Rows
from weighted_mtp.pipelines.experiments.plan import Regime
from weighted_mtp.pipelines.training.data import micro_families
from weighted_mtp.pipelines.training.mutated import changed_span, original_row

HELD_OUT_SEED = 0
"""Of the generator, for validation and test: all seeds have the same held-out programs."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows one seed learns from.

    Attributes:
        examples: with the labels that training sees.
        unmutated: the examples, of which the mutated tokens of wrong programs are no targets.
    """

    examples: Sequence[Example]
    unmutated: Sequence[Example]

    def groups(self, kind: Rows, seed: int) -> ShuffledGroups:
        """What an arm reads. Position p is the same row in all kinds but `right`.

        Raises:
            UserError: no row is labelled right.
        """
        chosen = self.unmutated if kind == "unmutated" else self.examples
        if kind == "right":
            chosen = [example for example in chosen if example.is_correct]
        if kind == "right_among_all":  # a row without targets is left out of its batch
            chosen = [x if x.is_correct else _silent(x) for x in chosen]
        if not any(example.is_correct for example in chosen):
            raise UserError("no training row is labelled right")
        return ShuffledGroups([(example,) for example in chosen], seed)


def held_out_rows(path: Path, recipe: Recipe, split: Split, count: int) -> list[Row]:
    """Read, or generate first, a right and a wrong program of each of `count` problems."""
    return _kept(path, recipe, (count, HELD_OUT_SEED, split, 1, 1))


def training_rows(
    path: Path, recipe: Recipe, regime: Regime, seed: int, collator: AlpacaCollator
) -> TrainingRows:
    """Draw a seed's rows; those of a file that is there are not generated again.

    Raises:
        UserError: the problems do not have so many programs.
    """
    right, wrong = (-(-n // regime.problems) for n in (regime.right, regime.wrong))
    rows = _kept(path, recipe, (regime.problems, seed, "train", right, wrong))
    rng = np.random.default_rng([seed, regime.right, regime.wrong])
    labels = np.array([row["is_correct"] for row in rows])
    drawn = []
    for label, count in ((True, regime.right), (False, regime.wrong)):
        there = np.flatnonzero(labels == label)
        if len(there) < count:
            raise UserError(
                f"{path}: {len(there)} programs are {'right' if label else 'wrong'}, the regime "
                f"takes {count}"
            )
        drawn.append(rng.permutation(there)[:count])
    order = rng.permutation(np.concatenate(drawn))
    flipped = set(rng.permutation(len(order))[: round(regime.flipped * len(order))].tolist())
    chosen = [rows[i] for i in order]
    problems = posed_problems(regime.problems, seed, "train", micro_families(recipe.data.micro))
    examples, unmutated = [], []
    for number, row in enumerate(chosen):
        example = collator.encode(row, number)
        whole = example
        if not row["is_correct"]:
            original = original_row(row, problems, seed)
            if original is None:
                raise UserError(f"{path}: is of other problems; remove it")
            first, end = changed_span(collator.encode(original).ids, example.ids)
            end = min(end, len(example.ids))
            whole = example._replace(holes=(*example.holes, (first, end))) if first < end else whole
        label = row["is_correct"] != (number in flipped)
        examples.append(example._replace(is_correct=label))
        unmutated.append(whole._replace(is_correct=label))
    return TrainingRows(examples, unmutated)


def _kept(path: Path, recipe: Recipe, what: tuple[int, int, Split, int, int]) -> list[Row]:
    """Generate rows, or read them if that was done before."""
    if not path.exists():
        count, seed, split, right, wrong = what
        families = micro_families(recipe.data.micro)
        with Sandbox(workers=1) as judge:
            write_jsonl(path, generate(count, seed, judge, split, right, wrong, families))
    return [Row(**row) for row in read_json_lines(path)[0]]  # type: ignore[typeddict-item]  # ours


def _silent(example: Example) -> Example:
    return example._replace(prompt_length=len(example.ids))
