"""One training step of each objective against the baseline's, side by side in one process.

    python benchmarks/objectives_step.py [--rounds 5] [--out FILE.json]

dim 512, 8 layers (5 + 3 extra heads), n = 4, V = 32000, B 4 × S 512, every token a target, float32.
Every objective trains the same model on the same batch; Rho-1's reference losses are stored (part
of the batch). A step is forward, loss and backward of `TrainingModule`, as the trainer calls it.
The variants take turns (A B C … A B C …) after one warm-up each; the figure is the ratio of the
medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.data.batches import Batch
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import Objective, make_objective

B, S, N = 4, 512, 4
VARIANTS = ("baseline", "rho1", "verifiable", "random_matched", "shuffled")


def make_batch() -> Batch:
    """Random tokens, every one a target, with reference losses."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(32000, (B, S + 1), generator=generator)
    return Batch(
        ids[:, :-1].contiguous(),
        ids.clone(),
        torch.zeros(B, dtype=torch.bool),
        torch.arange(B),
        torch.tensor([True, False] * (B // 2)),
        10 * torch.rand(B, S + 1, generator=generator),
    )


def step(module: TrainingModule, objective: Objective, batch: Batch) -> float:
    """Seconds of one step."""
    module.zero_grad(set_to_none=True)
    started = time.perf_counter()
    denominators = objective.denominators(objective.counts(batch)[None])
    module(batch, "train", denominators).loss.backward()
    return time.perf_counter() - started


def main() -> None:
    """Time, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/objectives_step.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    args = ModelArgs(
        dim=512, n_layers=8, n_heads=8, vocab_size=32000, n_future_tokens=N, max_seq_len=512
    )
    transformer = Transformer(args)
    transformer.init_weights()
    adapter = MetaLlamaMTPAdapter(transformer)
    adapter.attach_value_head()
    batch = make_batch()
    modules: dict[str, tuple[TrainingModule, Objective]] = {}
    for name in VARIANTS:
        objective = make_objective(ObjectiveConfig(name=name), N)  # type: ignore[arg-type]
        modules[name] = (TrainingModule(adapter, objective), objective)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds + 1):
        for name, (module, objective) in modules.items():
            taken = step(module, objective, batch)
            if number:
                seconds[name].append(taken)
    base = statistics.median(seconds["baseline"])
    lines = ["| objective | seconds a step, median (all) | ratio to baseline |", "|---|---|---|"]
    for name, taken in seconds.items():
        each = ", ".join(f"{x:.2f}" for x in taken)
        ratio = statistics.median(taken) / base
        lines.append(f"| {name} | {statistics.median(taken):.2f} ({each}) | {ratio:.3f} |")
    table = "\n".join(lines)
    print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    options.out.write_text(json.dumps({"machine": machine, "seconds": seconds}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(
        f"{__doc__.strip()}\n\n{table}\n\ntorch {torch.__version__}, {machine['threads']} threads, "
        f"{machine['date']}\n"
    )


if __name__ == "__main__":
    main()
