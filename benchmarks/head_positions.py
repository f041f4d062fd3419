"""What heads 2 … n cost when they learn at part of the positions, and what they then learn.

    python benchmarks/head_positions.py [--rounds 3] [--dtype float32|bfloat16]
                                        [--learn STEPS --seeds 3] [--out FILE.json]

Time: SmolLM2-135M's shape (dim 576, 30 blocks, V = 49,152, tied), random weights, B 4 × S 256,
every token a target, all weights trained. n = 1, and the same with three further heads at all, half
and a quarter of the positions; each is forward, loss and backward of `TrainingModule`. The variants
take turns after one warm-up each; figures are ratios of medians to n = 1. FLOPs are those of the
products with weights (an unembedding for each head and position that learns).

Learning (`--learn`): the micro preset of `baseline` from scratch, as many steps for each share, and
the validation loss of each head; mean and standard deviation over seeds, and of the differences to
all positions by seed. `--rounds 0` keeps the times that --out has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from train_step import cpu_name
from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.data.batches import Batch
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.compose import run
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective

B, S, V, DIM = 4, 256, 49_152, 576
VARIANTS = ((1, 1.0), (4, 1.0), (4, 0.5), (4, 0.25))


def module_of(n: int, share: float, dtype: torch.dtype) -> TrainingModule:
    """A model of the shape with n heads, its objective and compute dtype."""
    torch.manual_seed(0)
    args = ModelArgs(
        dim=DIM,
        n_layers=29 + n,
        n_heads=9,
        n_kv_heads=3,
        vocab_size=V,
        ffn_hidden_dim=1536,
        n_future_tokens=n,
        max_seq_len=S,
        tie_embeddings=True,
    )
    transformer = Transformer(args)
    transformer.init_weights()
    config = ObjectiveConfig(name="uniform", head_positions=share)
    return TrainingModule(MetaLlamaMTPAdapter(transformer), make_objective(config, n), dtype)


def flops(module: TrainingModule, share: float) -> float:
    """Of a step's products with weights, relative."""
    args = module.adapter.transformer.args
    block = sum(p.numel() for p in module.adapter.transformer.layers[0].parameters())
    heads = args.n_future_tokens - 1
    return block * args.n_layers + V * DIM * (1 + heads * share)


def seconds(module: TrainingModule, batch: Batch) -> float:
    """One step."""
    module.zero_grad(set_to_none=True)
    objective = module.objective
    started = time.perf_counter()
    denominators = objective.denominators(objective.counts(batch)[None])
    module(batch, "train", denominators).loss.backward()
    return time.perf_counter() - started


def time_table(rounds: int, dtype: torch.dtype) -> tuple[list[dict], list[str]]:
    """Records and a table."""
    ids = torch.randint(V, (B, S + 1), generator=torch.Generator().manual_seed(0))
    right = torch.ones(B, dtype=torch.bool)
    batch = Batch(ids[:, :-1].contiguous(), ids, ~right, torch.arange(B), right)
    modules = [(n, share, module_of(n, share, dtype)) for n, share in VARIANTS]
    taken: list[list[float]] = [[] for _ in modules]
    for turn in range(rounds + 1):
        for place, (_, _, module) in enumerate(modules):
            each = seconds(module, batch)
            module.zero_grad(set_to_none=True)
            if turn:
                taken[place].append(each)
    base, work = statistics.median(taken[0]), flops(modules[0][2], 1.0)
    records = []
    for (n, share, module), each in zip(modules, taken, strict=True):
        ratio, more = statistics.median(each) / base, flops(module, share) / work
        records.append({"n": n, "share": share, "seconds": each, "ratio": ratio, "flops": more})
    return records, table_of(records)


def table_of(records: list[dict]) -> list[str]:
    """Step times as Markdown."""
    lines = [
        "| n | positions of heads 2 … n | s a step | × n = 1 | FLOPs × |",
        "|--:|--:|--:|--:|--:|",
    ]
    for r in records:
        cells = f"{statistics.median(r['seconds']):.2f} | {r['ratio']:.2f} | {r['flops']:.2f}"
        lines.append(f"| {r['n']} | {r['share']:.0%} | {cells} |")
    return lines


def learn_table(steps: int, seeds: int) -> tuple[list[dict], list[str]]:
    """Validation losses after training from scratch."""
    lines = [
        "| positions | loss of heads 1 … 4, nats (± sd over seeds) | − all positions, by seed |",
        "|--:|---|---|",
    ]
    records = []
    for share in (1.0, 0.5, 0.25):
        losses = []
        for seed in range(seeds):
            changes = (f"objective.head_positions={share}", f"training.steps={steps}")
            changes += (f"runtime.seed={seed}", f"training.validate_every={steps}")
            recipe = load_recipe("baseline", "micro", [*changes, "runtime.device=cpu"])
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                run(RunRequest(recipe, out))
                found = [json.loads(line) for line in (out / "metrics.jsonl").open()]
            losses.append([r for r in found if r["kind"] == "validation"][-1]["head_loss"])
        records.append({"share": share, "losses": losses})
        whole = records[0]["losses"]
        differences = [
            [x - y for x, y in zip(*pair, strict=True)] for pair in zip(losses, whole, strict=True)
        ]
        cells = f"{_spread(losses)} | {_spread(differences, '+') if share < 1 else '–'}"
        lines.append(f"| {share:.0%} | {cells} |")
    return records, lines


def _spread(rows: list[list[float]], sign: str = "") -> str:
    """Mean ± standard deviation over seeds, of each head."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    spreads = [statistics.stdev(x) if len(x) > 1 else 0.0 for x in columns]
    means = [statistics.mean(x) for x in columns]
    return ", ".join(f"{m:{sign}.4f} ± {s:.4f}" for m, s in zip(means, spreads, strict=True))


def main() -> None:
    """Time, train if asked, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--learn", type=int, default=0, metavar="STEPS")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/head_positions.json"
    )
    options = parser.parse_args()
    machine = {"cpu": cpu_name(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    machine |= {"dtype": options.dtype, "date": time.strftime("%Y-%m-%d")}
    if options.rounds:
        times, lines = time_table(options.rounds, getattr(torch, options.dtype))
    else:
        stored = json.loads(options.out.read_text())
        times, machine = stored["times"], stored["machine"] | {"learnt_on": machine}
        lines = table_of(times)
    learnt: list[dict] = []
    if options.learn:
        learnt, more = learn_table(options.learn, options.seeds)
        lines += ["", f"After {options.learn} steps, {options.seeds} seeds:", "", *more]
    text = "\n".join([str(machine), "", *lines])
    print(text)
    found = {"machine": machine, "times": times, "learnt": learnt}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
