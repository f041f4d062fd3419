"""Everything of one seed of a study, in one process: its puzzles and its arms."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Example, pad_batch
from weighted_mtp.data.packing import Group
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.evaluation.result_files import write_json
from weighted_mtp.micro_tasks.puzzles import Puzzle, PuzzleTask, draw_puzzle
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.experiments import bench
from weighted_mtp.pipelines.experiments.request import arm_path
from weighted_mtp.pipelines.experiments.study import Measure, StudyRequest

log = get_logger(__name__)

TOKENIZER = ByteTokenizer()
FIRST = TOKENIZER.eos_id if TOKENIZER.bos_id is None else TOKENIZER.bos_id
TEST_SEED = -1
"""Of the puzzles to test with: all seeds have the same."""
MEASURED_TOGETHER = 128


@dataclass
class FreshPuzzles:
    """Puzzles by their number, without end: what the arms of a seed read, in one order."""

    task: PuzzleTask
    seed: int
    planned: int = 0
    epoch_size: int = sys.maxsize

    def take(self, position: int, count: int) -> list[Group]:
        numbers = range(position, position + count)
        return [(as_example(draw_puzzle(self.task, self.seed, i), i),) for i in numbers]


class Hits(NamedTuple):
    """What a model found of some puzzles.

    Attributes:
        right: of each puzzle, which symbols of the answer head 1 finds most likely, `[length]`.
        loss: nats per symbol of the answers.
    """

    right: list[Tensor]
    loss: float


def as_example(puzzle: Puzzle, number: int) -> Example:
    """A puzzle as the trainer reads it: BOS, prompt, answer, EOS."""
    ids = [FIRST, *puzzle.prompt, *puzzle.answer, TOKENIZER.eos_id]
    return Example(ids, len(puzzle.prompt) + 1, False, number)


@torch.no_grad()
def find_hits(adapter: MetaLlamaMTPAdapter, puzzles: Sequence[Puzzle]) -> Hits:
    """Read all answers in one pass each. An answer is right throughout if, and only if, greedy
    decoding would write it."""
    right: list[Tensor] = []
    total, count = 0.0, 0
    for start in range(0, len(puzzles), MEASURED_TOGETHER):
        part = puzzles[start : start + MEASURED_TOGETHER]
        batch = pad_batch([as_example(x, i) for i, x in enumerate(part)], TOKENIZER.pad_id)
        logits = adapter.transformer(batch.tokens)[:, :, 0]  # [B, S, V]
        targets = batch.labels[:, 1:]
        total += float(
            F.cross_entropy(
                logits.transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="sum"
            )
        )
        count += int((targets != IGNORE_INDEX).sum())
        hit = logits.argmax(-1) == targets
        for line, puzzle in zip(hit, part, strict=True):
            first = len(puzzle.prompt)
            right.append(line[first : first + len(puzzle.answer)])
    return Hits(right, total / count)


def accuracy(
    measure: Measure, puzzles: Mapping[str, Sequence[Puzzle]], hits: Mapping[str, Hits]
) -> float:
    """A share between 0 and 1; NaN where nothing is asked."""
    good, asked = 0.0, 0
    for level in measure.levels:
        for puzzle, right in zip(puzzles[level], hits[level].right, strict=True):
            places = right[list(puzzle.asked[measure.asked])]
            good += float(places.all()) if measure.whole else float(places.sum())
            asked += 1 if measure.whole else len(places)
    return good / asked if asked else math.nan


def run_study_seed(request: StudyRequest, number: int) -> None:
    """Train and measure every arm that has no file yet."""
    study = request.study
    levels = study.task.levels
    puzzles = {
        level: [draw_puzzle(study.task, TEST_SEED, i, level) for i in range(request.tested)]
        for level in levels
    }
    for name in request.chosen_arms:
        path = arm_path(request, number, name)
        if path.exists():
            continue
        began = time.process_time()
        recipe = request.recipe(name, number)
        folder = path.parent.parent
        trained = bench.train(recipe, FreshPuzzles(study.task, number), folder)
        hits = {level: find_hits(trained.adapter, puzzles[level]) for level in levels}
        found: dict[str, Any] = {
            "tokens": trained.tokens,
            "parameters": sum(p.numel() for p in trained.adapter.transformer.parameters()),
            "loss": {level: round(hits[level].loss, 6) for level in levels},
            "accuracy": {m: accuracy(x, puzzles, hits) for m, x in study.measures.items()},
            "seconds": time.process_time() - began,
        }
        write_json(path, found)
        figure, seconds = found["accuracy"][study.primary], found["seconds"]
        log.info("seed %d: %s, %.1f %% (%.0f s)", number, name, 100 * figure, seconds)
