"""The planner's arithmetic against what real training steps take.

    python benchmarks/plan_check.py [--only NAME …] [--device cuda] [--out FILE.json]

Every setting below runs in processes of its own: a model of dim 512 or 1024 from scratch, a
step to warm up, one whose resident size is watched, and one under the profiler:

    resident   on the CPU: the largest resident size, sampled every 2 ms, less the size before the
               model was built (glibc is told to give freed memory back at once: what it keeps for
               later is not the program's); on a GPU: `torch.cuda.max_memory_allocated`
    allocated  on the CPU: weights and optimizer, plus the largest sum of what PyTorch's profiler
               saw allocated since the step began; needs no quiet machine

and compared with `pipelines.memory.peak_memory` of the same recipe. Two-process settings start with
torchrun (gloo, or NCCL with two GPUs) and report rank 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from train_step import PeakMemory, cpu_name
from weighted_mtp.core.config import Recipe, load_recipe
from weighted_mtp.core.device import DTYPES
from weighted_mtp.data.batches import Batch, Example, pack_batch
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.transformer import ModelArgs, Transformer
from weighted_mtp.pipelines.compose import prepare_blocks
from weighted_mtp.pipelines.estimate import count, setting_of
from weighted_mtp.pipelines.memory import peak_memory
from weighted_mtp.pipelines.memory_inputs import Documents
from weighted_mtp.pipelines.objectives import make_objective
from weighted_mtp.pipelines.optimization import make_optimizer
from weighted_mtp.pipelines.reference import token_losses
from weighted_mtp.pipelines.training_module import TrainingModule
from weighted_mtp.runtime.environment import environment
from weighted_mtp.runtime.modes import parallelise

VOCAB = 8000
SHAPE = {"dim": 512, "n_layers": 8, "n_heads": 8, "n_future_tokens": 4, "max_seq_len": 512}
BASE = {
    "training.micro_batch_size": 2,
    "training.batch_size": 2,
    "data.max_length": 257,
    "runtime.compute_dtype": "float32",
    "runtime.parallel": "none",
}
BF16 = {"runtime.compute_dtype": "bfloat16"}
RECOMPUTE = {"training.activation_checkpointing": True}
TWICE = {"training.batch_size": 4}  # two micro-batches
BOTH = {"training.batch_size": 4}  # one on each of two ranks
FSDP = {**BOTH, "runtime.parallel": "fsdp"}
HALF = {"runtime.fsdp.param_dtype": "bfloat16"}

SETTINGS: dict[str, tuple[str, int, dict[str, object]]] = {  # recipe, ranks, changes
    "baseline": ("baseline", 1, {}),
    "baseline bf16": ("baseline", 1, BF16),
    "baseline recomputed": ("baseline", 1, RECOMPUTE),
    "baseline bf16 recomputed": ("baseline", 1, {**BF16, **RECOMPUTE}),
    "baseline two micro-batches": ("baseline", 1, TWICE),
    "baseline long rows": ("baseline", 1, {"data.max_length": 513}),
    "baseline dim 1024, short rows": ("baseline", 1, {"dim": 1024, "data.max_length": 65}),
    "baseline packed under a mask": ("baseline", 1, {"data.packing": True, "documents": 3}),
    "baseline packed bf16": ("baseline", 1, {**BF16, "data.packing": True, "documents": 2}),
    "baseline tied muon": (
        "baseline",
        1,
        {"model.architecture.tie_embeddings": True, "training.optimizer": "muon"},
    ),
    "verifiable": ("verifiable", 1, {}),
    "verifiable bf16 recomputed": ("verifiable", 1, {**BF16, **RECOMPUTE, **TWICE}),
    "critic frozen": ("critic", 1, {}),
    "critic top": ("critic", 1, {"objective.value.trunk": "top"}),
    "rho1": ("rho1", 1, {}),
    "rho1 bf16 reference model": ("rho1", 1, {**BF16, "objective.rho1.reference_model": "same"}),
    "ddp baseline": ("baseline", 2, {**BOTH, "runtime.parallel": "ddp"}),
    "ddp verifiable bf16 recomputed": (
        "verifiable",
        2,
        {**BOTH, **BF16, **RECOMPUTE, "runtime.parallel": "ddp"},
    ),
    "fsdp baseline": ("baseline", 2, FSDP),
    "fsdp baseline recomputed": ("baseline", 2, {**FSDP, **RECOMPUTE}),
    "fsdp baseline bf16, gathers float32": ("baseline", 2, {**FSDP, **BF16}),
    "fsdp baseline bf16": ("baseline", 2, {**FSDP, **BF16, **HALF}),
    "fsdp verifiable bf16 recomputed": ("verifiable", 2, {**FSDP, **BF16, **HALF, **RECOMPUTE}),
    "fsdp rho1 two micro-batches": ("rho1", 2, {**FSDP, "training.batch_size": 8}),
    "fsdp baseline two, reduced each": (
        "baseline",
        2,
        {**FSDP, "training.batch_size": 8, "runtime.fsdp.reduce_gradients": "micro_batch"},
    ),
    "fsdp baseline not resharded": (
        "baseline",
        2,
        {**FSDP, "runtime.fsdp.reshard_after_forward": False},
    ),
}


def make_recipe(name: str, device: str) -> tuple[Recipe, int]:
    """The recipe of a setting, and documents in a packed row (0: not packed)."""
    recipe, _, changes = SETTINGS[name]
    settings = {**BASE, "data.train": "none.jsonl", "runtime.device": device, **changes}
    documents = settings.pop("documents", 0)
    shape = {**SHAPE, **({"dim": settings.pop("dim")} if "dim" in settings else {})}
    settings |= {f"model.architecture.{key}": value for key, value in shape.items()}
    return load_recipe(recipe, None, [f"{k}={v}" for k, v in settings.items()]), int(documents)


def make_batch(recipe: Recipe, documents: int) -> Batch:
    """Random tokens, every one a target, with reference losses; `documents` in each packed row, of
    one length for 2 and of very different ones for 3."""
    rows, S = recipe.training.micro_batch_size, recipe.data.max_length - 1
    if not documents:
        ids = torch.randint(VOCAB, (rows, S + 1))
        right = torch.arange(rows) % 2 == 0
        losses = 10 * torch.rand(rows, S + 1)
        false = torch.zeros(rows, dtype=torch.bool)
        return Batch(
            ids[:, :-1].contiguous(), ids.clone(), false, torch.arange(rows), right, losses
        )
    lengths = [S // 2] * 2 if documents == 2 else [S - 16, 8, 8]
    packed = [
        [Example(torch.randint(VOCAB, (m + 1,)).tolist(), 0, False, row) for m in lengths]
        for row in range(rows)
    ]
    return pack_batch(packed, 0)


def allocated_peak(step: Callable[[], None]) -> int:
    """Largest sum of what a step allocates, in bytes above its start."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(name: str, device_name: str) -> dict[str, object]:
    """One setting, in this process (or, under torchrun, in these)."""
    recipe, documents = make_recipe(name, device_name)
    runtime, training = recipe.runtime, recipe.training
    with environment(runtime.device, 0, 1) as env, PeakMemory() as memory:
        assert recipe.model.architecture is not None
        args = ModelArgs(vocab_size=VOCAB, **recipe.model.architecture.model_dump())
        adapter = MetaLlamaMTPAdapter(Transformer(args))
        objective = make_objective(recipe.objective, args.n_future_tokens)
        if objective.needs_value_head:
            adapter.attach_value_head(None, recipe.objective.value.head_type)
        module = TrainingModule(adapter, objective, DTYPES[runtime.compute_dtype]).to(env.device)
        counts = count(recipe, args, objective)
        online = recipe.objective.rho1.reference_model is not None
        reference = Transformer(args).to(env.device).requires_grad_(False) if online else None
        prepare_blocks(recipe, adapter.transformer)
        parallel = parallelise(module, module.grouping_plan(), runtime, env)
        optimizer = make_optimizer(module, training)
        micro_batches = training.batch_size // training.micro_batch_size // env.world_size
        batches = [make_batch(recipe, documents).to(env.device) for _ in range(micro_batches)]

        def step() -> None:
            """As the trainer's."""
            ready = batches
            if reference is not None:
                dtype = DTYPES[runtime.compute_dtype]
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

        step()
        if env.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            memory.peak = memory.process.memory_info().rss
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        found = {"resident": memory.bytes, "seconds": seconds}
        if env.device.type == "cuda":
            found = {"resident": torch.cuda.max_memory_allocated(), "seconds": seconds}
        else:
            resting = held_bytes(module, optimizer, reference)
            found["allocated"] = resting + allocated_peak(step)
    no_folder = {"reference_model": None}  # the reference is not in a folder
    rho1 = recipe.objective.rho1.model_copy(update=no_folder)
    plain = recipe.model_copy(
        update={"objective": recipe.objective.model_copy(update={"rho1": rho1})}
    )
    on_gpu = env.device.type == "cuda"
    setting = setting_of(plain, args, objective, env.world_size, gpu=on_gpu)
    packing = batches[0].packing
    if packing is not None:
        cheap = packing.unpacks_cheaply
        setting = replace(
            setting, documents=Documents(*packing.slots.shape) if cheap else Documents()
        )
    estimate = peak_memory(counts, replace(setting, reference=counts.parameters if online else 0))
    return {
        "setting": name,
        "estimate": estimate.total,
        "parts": estimate.parts,
        "moment": estimate.moment,
        **found,
        "rank": env.rank,
    }


