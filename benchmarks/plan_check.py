"""The planner's arithmetic against what real training steps take.

    python benchmarks/plan_check.py [--only NAME …] [--device cuda] [--out FILE.json]

Every setting below runs in processes of its own: a model of dim 512 or 1024 from scratch, and the
third of its steps (DDP lays out its buckets anew in the second). On the CPU (glibc only) this is
read every millisecond of that step, less what there was before the model was built:

    allocated  bytes in pieces of 64 KiB and more, by glibc's own count: tensors, and some 11 MB of
               the libraries'
    resident   of the whole process: code, stacks and fragments too (glibc is told to give freed
               memory back at once)

On a GPU allocated is `torch.cuda.max_memory_allocated`, and there is no other. Both are compared
with `pipelines.memory.peak_memory` of the same recipe. (PyTorch's profiler, exact for one process,
misses what gloo's threads free.) Two-process settings start with torchrun (gloo, or NCCL with two
GPUs) and report rank 0.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import operator
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import psutil
import torch

from plan_settings import SETTINGS, VOCAB, make_batch, make_recipe
from train_step import cpu_name
from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.device import DTYPES
from weighted_mtp.data.batches import Batch
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.compose import prepare_blocks
from weighted_mtp.pipelines.planning.estimate import count, setting_of
from weighted_mtp.pipelines.planning.memory import peak_memory
from weighted_mtp.pipelines.planning.memory_inputs import Counts, Documents, Setting
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective
from weighted_mtp.pipelines.training.optimization import make_optimizer
from weighted_mtp.pipelines.training.reference import token_losses
from weighted_mtp.runtime.environment import Environment, environment
from weighted_mtp.runtime.modes import parallelise


def inputs_of(recipe: Recipe, batch: Batch, ranks: int, gpu: bool) -> tuple[Counts, Setting]:
    """What the arithmetic needs to know."""
    args = shape_of(recipe)
    objective = make_objective(recipe.objective, args.n_future_tokens)
    counts = count(recipe, args, objective)
    rho1 = recipe.objective.rho1.model_copy(update={"reference_model": None})  # is in no folder
    update = {"objective": recipe.objective.model_copy(update={"rho1": rho1})}
    setting = setting_of(recipe.model_copy(update=update), args, objective, ranks, gpu=gpu)
    if recipe.objective.rho1.reference_model is not None:
        setting = replace(setting, reference=counts.parameters)
    if batch.packing is not None:
        cheap = batch.packing.unpacks_cheaply
        documents = Documents(*batch.packing.slots.shape) if cheap else Documents()
        setting = replace(setting, documents=documents)
    return counts, setting


def shape_of(recipe: Recipe) -> ModelArgs:
    """Shape of a setting's model."""
    assert recipe.model.architecture is not None
    return ModelArgs(vocab_size=VOCAB, **recipe.model.architecture.model_dump())


