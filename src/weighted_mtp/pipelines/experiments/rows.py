"""The rows of an experiment: generated, drawn, labelled, and dealt out to the arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json_lines
from weighted_mtp.core.types import Row
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.data.examples import Example
from weighted_mtp.data.loading import ShuffledGroups
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import Split, generate
from weighted_mtp.micro_tasks.originals import posed_problems
from weighted_mtp.pipelines.experiments.arms import Rows
from weighted_mtp.pipelines.experiments.request import Regime
from weighted_mtp.pipelines.training.data import micro_families
from weighted_mtp.pipelines.training.mutated import Span, changed_span, original_row

HELD_OUT_SEED = 0
"""Of the generator, for validation and test: all seeds have the same held-out programs."""
KEPT = 0.6
"""Share of the tokens that `random_60` learns from, as Rho-1 does."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows one seed learns from, in the kinds that its arms read.

    Attributes:
        kinds: position i of the examples is the same row in all but `right` and `reference`.
    """

    kinds: Mapping[Rows, Sequence[Example]]

    def groups(self, kind: Rows, seed: int) -> ShuffledGroups:
        """What an arm reads: all kinds that share positions are read in one order.

        Raises:
            UserError: there is no such row.
        """
        chosen = self.kinds[kind]
        if not any(example.has_targets for example in chosen):
            raise UserError(f"no training row is left to the arms that learn from {kind}")
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
    chosen = _draw(rows, regime, rng, path)
    if regime.replaced:
        return noisy_rows(chosen, regime, rng, collator)
    problems = posed_problems(regime.problems, seed, "train", micro_families(recipe.data.micro))
    flipped = set(rng.permutation(len(chosen))[: round(regime.flipped * len(chosen))].tolist())
    examples, masked = [], []
    for number, row in enumerate(chosen):
        example = collator.encode(row, number)
        label = row["is_correct"] != (number in flipped)
        examples.append(example._replace(is_correct=label))
        span = None
        if not row["is_correct"]:
            original = original_row(row, problems, seed)
            if original is None:
                raise UserError(f"{path}: is of other problems; remove it")
            span = changed_span(collator.encode(original).ids, example.ids)
        masked.append(without(examples[-1], [span] if span else []))
    return TrainingRows(
        {
            "all": examples,
            "right": [example for example in examples if example.is_correct],
            # A row without targets is left out of its batch.
            "right_among_all": [x if x.is_correct else _silent(x) for x in examples],
            "without_mistakes": masked,
        }
    )


def noisy_rows(
    rows: Sequence[Row], regime: Regime, rng: np.random.Generator, collator: AlpacaCollator
) -> TrainingRows:
    """Replace a share of the response tokens at random, except EOS; the rows of a third of the
    problems stay clean, for the reference."""
    names = sorted({row["task_id"] for row in rows})
    kept = set(rng.permutation(names)[: len(names) // 3].tolist())
    kinds: dict[Rows, list[Example]] = {
        kind: [] for kind in ("all", "without_mistakes", "random_60", "clean", "reference")
    }
    tokenizer = collator.tokenizer
    special = {tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id}
    usable = np.array([i for i in range(tokenizer.vocab_size) if i not in special])
    for row in rows:
        if row["task_id"] in kept:
            kinds["reference"].append(collator.encode(row, len(kinds["reference"])))
            continue
        clean = collator.encode(row, len(kinds["all"]))
        ids, start = np.array(clean.ids), clean.prompt_length
        places = np.arange(start, len(ids) - (not clean.truncated))
        changed = places[rng.random(len(places)) < regime.replaced]
        for place in changed:
            ids[place] = rng.choice(usable[usable != ids[place]])
        noisy = clean._replace(ids=ids.tolist())
        dropped = np.arange(start, len(ids))[rng.random(len(ids) - start) >= KEPT]
        kinds["all"].append(noisy)
        kinds["clean"].append(clean)
        kinds["without_mistakes"].append(without(noisy, [(i, i + 1) for i in changed.tolist()]))
        kinds["random_60"].append(without(noisy, [(i, i + 1) for i in dropped.tolist()]))
    return TrainingRows(kinds)


def without(example: Example, spans: Sequence[Span]) -> Example:
    """The example, of which some runs of tokens are no targets."""
    inside = [(first, min(end, len(example.ids))) for first, end in spans]
    holes = [(first, end) for first, end in inside if first < end]
    return example._replace(holes=(*example.holes, *holes))


def _draw(rows: Sequence[Row], regime: Regime, rng: np.random.Generator, path: Path) -> list[Row]:
    """As many right and wrong rows as the regime has, in random order."""
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
    return [rows[i] for i in rng.permutation(np.concatenate(drawn))]


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
