"""Padding and speed of packed rows against padded ones, and whether training ever waits for data.

    python benchmarks/packing.py --mbpp train.jsonl [--dims 256 576] [--rounds 2]
        [--dtype float32] [--out benchmarks/results/packing.json]

Rows are MBPP's training problems (`--mbpp`, the published JSONL), prompts in the Alpaca template,
tokenised by mistral-common's 32k SentencePiece model; without the file, rows of the same lengths
are made up (a normal distribution of the logarithm). Steps of 32 rows are laid out in three ways:

- `drawn`: batches of 4 in the order drawn, each padded to its longest row: what a plain data
  loader gives;
- `alike`: micro-batches of rows of like length (`data.packing: false`): the peer;
- `packed`: rows of 1,023 positions, none seeing another, four of them a micro-batch
  (`data.packing: true`, as a run on a CPU has it).

The heads run only where they predict in all three. And, once, `packed` without each of what makes
it quick, and without all three:

- `row a document`: attention gathers a row for each document, padded to the longest;
- `rows apart`: the packed rows of a micro-batch as they are, with the padding behind each;
- `heads everywhere`: the heads run at every position, prompts too;
- `as it was`: all three;

and `alike, heads everywhere`, what padded rows take without the third.

A model (8 blocks, n = 4, head width 64, V = 32000) trains the same steps in each way, in turns:
forward, fused loss, backward; one thread, processor seconds (user and system). Shares of time are
those of `torch.profiler`, the first step of `alike` and of `packed`. The loader's rate is that of
`StepReader` alone over a thousand steps.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from weighted_mtp.pipelines.training.objectives import Objective
from weighted_mtp.pipelines.training.objectives.base import Uniform

STEP, MICRO, LONGEST, N = 32, 4, 1023, 4
PEER, PACKED = "alike", "packed"
KERNELS = {
    "matrix products": ("aten::mm", "aten::addmm_", "aten::addmm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "softmax of the loss": ("aten::_softmax", "aten::amax"),
    "gather, scatter, cat": ("aten::index", "aten::cat", "aten::scatter", "aten::gather"),
}
"""Operators by the beginning of their names; the first group that fits counts."""


class Everywhere(Uniform):
    """Heads run at every position."""

    @property
    def reads_targets_only(self) -> bool:
        return False


class Way(NamedTuple):
    """How the groups of a step are laid out and trained."""

    lay_out: Callable[[Sequence[Group]], list[Batch]]
    objective: type[Objective] = Uniform


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


def ways_of(pad_id: int) -> dict[str, Way]:
    """Three ways that are compared, then those that lack something."""

    def drawn(groups: Sequence[Group]) -> list[Batch]:
        rows = [example for group in groups for example in group]
        return [pad_batch(rows[i : i + MICRO], pad_id) for i in range(0, len(rows), MICRO)]

    def packed(by_run: bool, end_to_end: bool) -> Callable[[Sequence[Group]], list[Batch]]:
        cutter = Cutter(pad_id, LONGEST, MICRO, True, end_to_end=end_to_end)

        def lay_out(groups: Sequence[Group]) -> list[Batch]:
            return [batch if by_run else without_runs(batch) for batch in cutter.cut(groups)]

        return lay_out

    return {
        "drawn": Way(drawn),
        PEER: Way(Cutter(pad_id, LONGEST, MICRO).cut),
        PACKED: Way(packed(True, True)),
        "row a document": Way(packed(False, True)),
        "rows apart": Way(packed(True, False)),
        "heads everywhere": Way(packed(True, True), Everywhere),
        "as it was": Way(packed(False, False), Everywhere),
        "alike, heads everywhere": Way(Cutter(pad_id, LONGEST, MICRO).cut, Everywhere),
    }


def without_runs(batch: Batch) -> Batch:
    """Attention then takes a row for each document."""
    assert batch.packing is not None
    return batch._replace(packing=batch.packing._replace(runs=()))


def make_model(dim: int) -> MetaLlamaMTPAdapter:
    """Eight blocks, four of them heads."""
    torch.manual_seed(0)
    args = ModelArgs(
        dim=dim,
        n_layers=8,
        n_heads=dim // 64,
        vocab_size=32000,
        n_future_tokens=N,
        max_seq_len=1024,
    )
    transformer = Transformer(args)
    transformer.init_weights()
    return MetaLlamaMTPAdapter(transformer)


def train(module: TrainingModule, batches: Sequence[Batch]) -> float:
    """Processor seconds for forward and backward of a step."""
    objective, started = module.objective, time.process_time()
    module.zero_grad(set_to_none=True)
    counts = torch.stack([objective.counts(batch) for batch in batches])
    denominators = objective.denominators(counts)
    for batch in batches:
        module(batch, "train", denominators).loss.backward()
    return time.process_time() - started


def shares(module: TrainingModule, batches: Sequence[Batch]) -> dict[str, float]:
    """Seconds of a step by kind of operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(module, batches)
    found = dict.fromkeys([*KERNELS, "other"], 0.0)
    for event in profile.key_averages():
        fits = (name for name, starts in KERNELS.items() if event.key.startswith(starts))
        found[next(fits, "other")] += event.self_cpu_time_total / 1e6
    return found


