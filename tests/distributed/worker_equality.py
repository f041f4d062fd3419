"""Started by torchrun: the objectives on two processes against one, in float64.

    worker_equality.py GROUP,GROUP… ROWS FOLDER
    worker_equality.py late ARGUMENT …

The first process trains every case of a group alone, then both train it together in each of the
group's modes: the curve, the gradient norms, the weights and the held-out figures are equal.
Micro-batches are half as large on two processes, so that what is decided over one forward pass is
decided over the same rows.

`late` is the command line, where the second process starts a second after the first.
"""

import logging
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from tests.helpers import end_worker
from tests.integration.helpers_training import (
    CRITIC,
    SMALL,
    build_trainer,
    largest_difference,
    recut,
    run_steps,
    same,
    state,
    whole,
)
from torch.utils._python_dispatch import TorchDispatchMode

from weighted_mtp.cli.main import main as command_line
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.pipelines.training.trainer import Trainer
from weighted_mtp.runtime.environment import Environment
from weighted_mtp.runtime.modes import can_shard

TOLERANCE = 1e-9
STEP = {"objective.scope": "step"}
WHITEN = {"objective.td.whiten": "batch"}
PAIRS = {"objective.value.loss": "pairwise", "objective.value.trunk": "all"}
PACKED = {"data.packing": True}
RECOMPUTED = {"training.activation_checkpointing": "selective"}
DECISIONS = {
    "baseline dft": {"objective.name": "dft"},
    "baseline surprise": {"objective.name": "surprise"},
    "baseline top": {"objective.name": "top"},
    "critic": {**CRITIC, **RECOMPUTED},
    "critic pairwise": PAIRS,
    "verifiable": {"objective.value.gradient_to_trunk": True},
    "verifiable ema": {"objective.td.whiten": "ema"},
    "verifiable whiten": WHITEN,
    "verifiable whiten step": {**WHITEN, **STEP},
    "verifiable renormalise": {"objective.td.renormalise": True},
    "verifiable random_matched": {"objective.name": "random_matched"},
    "verifiable shuffled": {"objective.name": "shuffled"},
    "rho1": {},
    "rho1 step": STEP,
    "rho1 difficult": {"objective.rho1.mode": "difficult"},
    "baseline packed": PACKED,
    "heads packed": PACKED,
    "critic pairwise packed": {**PAIRS, **PACKED},
    "verifiable whiten step packed": {**WHITEN, **STEP, **PACKED},
    "rho1 step packed": {**STEP, **PACKED},
}
CURVES = {
    "baseline": {},
    "critic": CRITIC,
    "verifiable": {"objective.value.gradient_to_trunk": True, "objective.td.whiten": "ema"},
    "rho1": STEP,
}
PARTS = {
    "baseline each": {**RECOMPUTED, "runtime.fsdp.reduce_gradients": "micro_batch"},
    "baseline tied": {
        "model.architecture.tie_embeddings": True,
        "runtime.fsdp.reshard_after_forward": False,
    },
    "critic frozen": {"objective.value.trunk": "frozen", "objective.value.lm_coef": 0.0},
    "critic top": {
        "objective.value.trunk": "top",
        "objective.value.top_blocks": 1,
        "objective.value.head_type": "mlp",
        **RECOMPUTED,
    },
    "verifiable step packed": {**WHITEN, **STEP, **PACKED},
    "baseline top packed": {"objective.name": "top", **PACKED},
}


class Group(NamedTuple):
    """Of six rows in twos, the third micro-batch leaves the second process an empty one.

    Attributes:
        modes: of the processes together; the first process alone computes nothing twice.
        uneven: rows of very different lengths; see `write_uneven_rows`.
    """

    modes: dict[str, dict]
    batch_size: int
    steps: int
    cases: dict[str, dict]
    uneven: bool = False


DDP, FSDP = {"runtime.parallel": "ddp"}, {"runtime.parallel": "fsdp"}
HSDP = {"runtime.parallel": "hsdp", "runtime.fsdp.shard_size": 2}
HALF = {"ddp": DDP, "fsdp recomputed": FSDP | RECOMPUTED}
OTHER_HALF = {"ddp recomputed": DDP | RECOMPUTED, "fsdp": FSDP}
GROUPS = {
    "curves": Group(HALF, 6, 30, CURVES, uneven=True),
    "others": Group(OTHER_HALF, 6, 30, CURVES, uneven=True),
    "hsdp": Group({"hsdp": HSDP}, 12, 30, CURVES, uneven=True),
    "parts": Group({"fsdp": FSDP}, 6, 5, PARTS),
    "even": Group({"ddp": DDP}, 8, 5, DECISIONS),
    "empty": Group({"ddp": DDP}, 6, 5, DECISIONS),
}
Outcome = tuple[list[dict], dict, Trainer]


