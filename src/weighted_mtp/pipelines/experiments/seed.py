"""Everything of one seed, in one process: its rows, its base with critic, its arms.

A file is written when something is finished, so a seed that was interrupted goes on with the first
arm that has none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.run_records import without_nan
from weighted_mtp.core.types import Row
from weighted_mtp.data.examples import Example
from weighted_mtp.data.loading import Groups, ShuffledGroups
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.result_files import write_json
from weighted_mtp.micro_tasks import Split
from weighted_mtp.pipelines.experiments import bench
from weighted_mtp.pipelines.experiments.arms import Arm
from weighted_mtp.pipelines.experiments.bench import Weights
from weighted_mtp.pipelines.experiments.request import (
    BROAD,
    ExperimentRequest,
    arm_path,
    is_excluded,
)
from weighted_mtp.pipelines.experiments.rows import (
    TrainingRows,
    held_out_rows,
    training_rows,
)

log = get_logger(__name__)

ARM_ORDER, REFERENCE_ORDER = 5000, 6000
"""Added to the seed for the order in which arms and the reference read their rows: others than the
base had."""
BROAD_ROWS = 100_000
"""Added to the seed of the generator for the rows of a broad base."""


class Seed:
    """One seed of an experiment.

    Args:
        number: of the seed; those from `CHOICE_SEED` on choose.
    """

    def __init__(self, request: ExperimentRequest, number: int) -> None:
        self.request, self.number = request, number
        self.folder = request.directory / f"seed{number}"
        self.collator = bench.make_collator(self.recipe(request.design.base))

    def recipe(self, arm: Arm, chosen: tuple[str, ...] = ()) -> Recipe:
        """The recipe of an arm, or of the base, for this seed."""
        request = self.request
        base = arm is request.design.base
        own = (
            f"training.steps={request.base_steps if base else request.steps}",
            f"runtime.seed={self.number}",
        )
        return request.design.recipe(arm, request.preset, chosen, (*request.settings, *own))

    @cached_property
    def rows(self) -> TrainingRows:
        """What the arms learn from."""
        path, recipe = self.folder / "rows.jsonl", self.recipe(self.request.design.base)
        return training_rows(path, recipe, self.request.data, self.number, self.collator)

    @cached_property
    def base(self) -> tuple[Weights, dict[str, Any]]:
        """Weights and figures of the base, which is trained if it has not been."""
        recipe = self.recipe(self.request.design.base)

        def groups() -> Groups:
            rows = self.rows
            if self.request.data.base_rows == "broad":
                path = self.folder / "broad.jsonl"
                rows = training_rows(path, recipe, BROAD, BROAD_ROWS + self.number, self.collator)
            return rows.groups("all", self.number)

        return self._stage("base", recipe, groups, None)

    @cached_property
    def reference(self) -> list[Example]:
        """The rows of `all` with the reference's losses; it is trained if it has not been."""
        arm = self.request.design.reference
        if arm is None:
            raise ValueError(f"{self.request.name} has no reference")
        recipe = self.recipe(arm)
        start = self.base[0]
        order = REFERENCE_ORDER + self.number
        weights, _ = self._stage(
            "reference", recipe, lambda: self.rows.groups(arm.rows, order), start
        )
        examples = self.rows.kinds["all"]
        each = bench.losses_of_tokens(bench.model_of(recipe, weights), examples, self.collator)
        pairs = zip(examples, each, strict=True)
        return [example._replace(reference=losses) for example, losses in pairs]

    def _stage(
        self, name: str, recipe: Recipe, groups: Callable[[], Groups], start: Weights | None
    ) -> tuple[Weights, dict[str, Any]]:
        """Train what arms start from or compare with, or read it if that was done before."""
        weights, figures = (self.folder / f"{name}.{end}" for end in ("safetensors", "json"))
        if not figures.exists():
            held_out = self.examples("validation")
            trained = bench.train(recipe, groups(), self.folder, start, held_out)
            partial = weights.with_suffix(".partial")
            save_file(trained.adapter.state_dict(), partial)
            os.replace(partial, weights)
            loss, seconds = trained.held_out["head_loss"][0], trained.seconds
            found = {"loss": loss, "figures": _plain(trained.held_out)}
            write_json(
                figures, without_nan({**found, "tokens": trained.tokens, "seconds": seconds})
            )
            log.info("seed %d: %s, %.4f nats (%.0f s)", self.number, name, loss, seconds)
        return load_file(weights), read_json(figures)

    @property
    def excluded(self) -> bool:
        """Whether the plan's rule leaves this seed out."""
        return is_excluded(self.base[1]["loss"], self.request.data.base_limit)

    def examples(self, split: Split) -> list[Example]:
        """The held-out programs of a split, which must have been generated."""
        return [self.collator.encode(row, i) for i, row in enumerate(self._held_out(split))]

    def problems(self) -> list[Problem]:
        """The test problems to write programs for."""
        right = [row for row in self._held_out("test") if row["is_correct"]]
        return [
            Problem(
                task_id=row["task_id"],
                style="asserts",
                instruction=row["instruction"],
                tests=tuple(row["metadata"]["tests"]),
                entry_point=row["metadata"]["entry_point"],
            )
            for row in right[: self.request.n_problems]
        ]

    def train(self, arm: Arm, chosen: tuple[str, ...] = ()) -> bench.Trained:
        """Train an arm from the base."""
        order = ARM_ORDER + self.number
        groups = self.rows.groups(arm.rows, order)
        if arm.reference:
            groups = ShuffledGroups([(example,) for example in self.reference], order)
        return bench.train(self.recipe(arm, chosen), groups, self.folder, self.base[0])

    def measure(self, trained: bench.Trained | None, split: Split) -> dict[str, Any]:
        """Figures of an arm, or of the base, on a split; `n_problems` only on the test split."""
        base = self.request.design.arms["uniform"]
        adapter = bench.model_of(self.recipe(base), self.base[0])
        if trained is not None:
            adapter = trained.adapter
        examples = self.examples(split)
        summed = bench.losses(adapter, examples, self.collator)
        right = [i for i, example in enumerate(examples) if example.is_correct]
        found: dict[str, Any] = {
            "tokens": 0 if trained is None else trained.tokens,
            "right_preferred": bench.right_preferred(summed, examples),
            "lengths": [len(examples[i].ids) - examples[i].prompt_length for i in right],
            "losses": [[round(x, 6) for x in summed[i].tolist()] for i in right],
        }
        if split == "test" and self.request.n_problems:
            found["passed"] = bench.pass_at_1(adapter, self.problems(), self.collator)
        return found

    def _held_out(self, split: Split) -> list[Row]:
        count = self.request.n_test if split == "test" else self.request.n_validation
        path = held_out_path(self.request, split)
        return held_out_rows(path, self.recipe(self.request.design.base), split, count)