def measure(
    dim: int,
    ways: Mapping[str, Way],
    steps: Sequence[Sequence[Group]],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Seconds and tokens of each way: the three in every step, the others in the first."""
    adapter, seconds = make_model(dim), {name: list[float]() for name in ways}
    modules = {
        name: TrainingModule(adapter, way.objective(ObjectiveConfig(name="uniform"), N), dtype)
        for name, way in ways.items()
    }
    for name, way in ways.items():
        train(modules[name], way.lay_out(steps[0])[:1])  # warms up
    for number, step in enumerate(steps):
        for name, way in list(ways.items())[: None if number == 0 else 3]:
            seconds[name].append(train(modules[name], way.lay_out(step)))
            print(dim, number, name, seconds[name][-1], file=sys.stderr)
    tokens = [sum(e.positions for group in step for e in group) for step in steps]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": {
            name: sum(tokens[: len(times)]) / sum(times) for name, times in seconds.items()
        },
        "over_alike": {name: sum(seconds[PEER]) / sum(seconds[name]) for name in list(ways)[:3]},
        "over_alike_first_step": {
            name: seconds[PEER][0] / times[0] for name, times in seconds.items()
        },
        "profile": {
            name: shares(modules[name], ways[name].lay_out(steps[0])) for name in (PEER, PACKED)
        },
    }


def loader_rate(examples: list[Example], pad_id: int, packing: bool, workers: int) -> float:
    """Tokens a second that the reader hands over, for a thousand steps."""
    groups = ShuffledGroups([(example,) for example in examples], 0)
    cutter = Cutter(pad_id, LONGEST, MICRO, packing, end_to_end=True)
    reader = StepReader(groups, cutter, STEP, workers=workers)
    next(reader)  # starts the workers
    tokens, started = 0, time.process_time()
    for _ in range(1000):
        tokens += sum(int(batch.positions()[1]) for batch in next(reader))
    return tokens / (time.process_time() - started)


def summary(results: dict[str, Any]) -> str:
    """Tables for people."""
    method, dims = results["method"], results["dims"]
    lines = [
        f"{method['source']}, {method['rows']} rows of {method['length']['mean']:.0f} tokens in "
        f"the mean, {method['length']['longest']} at most. Steps of {STEP} rows, micro-batches of "
        f"{MICRO} (packed: {MICRO} rows of {LONGEST} positions); {method['dtype']}, one thread, "
        "processor seconds; what each way is: benchmarks/packing.py. Raw output: packing.json.",
        "",
        "| layout | padding |" + "".join(f" tokens/s, dim {dim} | × alike |" for dim in dims),
        "|---|---|" + "---|---|" * len(dims),
    ]
    for name in ("drawn", PEER, PACKED):
        cells = "".join(
            f" {found['tokens_per_second'][name]:.0f} | {found['over_alike'][name]:.2f} |"
            for found in dims.values()
        )
        lines.append(f"| {name} | {results['padding'][name]:.1%} |{cells}")
    lines += ["", "The first step alone, each way once; × alike:", ""]
    lines += ["| |" + "".join(f" dim {dim} |" for dim in dims), "|---|" + "---|" * len(dims)]
    for name in results["padding"]:
        cells = "".join(f" {x['over_alike_first_step'][name]:.2f} |" for x in dims.values())
        whole = name in ("drawn", PEER, PACKED) or name.startswith(PEER)
        lines.append(f"| {name if whole else 'packed, ' + name} |{cells}")
    lines += ["", "Where the time of that step goes, s (torch.profiler):", ""]
    lines += ["| |" + "".join(f" dim {dim}, {way} |" for dim in dims for way in (PEER, PACKED))]
    lines += ["|---|" + "---|---|" * len(dims)]
    for kind in (*KERNELS, "other"):
        cells = "".join(
            f" {x['profile'][w][kind]:.2f} |" for x in dims.values() for w in (PEER, PACKED)
        )
        lines.append(f"| {kind} |{cells}")
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in results["loader"].items())
    lines += [
        "",
        f"Loader alone, tokens/s: {rates}; the slowest is {results['loader_over_trainer']:.0f} × "
        "what the quickest training takes.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Count, time, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbpp", type=Path, help="MBPP's train.jsonl")
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 576])
    parser.add_argument("--rounds", type=int, default=2, help="steps that are trained")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/packing.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pad_id, source = 0, "made up"
    examples = made_up(374)
    if options.mbpp is not None:
        collator = AlpacaCollator(tokenizer(), "alpaca", LONGEST + 1)
        pad_id, source = collator.tokenizer.pad_id, "MBPP train"
        examples = [collator.encode(row, i) for i, row in enumerate(mbpp_rows(options.mbpp))]
    lengths = sorted(len(e.ids) for e in examples)
    groups = ShuffledGroups([(e,) for e in examples], 0)
    steps = [groups.take(STEP * i, STEP) for i in range(len(examples) // STEP)]
    ways, padding = ways_of(pad_id), {}
    for name, way in ways.items():
        run, filled = sum(b.positions() for step in steps for b in way.lay_out(step)).tolist()
        padding[name] = 1 - filled / run
    dtype: torch.dtype = getattr(torch, options.dtype)
    taken = steps[: options.rounds]
    results: dict[str, Any] = {
        "padding": padding,
        "dims": {str(dim): measure(dim, ways, taken, dtype) for dim in options.dims},
        "loader": {
            f"{name}, {workers} workers": loader_rate(examples, pad_id, name == PACKED, workers)
            for name in (PEER, PACKED)
            for workers in (0, 1)
        },
        "method": {
            "rows": len(examples),
            "source": source,
            "length": {"mean": statistics.mean(lengths), "median": lengths[len(lengths) // 2]}
            | {"longest": lengths[-1]},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "dtype": options.dtype,
        },
    }
    trained = max(max(x["tokens_per_second"].values()) for x in results["dims"].values())
    results["loader_over_trainer"] = min(results["loader"].values()) / trained
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    text = summary(results)
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