def write_uneven_rows(path: Path) -> None:
    """Two of three responses are a letter, the others fill the longest row. Batches are cut by
    length, so one process gets most of the tokens."""
    rows = [
        {
            "instruction": f"add {i % 7}",
            "input": "",
            "output": "x" * (90 + i % 5) if i % 3 == 0 else "abcdefg"[i % 7],
            "task_id": f"sum/{i // 2}",
            "is_correct": i % 2 == 0,
            "metadata": {"source": "made by hand"},
        }
        for i in range(24)
    ]
    write_jsonl(path, rows)


def trained(name: str, case: str, mode: dict, rows: Path, env: Environment) -> Outcome:
    group = GROUPS[name]
    settings = {**SMALL, **group.cases[case], **mode, "training.steps": group.steps}
    settings |= {"training.batch_size": group.batch_size, "training.micro_batch_size": 2}
    settings |= {"training.learning_rate": 3e-3}
    if group.uneven:
        settings["data.max_length"] = 100
    recipe = case.split()[0]
    trainer = build_trainer(rows, rows.parent, recipe, env=env, dtype=torch.float64, **settings)
    rows_together = max(trainer.objective.group_size, 4 // env.world_size)
    recut(trainer, micro_batch_size=rows_together)  # a recipe would insist that it divides
    return run_steps(trainer, group.steps), trainer.validate(), trainer


def share_of_tokens(trainer: Trainer) -> float:
    """How much of all that was trained this process had."""
    reader, env, counts = trainer.reader, trainer.env, [0] * trainer.env.world_size
    for step in range(trainer.step):
        groups = reader.groups.take(step * reader.groups_per_step, reader.groups_per_step)
        for rank in range(env.world_size):
            batches = trainer.cutter.cut(groups, rank, env.world_size)
            counts[rank] += sum(int((batch.labels >= 0).sum()) for batch in batches)
    return counts[env.rank] / sum(counts)


def difference(one: object, other: object) -> float:
    """The largest between two figures: numbers, lists or mappings of them."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), (sorted(one), sorted(other))
        compared = one.keys() - {"padding"}  # that does depend on the cut
        return max((difference(one[key], other[key]) for key in compared), default=0.0)
    if isinstance(one, list):
        return max((difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if math.isnan(one) and math.isnan(other):
        return 0.0
    return abs(one - other)


def skip_together(mode: dict, rows: Path, folder: Path, env: Environment) -> None:
    """A loss that is not finite on one process alone: both skip the step and count it."""
    settings = {**SMALL, "training.micro_batch_size": 2, **mode}
    trainer = build_trainer(rows, folder, "verifiable", env=env, **settings)
    forward = trainer.module.forward

    def spoiled(batch, task="train", *args):
        out = forward(batch, task, *args)
        bad = trainer.step == 1 and env.rank == 1 and task == "train"
        return out._replace(loss=out.loss * math.nan) if bad else out

    trainer.module.forward = spoiled
    run_steps(trainer, 1)
    before = state(trainer)
    figures = run_steps(trainer, 1)[0]
    assert figures["skipped"] == trainer.skipped.count == 1
    assert same(state(trainer), before)
    assert "skipped" not in run_steps(trainer, 1)[0]
    assert not same(state(trainer), before)


class Exchanges(TorchDispatchMode):
    """Counts what goes between processes, by the name of the operation."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def one_step_exchanges_once(rows: Path, folder: Path, env: Environment) -> None:
    """In a step of two micro-batches each block is gathered for each forward and each backward, the
    root (with the unembedding) once, and every gradient is reduced once; then it is clipped."""
    settings = {**SMALL, "training.micro_batch_size": 2, "training.clip_norm": 0.01}
    trainer = build_trainer(rows, folder, env=env, **settings, **FSDP)
    seen = []
    step = trainer.optimizer.step

    def norm_and_step():
        grads = [whole(p.grad).double() for p in trainer.parameters]
        seen.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
        step()

    run_steps(trainer, 1)
    with Exchanges() as exchanges:
        run_steps(trainer, 1)
    counts = exchanges.counts
    blocks = len(trainer.module.grouping_plan())
    gathered = sum(n for op, n in counts.items() if "allgather" in op)
    reduced = sum(n for op, n in counts.items() if "reduce_scatter" in op)
    assert (gathered, reduced) == (1 + 2 * 2 * blocks, blocks + 1), counts
    trainer.optimizer.step = norm_and_step
    norm = run_steps(trainer, 1)[0]["grad_norm"]
    assert norm > 0.1
    assert abs(seen[0] - 0.01) < 1e-6, seen


def narrow_weights_learn_alike(rows: Path, folder: Path, env: Environment) -> None:
    """Blocks gathered in bfloat16, which is what autocast makes of their matrices anyway."""
    narrow = {**SMALL, "runtime.compute_dtype": "bfloat16", "training.micro_batch_size": 2}
    curves = []
    for kind in ("float32", "bfloat16"):
        settings = {"runtime.parallel": "fsdp", "runtime.fsdp.param_dtype": kind}
        trainer = build_trainer(rows, folder, "verifiable", env=env, **narrow, **settings)
        trainer.module.compute_dtype = torch.bfloat16
        curves.append([figures["loss"] for figures in run_steps(trainer, 4)])
        assert all(weight.dtype == torch.float32 for weight in state(trainer).values())
    assert 0 < difference(*curves) < 0.01, curves


def same_everywhere(trainer: Trainer) -> bool:
    """Every process holds the weights of the first one, bit for bit."""
    mine = torch.cat([tensor.flatten() for tensor in state(trainer).values()])
    first = mine.clone()
    dist.broadcast(first, 0)
    differ = torch.tensor(float(not torch.equal(mine, first)))
    dist.all_reduce(differ)
    return not differ


def compare(name: str, expected: Outcome, found: Outcome, weights: dict) -> list[str]:
    """What is wrong."""
    gaps = {
        "curve": difference(found[0], expected[0]),
        "held out": difference(found[1], expected[1]),
        "weights": largest_difference(weights, state(expected[2])),
    }
    told = f"{name}: " + " ".join(f"{what} {gap:.1e}" for what, gap in gaps.items())
    print(told, flush=True)
    return [] if max(gaps.values()) < TOLERANCE else [told]


def main(names: list[str], rows: Path, folder: Path) -> None:
    alone, first = Environment(torch.device("cpu"), 0, 1), os.environ["RANK"] == "0"
    uneven = folder / f"uneven-{os.environ['RANK']}.jsonl"
    write_uneven_rows(uneven)
    expected = {
        (name, case): trained(name, case, {}, uneven if GROUPS[name].uneven else rows, alone)
        for name in names
        for case in GROUPS[name].cases
        if first
    }
    dist.init_process_group("gloo")
    env = Environment(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    wrong: list[str] = []
    runs = [
        (name, case, mode)
        for name in names
        for case in GROUPS[name].cases
        for mode in GROUPS[name].modes
        if "ddp" in mode or can_shard(env.device)
    ]
    for name, case, mode in runs:
        told, group = f"{name}: {case} in {mode}", GROUPS[name]
        if first:
            print(f"{told} …", flush=True)  # if it hangs, this tells where
        found = trained(name, case, group.modes[mode], uneven if group.uneven else rows, env)
        trainer = found[2]
        assert trainer.parallel.sharded == ("ddp" not in mode)
        assert same_everywhere(trainer), told
        if group.uneven and env.world_size == 2:
            assert not 0.2 < share_of_tokens(trainer) < 0.8
        weights = state(trainer)
        if first:
            wrong += compare(told, expected[name, case], found, weights)
    if "parts" in names and can_shard(env.device):
        skip_together(FSDP, rows, folder, env)
        one_step_exchanges_once(rows, folder, env)
        narrow_weights_learn_alike(rows, folder, env)
    if "empty" in names:
        skip_together(DDP, rows, folder, env)
    assert not wrong, wrong
    if first:
        print(f"{len(runs)} runs agree on {env.world_size} processes", flush=True)
    end_worker()


if __name__ == "__main__":
    if sys.argv[1] == "late":
        time.sleep(int(os.environ["RANK"]))
        sys.exit(command_line(sys.argv[2:]))
    logging.disable()
    main(sys.argv[1].split(","), Path(sys.argv[2]), Path(sys.argv[3]))