def ready_step(recipe: Recipe, batches: Sequence[Batch], env: Environment) -> Callable[[], None]:
    """A setting's model and optimizer; a step, done as the trainer does it."""
    runtime, training = recipe.runtime, recipe.training
    args = shape_of(recipe)
    adapter = MetaLlamaMTPAdapter(Transformer(args))
    objective = make_objective(recipe.objective, args.n_future_tokens)
    if objective.needs_value_head:
        adapter.attach_value_head(None, recipe.objective.value.head_type)
    dtype = DTYPES[runtime.compute_dtype]
    module = TrainingModule(adapter, objective, dtype).to(env.device)
    online = recipe.objective.rho1.reference_model is not None
    reference = Transformer(args).to(env.device).requires_grad_(False) if online else None
    prepare_blocks(recipe, adapter.transformer)
    parallel = parallelise(module, module.grouping_plan(), runtime, env)
    optimizer = make_optimizer(module, training)

    def step() -> None:
        ready = batches
        if reference is not None:
            ready = [b._replace(reference=token_losses(reference, b, dtype)) for b in batches]
        counted = torch.stack([objective.counts(batch) for batch in ready])
        denominators = objective.denominators(counted * env.world_size)
        for i, batch in enumerate(ready):
            with parallel.micro_batch(last=i == len(ready) - 1):
                out = parallel.module(batch, "train", denominators)
                parallel.backward(out.loss)
        parallel.clip(training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class MallocInfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class Watch:
    """Largest allocated and resident sizes from `begin` to `end`, above those at the start."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.mallinfo = ctypes.CDLL(None).mallinfo2
        self.mallinfo.restype = MallocInfo
        self.start = self.peak = self.read()
        self.running = True
        self.thread = threading.Thread(target=self._watch)

    def read(self) -> tuple[int, ...]:
        """Bytes malloc has mapped for single large pieces, and the process's resident size."""
        return self.mallinfo().hblkhd, self.process.memory_info().rss

    def begin(self) -> None:
        self.thread.start()

    def _watch(self) -> None:
        while self.running:
            self.peak = tuple(map(max, self.peak, self.read()))
            time.sleep(0.001)

    def end(self) -> tuple[int, ...]:
        self.running = False
        self.thread.join()
        return tuple(map(operator.sub, self.peak, self.start))


def measure(name: str, device_name: str) -> dict[str, object]:
    """One setting, in this process (or, under torchrun, in these)."""
    recipe, documents = make_recipe(name, device_name)
    with environment(recipe.runtime.device, 0, 1) as env:
        watch = None if env.device.type == "cuda" else Watch()
        micro_batches = recipe.training.batch_size // recipe.training.micro_batch_size
        micro_batches //= env.world_size
        batches = [make_batch(recipe, documents).to(env.device) for _ in range(micro_batches)]
        counts, setting = inputs_of(recipe, batches[0], env.world_size, watch is None)
        step = ready_step(recipe, batches, env)
        for _ in range(2):
            step()
        started = time.perf_counter()
        if watch is None:
            torch.cuda.reset_peak_memory_stats()
            step()
            peaks = (torch.cuda.max_memory_allocated(),)
        else:
            watch.begin()
            step()
            peaks = watch.end()
        seconds, rank = time.perf_counter() - started, env.rank
    estimate = peak_memory(counts, setting)
    shape = asdict(counts)
    del shape["args"]["family"]  # Llama's, in every setting
    return {
        "setting": name,
        "estimate": estimate.total,
        "parts": estimate.parts,
        "moment": estimate.moment,
        **dict(zip(("allocated", "resident"), peaks, strict=False)),
        "seconds": seconds,
        "counts": shape,
        "how": asdict(setting),
        "rank": rank,
    }


def run_setting(name: str, device: str) -> dict[str, object]:
    """The record of a setting, from processes of its own."""
    ranks = SETTINGS[name][1]
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    give_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [*launch, __file__, "--setting", name, "--device", device]
    env = {**os.environ, **give_back, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}\n{done.stderr[-4000:]}")
    return next(json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"setting"'))


def table(records: list[dict]) -> list[str]:
    """One line a setting, sizes in MB (10⁶ bytes)."""
    lines = [
        "| setting | ranks | resident MB | allocated MB | estimate MB | estimate ÷ allocated "
        "| fullest in |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        resident = f"{r['resident'] / 1e6:.0f}" if "resident" in r else "–"
        lines.append(
            f"| {r['setting']} | {SETTINGS[r['setting']][1]} | {resident} "
            f"| {r['allocated'] / 1e6:.0f} | {r['estimate'] / 1e6:.0f} "
            f"| {r['estimate'] / r['allocated']:.3f} | {r['moment']} |"
        )
    errors = {r["setting"]: abs(r["estimate"] / r["allocated"] - 1) for r in records}
    worst = max(errors, key=lambda name: errors[name])
    return [*lines, "", f"largest error {errors[worst]:.1%} ({worst})"]


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, help="run one in this process (internal)")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/plan_check.json"
    )
    options = parser.parse_args()
    if options.setting:
        record = measure(options.setting, options.device)
        if record["rank"] == 0:
            print(json.dumps(record), flush=True)
        return
    records = []
    for name in options.only:
        records.append(run_setting(name, options.device))
        print(table(records[-1:])[2], file=sys.stderr, flush=True)
    machine = {"torch": torch.__version__, "threads": 1, "cpu": cpu_name()}
    if options.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    text = "\n".join([str(machine), "", *table(records)])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(map(json.dumps, records))
    options.out.write_text(f'{{"machine": {json.dumps(machine)},\n"records": [\n{lines}\n]}}\n')
    options.out.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
