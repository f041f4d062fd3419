"""Started by torchrun: the weighted objectives on two processes against one, in float64.

    worker_weighted.py {even,empty,fsdp,hsdp} ROWS FOLDER
    worker_weighted.py late ARGUMENT …

The first process trains every case of the group alone, then both train it together: the curve, the
gradient norms, the weights and the held-out figures are equal. Micro-batches are half as large
on two processes, so that what is decided over one forward pass is decided over the same rows.
`even` and `empty` are DDP; `fsdp` and `hsdp` run fewer objectives for longer.

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
from weighted_mtp.pipelines.trainer import Trainer
from weighted_mtp.runtime.environment import Environment

TOLERANCE = 1e-9
STEP = {"objective.scope": "step"}
WHITEN = {"objective.td.whiten": "batch"}
PAIRS = {"objective.value.loss": "pairwise", "objective.value.trunk": "all"}
PACKED = {"data.packing": True}
RECOMPUTED = {"training.activation_checkpointing": True}
CASES = {
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
    "critic pairwise packed": {**PAIRS, **PACKED},
    "verifiable whiten step packed": {**WHITEN, **STEP, **PACKED},
    "rho1 step packed": {**STEP, **PACKED},
}
SHARDED_CASES = {
    "baseline": {},
    "baseline each": {**RECOMPUTED, "runtime.fsdp.reduce_gradients": "micro_batch"},
    "baseline tied": {
        "model.architecture.tie_embeddings": True,
        "runtime.fsdp.reshard_after_forward": False,
    },
    "critic": CRITIC,
    "critic top": {
        "objective.value.trunk": "top",
        "objective.value.top_blocks": 1,
        "objective.value.head_type": "mlp",
        **RECOMPUTED,
    },
    "verifiable": {"objective.value.gradient_to_trunk": True, "objective.td.whiten": "ema"},
    "verifiable step packed": {**WHITEN, **STEP, **PACKED},
    "rho1 step": STEP,
}


class Group(NamedTuple):
    """Of six rows in twos, the third micro-batch leaves the second process an empty one."""

    mode: str
    batch_size: int
    steps: int
    cases: dict[str, dict]


GROUPS = {
    "even": Group("ddp", 8, 15, CASES),
    "empty": Group("ddp", 6, 15, CASES),
    "fsdp": Group("fsdp", 6, 30, SHARDED_CASES),
    "hsdp": Group(
        "hsdp", 12, 30, {name: SHARDED_CASES[name] for name in ("baseline", "rho1 step")}
    ),
}
Outcome = tuple[list[dict], dict, Trainer]


def trained(case: str, group: Group, rows: Path, folder: Path, env: Environment) -> Outcome:
    settings = {**SMALL, **group.cases[case], "training.steps": group.steps}
    settings |= {"training.batch_size": group.batch_size, "runtime.parallel": group.mode}
    settings |= {"training.micro_batch_size": 2, "training.learning_rate": 3e-3}
    settings |= {"runtime.fsdp.shard_size": 2}
    trainer = build_trainer(rows, folder, case.split()[0], env=env, dtype=torch.float64, **settings)
    recut(trainer, micro_batch_size=4 // env.world_size)  # a recipe would insist that it divides
    return run_steps(trainer, group.steps), trainer.validate(), trainer


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


def skip_together(mode: str, rows: Path, folder: Path, env: Environment) -> None:
    """A loss that is not finite on one process alone: both skip the step and count it."""
    settings = {**SMALL, "training.micro_batch_size": 2, "runtime.parallel": mode}
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
    trainer = build_trainer(rows, folder, env=env, **settings, **{"runtime.parallel": "fsdp"})
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


def main(name: str, rows: Path, folder: Path) -> None:
    group = GROUPS[name]
    alone, first = Environment(torch.device("cpu"), 0, 1), os.environ["RANK"] == "0"
    expected = {case: trained(case, group, rows, folder, alone) for case in group.cases if first}
    dist.init_process_group("gloo")
    env = Environment(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    wrong = []
    for case in group.cases:
        if first:
            print(f"{case} …", flush=True)  # if it hangs, this tells where
        own_curve, own_held_out, trainer = trained(case, group, rows, folder, env)
        assert trainer.parallel.sharded == (group.mode != "ddp")
        assert same_everywhere(trainer), case
        own_weights = state(trainer)
        if not first:
            continue
        curve, held_out, reference = expected[case]
        gaps = {
            "curve": difference(own_curve, curve),
            "held out": difference(own_held_out, held_out),
            "weights": largest_difference(own_weights, state(reference)),
        }
        told = f"{case}: " + " ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
        print(told, flush=True)
        wrong += [] if max(gaps.values()) < TOLERANCE else [told]
    if name in ("empty", "fsdp"):
        skip_together(group.mode, rows, folder, env)
    if name == "fsdp":
        one_step_exchanges_once(rows, folder, env)
        narrow_weights_learn_alike(rows, folder, env)
    assert not wrong, wrong
    if first:
        print(f"{name}: {len(group.cases)} cases agree on {env.world_size} processes", flush=True)
    end_worker()


if __name__ == "__main__":
    if sys.argv[1] == "late":
        time.sleep(int(os.environ["RANK"]))
        sys.exit(command_line(sys.argv[2:]))
    logging.disable()
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
