"""How much memory a process takes to start a model that is spread over several of them.

    python benchmarks/start_memory.py [--processes 1 2 4] [--out FILE.json]

A model of dim 1024 (float32) is built on the meta device, sharded (FSDP) and filled, by gloo
processes on this machine, from fresh weights and from a native safetensors checkpoint. Of each
process the largest resident size is sampled every 2 ms, less what it had before:

    private    RssAnon: what only this process has, and cannot give back
    resident   VmRSS: that and the pages of mapped files, which the system takes back at will

glibc is told to give freed memory back at once: what it keeps for later is not the program's. The
most to expect of `private` is this process's part of the model and one weight, the largest, and
what PyTorch loads of itself when it is first used.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from weighted_mtp.core.config.runtime import FSDPConfig, RuntimeConfig
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import open_checkpoint, save_native
from weighted_mtp.pipelines.checkpointing.model_start import (
    DeferredModel,
    fresh_model,
    stored_model,
)
from weighted_mtp.runtime.environment import environment
from weighted_mtp.runtime.modes import parallelise

MB = 10**6
KINDS = {"private": "RssAnon", "resident": "VmRSS"}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def sizes() -> dict[str, int]:
    """Bytes that this process has now."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":") for line in status)
    return {kind: int(fields[name].split()[0]) * 1024 for kind, name in KINDS.items()}


def start(source: str) -> DeferredModel:
    """A model that is not in memory yet."""
    if source != "fresh":
        opened = open_checkpoint(source)
        return stored_model(opened, opened.model.args)
    args = ModelArgs(
        dim=1024, n_layers=12, n_heads=8, vocab_size=8000, n_future_tokens=4, max_seq_len=512
    )
    return fresh_model(args, 0.02)


def measure(source: str, results: Path) -> None:
    """One process: start, and write what it took."""
    with environment("cpu", threads=1, timeout_minutes=5) as env:
        before, peak, done = sizes(), dict.fromkeys(KINDS, 0), threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                peak.update({kind: max(peak[kind], size) for kind, size in sizes().items()})

        thread = threading.Thread(target=watch)
        thread.start()
        model = start(source)
        transformer = model.adapter.transformer
        config = RuntimeConfig(parallel="fsdp", fsdp=FSDPConfig())
        parallel = parallelise(transformer, transformer.grouping_plan(), config, env, model.fill)
        done.set()
        thread.join()
        sized = [w.numel() * w.element_size() for w in parallel.weights.values()]
        found = {"model": sum(sized), "largest": max(sized)}
        found |= {kind: peak[kind] - before[kind] for kind in KINDS}
        (results / f"{env.rank}.json").write_text(json.dumps(found))


def run(source: str, processes: int) -> dict[str, Any]:
    """Start it on so many processes; the figures of the one that took most, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *launch, __file__, "--measure", source, folder]
        quiet = {**os.environ, **GIVE_BACK, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=quiet)
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
    worst = {kind: round(max(rank[kind] for rank in ranks) / MB, 1) for kind in KINDS}
    model, largest = ranks[0]["model"] / MB, ranks[0]["largest"] / MB
    in_place = source == "fresh" and processes == 1  # without a copy of one weight
    expected = model / processes + (0 if in_place else largest)
    return {
        "from": "fresh" if source == "fresh" else "safetensors",
        "processes": processes,
        "model": round(model, 1),
        "part and one weight": round(expected, 1),
        **worst,
        "private / expected": round(worst["private"] / expected, 3),
    }


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/start_memory.json"))
    parser.add_argument("--measure", nargs=2, metavar=("SOURCE", "FOLDER"))
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "model"
        save_native(start("fresh").on(torch.device("cpu")).transformer, stored)
        found = [
            run(source, processes)
            for source in ("fresh", str(stored))
            for processes in options.processes
        ]
    results = {"unit": "MB", "torch": torch.__version__, "runs": found}
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    lines = [list(found[0]), ["---"] * len(found[0]), *(row.values() for row in found)]
    print("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


if __name__ == "__main__":
    main()
