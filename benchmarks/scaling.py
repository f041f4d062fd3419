"""From one process to two: tokens per second of `weighted-mtp train`, weak and strong scaling.

    python benchmarks/scaling.py [--runs 3] [--out benchmarks/results/scaling.json]

Dim 384, 8 layers (5 + 3 extra heads), n = 4, bytes of Python's own `asyncio` in windows of 512,
float32, AdamW, one thread for each process, gloo.

    alone      one process
    beside     two processes that know nothing of each other, at the same time: all that this
               machine has for two; the sum of both
    ddp, fsdp  two processes under torchrun

weak: every process takes 4 windows a step; strong: a step has 4 windows in all. The figure is the
median of `tokens_per_second` in metrics.jsonl after three steps, over all runs; settings take
turns. Efficiency is against twice `alone`, and against `beside`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from train_step import cpu_name, store

SETTINGS = {
    "model.architecture.dim": 384,
    "model.architecture.n_layers": 8,
    "model.architecture.n_heads": 6,
    "model.architecture.n_future_tokens": 4,
    "model.architecture.max_seq_len": 512,
    "tokenizer.kind": "bytes",
    "data.text.path": Path(asyncio.__file__).parent,
    "data.text.validation_path": Path(asyncio.__file__).parent / "log.py",  # small
    "training.optimizer": "adamw",
    "data.max_length": 512,
    "training.validate_every": 1000,
    "training.save_every": 1000,
    "runtime.compute_dtype": "float32",
    "runtime.threads": 1,
    "runtime.device": "cpu",
}
WARM_UP = 3
WINDOWS = 4
WAYS = ("alone", "beside", "ddp", "fsdp")


def start(way: str, batch: int, steps: int, folder: Path) -> subprocess.Popen[bytes]:
    """A training in processes of its own."""
    processes = 2 if way in ("ddp", "fsdp") else 1
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    if processes == 1:
        launch = [sys.executable]
    changes = {
        **SETTINGS,
        "training.steps": steps,
        "training.batch_size": batch,
        "training.micro_batch_size": batch // processes,
        "runtime.parallel": way if processes == 2 else "none",
    }
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    command = [*launch, "-m", "weighted_mtp", "train", "--recipe", "pretrain", *sets]
    return subprocess.Popen(
        [*command, "--output-dir", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def measure(way: str, batch: int, steps: int) -> list[float]:
    """Tokens per second of each step."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(i) for i in range(2 if way == "beside" else 1)]
        running = [start(way, batch, steps, folder) for folder in folders]
        for process in running:
            _, errors = process.communicate()
            if process.returncode:
                raise SystemExit(f"{way}: exit {process.returncode}\n{errors.decode()[-2000:]}")
        rates = [tokens_per_second(folder / "metrics.jsonl") for folder in folders]
    return [sum(step) for step in zip(*rates, strict=True)]


def tokens_per_second(path: Path) -> list[float]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [r["tokens_per_second"] for r in records if r["kind"] == "train"][WARM_UP:]


def table(records: list[dict]) -> list[str]:
    """A line for each way and kind of scaling."""

    def rate(way: str, kind: str) -> float:
        found = (r for r in records if (r["way"], r["kind"]) == (way, kind))
        return statistics.median(step for r in found for step in r["rates"])

    lines = [
        "| scaling | way | tokens/s | × alone | of twice alone | of beside |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ("weak", "strong"):
        alone, beside = rate("alone", "weak"), rate("beside", "weak")
        for way in WAYS if kind == "weak" else WAYS[2:]:
            own = rate(way, kind)
            lines.append(
                f"| {kind} | {way} | {own:,.0f} | {own / alone:.2f} | {own / alone / 2:.0%} "
                f"| {own / beside:.0%} |"
            )
    return lines


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/scaling.json")
    options = parser.parse_args()
    records = []
    for run in range(options.runs):
        for kind in ("weak", "strong"):
            for way in WAYS if kind == "weak" else WAYS[2:]:
                two = way in ("ddp", "fsdp") and kind == "weak"
                rates = measure(way, WINDOWS * (2 if two else 1), options.steps)
                records.append({"run": run, "kind": kind, "way": way, "rates": rates})
                print(run, kind, way, [round(r) for r in rates], file=sys.stderr, flush=True)
    machine = {"torch": torch.__version__, "threads": 1, "cpu": cpu_name()}
    store(options.out, machine, records, table(records))


if __name__ == "__main__":
    main()