def held_out_path(request: ExperimentRequest, split: Split) -> Path:
    """The file of a split, the same for all seeds."""
    return request.directory / f"{split}.jsonl"


def run_choice_seed(request: ExperimentRequest, number: int) -> None:
    """Measure every setting of the grid on validation. Test programs are not touched: they have
    not been generated yet."""
    seed, design = Seed(request, number), request.design
    if seed.excluded:
        return
    for place, settings in enumerate(design.grid.values()):
        path = seed.folder / f"choice{place}.json"
        if not path.exists():
            began = time.process_time()
            trained = seed.train(design.arms[design.chooser], settings)
            found = seed.measure(trained, "validation")
            found |= {"loss": head_1(found), "seconds": time.process_time() - began}
            write_json(path, found)
            log.info("seed %d: %s, %.4f nats", number, " ".join(settings), found["loss"])


def run_final_seed(request: ExperimentRequest, number: int, chosen: tuple[str, ...]) -> None:
    """Train and measure every arm."""
    seed = Seed(request, number)
    if seed.excluded:
        log.warning("seed %d is excluded: its base has %s nats", number, seed.base[1]["loss"])
        return
    for name in ("base", *request.chosen_arms):
        path = arm_path(request, number, name)
        if not path.exists():
            began = time.process_time()
            trained = None if name == "base" else seed.train(request.design.arms[name], chosen)
            found = seed.measure(trained, "test")
            found["seconds"] = time.process_time() - began
            write_json(path, found)
            loss, seconds = head_1(found), found["seconds"]
            log.info("seed %d: %s, %.4f nats (%.0f s)", number, name, loss, seconds)


def head_1(found: Mapping[str, Any]) -> float:
    """Nats per token of head 1."""
    return float(sum(line[0] for line in found["losses"]) / sum(found["lengths"]))


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that are numbers or lists of numbers."""
    return {k: v for k, v in figures.items() if isinstance(v, (int, float, list))}