def held_bytes(module: torch.nn.Module, optimizer: object, reference: object) -> int:
    """Weights and the optimizer's state, this rank's part of them."""
    tensors = [*module.parameters()]
    if isinstance(reference, torch.nn.Module):
        tensors += reference.parameters()
    for part in getattr(optimizer, "parts", {"": optimizer}).values():
        tensors += [v for state in part.state.values() for v in state.values() if v.ndim]
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)


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
    records = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"setting"')]
    return next(record for record in records if record["rank"] == 0)


def table(records: list[dict]) -> list[str]:
    """One line a setting."""
    lines = [
        "| setting | ranks | resident MB | allocated MB | estimate MB | ÷ resident | ÷ allocated "
        "| fullest in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        allocated = r.get("allocated")
        exact = f"{allocated / 1e6:.0f}" if allocated else "–"
        ratio = f"{r['estimate'] / allocated:.3f}" if allocated else "–"
        lines.append(
            f"| {r['setting']} | {SETTINGS[r['setting']][1]} | {r['resident'] / 1e6:.0f} | {exact} "
            f"| {r['estimate'] / 1e6:.0f} | {r['estimate'] / r['resident']:.3f} | {ratio} "
            f"| {r['moment']} |"
        )
    return lines


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
        print(json.dumps(measure(options.setting, options.device)), flush=True)
        return
    records = []
    for name in options.only:
        records.append(run_setting(name, options.device))
        print(table(records)[-1], file=sys.stderr, flush=True)
    machine = {"torch": torch.__version__, "threads": 1, "cpu": cpu_name()}
    if options.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    text = "\n".join([str(machine), "", *table(records)])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
