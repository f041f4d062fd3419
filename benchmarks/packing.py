"""Padding and speed of packed rows against padded ones, and whether training ever waits for data.

    python benchmarks/packing.py [--mbpp FILE.jsonl] [--rounds 2] [--out FILE.json]

Rows are MBPP's training problems (`--mbpp`, the published JSONL), prompts in the Alpaca template,
tokenised by mistral-common's 32k SentencePiece model; without the file, rows of the same lengths
are made up (a normal distribution of the logarithm). One epoch in steps of 32 rows is laid out in
three ways:

- `drawn`: batches of 4 in the order drawn, each padded to its longest row: what a plain data
  loader gives, and the peer;
- `alike`: micro-batches of rows of like length (`data.packing: false`);
- `packed`: rows of 1,023 positions, none seeing another (`data.packing: true`).

The same model (dim 256, 8 blocks, n = 4, float32) trains the same steps in each, in turns:
forward, fused loss, backward; one thread, processor seconds, so that other work on the machine
counts for little. The loader's rate is that of `StepReader` alone over a thousand steps.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.core.types import Row
from weighted_mtp.data.batches import Batch, Example, pad_batch
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.loading import ShuffledGroups, StepReader
from weighted_mtp.data.packing import Cutter, Group
from weighted_mtp.data.tokens.tokenizers import SentencePieceTokenizer, Tokenizer
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import Objective, make_objective

STEP, MICRO, LONGEST, N = 32, 4, 1023, 4
Layout = Callable[[Sequence[Group]], list[Batch]]


def tokenizer() -> Tokenizer:
    """The 32k SentencePiece model that is shipped with mistral-common."""
    import mistral_common

    folder = Path(mistral_common.__file__).parent / "data"
    return SentencePieceTokenizer(folder / "tokenizer.model.v1")


def mbpp_rows(path: Path) -> list[Row]:
    """Instruction and solution of every problem."""
    problems = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Row(
            instruction=problem["text"] + "\n" + problem["test_list"][0],
            input="",
            output=problem["code"].replace("\r\n", "\n"),
            task_id=str(problem["task_id"]),
            is_correct=True,
            metadata={},
        )
        for problem in problems
    ]


def made_up(count: int, prompt: int = 100) -> list[Example]:
    """Examples of MBPP's lengths: a prompt of about 100 tokens, a solution of e^N(4.1, 0.65)."""
    draw = random.Random(0)
    examples = []
    for i in range(count):
        length = prompt + draw.randint(-20, 20) + max(10, int(math.exp(draw.gauss(4.1, 0.65))))
        ids = [draw.randrange(3, 32000) for _ in range(length)]
        examples.append(Example(ids, prompt, False, i))
    return examples


def layouts(pad_id: int) -> dict[str, Layout]:
    """Three ways to lay out the groups of a step."""
    alike, packed = (Cutter(pad_id, LONGEST, MICRO, packing) for packing in (False, True))

    def drawn(groups: Sequence[Group]) -> list[Batch]:
        rows = [example for group in groups for example in group]
        return [pad_batch(rows[i : i + MICRO], pad_id) for i in range(0, len(rows), MICRO)]

    return {"drawn": drawn, "alike": alike.cut, "packed": packed.cut}


def train(module: TrainingModule, objective: Objective, steps: list[list[Batch]]) -> float:
    """Seconds for forward and backward of all steps."""
    started = time.process_time()
    for batches in steps:
        module.zero_grad(set_to_none=True)
        counts = torch.stack([objective.counts(batch) for batch in batches])
        denominators = objective.denominators(counts)
        for batch in batches:
            module(batch, "train", denominators).loss.backward()
    return time.process_time() - started


def loader_rate(examples: list[Example], pad_id: int, packing: bool, workers: int) -> float:
    """Tokens a second that the reader hands over, for a thousand steps."""
    groups = ShuffledGroups([(example,) for example in examples], 0)
    reader = StepReader(groups, Cutter(pad_id, LONGEST, MICRO, packing), STEP, workers=workers)
    next(reader)  # starts the workers
    tokens, started = 0, time.process_time()
    for _ in range(1000):
        tokens += sum(int(batch.positions()[1]) for batch in next(reader))
    return tokens / (time.process_time() - started)


def main() -> None:
    """Count, time, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbpp", type=Path, help="MBPP's train.jsonl")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="steps that are trained")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/packing.json"))
    options = parser.parse_args()
    pad_id, source = 0, "made up"
    examples = made_up(374)
    if options.mbpp is not None:
        collator = AlpacaCollator(tokenizer(), "alpaca", LONGEST + 1)
        pad_id, source = collator.tokenizer.pad_id, "MBPP train"
        examples = [collator.encode(row, i) for i, row in enumerate(mbpp_rows(options.mbpp))]
    lengths = sorted(len(e.ids) for e in examples)
    groups = ShuffledGroups([(e,) for e in examples], 0)
    steps = [groups.take(STEP * i, STEP) for i in range(len(examples) // STEP)]
    ways = layouts(pad_id)
    results: dict[str, Any] = {}
    for name, way in ways.items():
        run, filled = sum(b.positions() for step in steps for b in way(step)).tolist()
        results[name] = {"padding": 1 - filled / run}

    torch.manual_seed(0)
    args = ModelArgs(
        dim=256, n_layers=8, n_heads=4, vocab_size=32000, n_future_tokens=N, max_seq_len=1024
    )
    transformer = Transformer(args)
    transformer.init_weights()
    objective = make_objective(ObjectiveConfig(name="uniform"), N)
    module = TrainingModule(MetaLlamaMTPAdapter(transformer), objective)
    taken = steps[: options.steps]
    tokens = sum(e.positions for step in taken for group in step for e in group)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            spent = train(module, objective, [way(step) for step in taken[: None if number else 1]])
            if number:
                seconds[name].append(spent)
    for name, times in seconds.items():
        results[name]["tokens_per_second"] = tokens / statistics.median(times)
    trained = results["packed"]["tokens_per_second"]
    results["loader"] = {
        f"{name}, {workers} workers": loader_rate(examples, pad_id, name == "packed", workers)
        for name in ("alike", "packed")
        for workers in (0, 1)
    }
    results["loader_over_trainer"] = min(results["loader"].values()) / trained
    results["method"] = {
        "rows": len(examples),
        "source": source,
        "length": {"mean": statistics.mean(lengths), "median": lengths[len(lengths) // 2]}
        | {"longest": lengths[-1]},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "seconds": seconds,
    }
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
