"""What teaching heads costs: fused and plain, from stored states, over part of the vocabulary.

    python benchmarks/distil_step.py                 # SmolLM2-135M's shape, B 4 x S 512
    python benchmarks/distil_step.py --tiny          # the same code, to see that it runs

A step is forward, loss and backward of `TrainingModule` with `training.adapt` heads, as the
trainer calls it: random weights of SmolLM2-135M's shape (30 blocks of width 576, V 49,152, tied),
three more heads, every token a target, the recipe's loss (kl + hard). Batches are given, so that
reading them (stored states too) is not counted.

    ce              cross-entropy with the data (fused), recipe baseline
    distil          recipe heads
    distil-plain    the same loss with all logits [B, S, n, V] in memory, under autograd
    states          distil from stored states: the trunk and head 1 do not run
    states-V        the same over the --vocabulary most frequent tokens
    forward         the trunk and all heads without a loss or a gradient

Every variant runs in a process of its own, in turn, --runs times: a step to warm up, then --steps.
The figure is the median of all steps; memory is the largest resident set above that before the
first step (on a GPU what PyTorch's allocator held above the weights), the smallest of the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from train_step import PeakMemory, cpu_name
from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.device import DTYPES
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.losses import LossTerms, MTPLoss
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.adapting import freeze
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective
from weighted_mtp.pipelines.training.prepare_states import trunk_and_first

HERE = Path(__file__).parent
VARIANTS = ("forward", "ce", "distil", "distil-plain", "states", "states-V")
SHAPE = {
    "dim": 576,
    "n_layers": 33,
    "n_heads": 9,
    "n_kv_heads": 3,
    "vocab_size": 49152,
    "ffn_hidden_dim": 1536,
    "max_seq_len": 512,
    "n_future_tokens": 4,
    "tie_embeddings": True,
}
TINY = {**SHAPE, "dim": 48, "n_layers": 6, "n_heads": 3, "vocab_size": 512, "ffn_hidden_dim": 64}
B, S = 4, 512


def main() -> None:
    """Run every variant, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compute-dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--variant", choices=VARIANTS, help="this one, in this process")
    parser.add_argument("--out", type=Path, default=HERE / "results/distil_step.json")
    options = parser.parse_args()
    if options.variant is not None:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for number in range(options.runs):
        for name in VARIANTS:
            words = [*sys.argv[1:], "--variant", name]
            output = subprocess.run(
                [sys.executable, __file__, *words], check=True, capture_output=True, text=True
            ).stdout
            found[name].append(json.loads(output.splitlines()[-1]))
            print(f"run {number + 1}  {name:14s} {found[name][-1]}", flush=True)
    report(options, found)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step and the largest memory, of one variant."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    module, batch = build(options, device)
    denominators = module.objective.denominators(module.objective.counts(batch)[None])

    def step() -> float:
        if options.variant == "forward":
            with torch.no_grad():
                loss = module(batch, "score").loss
        else:
            module.zero_grad(set_to_none=True)
            loss = module(batch, "train", denominators).loss
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return float(loss)

    seconds, loss = [], 0.0
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    with PeakMemory() as memory:
        for _ in range(options.steps + 1):
            started = time.perf_counter()
            loss = step()
            seconds.append(time.perf_counter() - started)
    peak = memory.bytes
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() - before
    return {"seconds": seconds[1:], "peak_mib": peak / 2**20, "loss": loss}


def build(options: argparse.Namespace, device: torch.device) -> tuple[TrainingModule, Batch]:
    """A module that trains heads, and a batch."""
    torch.manual_seed(0)
    shape: dict[str, Any] = TINY if options.tiny else SHAPE
    args, dtype = ModelArgs(**shape), DTYPES[options.compute_dtype]
    transformer = Transformer(args)
    transformer.init_weights()
    name, sets = "heads", ["model.path=none", "data.train=none"]
    if options.variant == "ce":
        name, sets = "baseline", [*sets, "training.adapt=heads"]
    if options.variant == "states-V":
        sets.append(f"objective.distil.vocabulary={options.vocabulary}")
    recipe = load_recipe(name, None, sets)
    adapter = MetaLlamaMTPAdapter(transformer)
    objective = make_objective(recipe.objective, args.n_future_tokens)
    module = TrainingModule(adapter, objective, dtype)
    freeze(adapter, recipe, objective)
    module.to(device)
    ids = torch.randint(args.vocab_size, (B, S + 1))
    if options.variant == "states-V":
        ids = torch.randint(min(options.vocabulary, args.vocab_size), (B, S + 1))
        objective.vocabulary = torch.arange(min(options.vocabulary, args.vocab_size))
    if options.variant == "distil-plain":
        objective.loss = plain_loss
    if options.variant == "forward":  # its score is the states alone
        module._signal = lambda *_: (torch.zeros(()), {})
        objective.signal = "cross_entropy"
    batch = Batch(
        ids[:, :-1].contiguous(),
        ids,
        torch.zeros(B, dtype=torch.bool),
        torch.arange(B),
        torch.ones(B, dtype=torch.bool),
    ).to(device)
    if options.variant.startswith("states"):
        states = trunk_and_first(transformer, batch.tokens, dtype)
        batch = batch._replace(states=states.to(torch.bfloat16))
    return module, objective.with_targets(batch)


def plain_loss(
    states: list[Tensor], unembedding: Tensor, terms: LossTerms, _: int | None = None
) -> MTPLoss:
    """kl + hard with all logits in memory; autograd does the rest."""
    logits = torch.stack([state @ unembedding.t() for state in states], dim=2).float()
    n, scale = logits.shape[2], terms.scale(torch.float32)
    teacher, targets = logits[:, :, 0].detach(), terms.targets
    known = targets != IGNORE_INDEX
    taught = [torch.zeros_like(scale[..., 0])]
    for k in range(1, n):
        late = F.pad(teacher[:, k:], (0, 0, 0, k))  # [B, S, V] of t + k; none at the end
        log_q = logits[:, :, k].log_softmax(-1)
        p, log_p = late.softmax(-1), late.log_softmax(-1)
        kl = (p * (log_p - log_q)).sum(-1)
        hard = -log_q.gather(2, late.argmax(-1, keepdim=True)).squeeze(2)
        taught.append((kl + hard) * known[..., k])
    told = torch.stack(taught, dim=2)
    with torch.no_grad():
        ce = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
        hit = (logits.argmax(-1) == targets) & known
    return MTPLoss((told * scale).sum(), ce.view_as(scale), hit, told.detach())


def report(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    """Write the raw figures and a table."""
    where = cpu_name()
    if options.device.startswith("cuda"):
        where = torch.cuda.get_device_name()
    machine = (
        f"{where}, {options.threads} threads, torch {torch.__version__}, {options.compute_dtype}"
    )
    medians = {
        name: statistics.median(x for run in runs for x in run["seconds"])
        for name, runs in found.items()
    }
    memory = {name: min(run["peak_mib"] for run in runs) for name, runs in found.items()}
    lines = [
        f"{machine}; B {B} × S {S}; states-V: {options.vocabulary:,} tokens"
        + ("; tiny, no measurement" if options.tiny else ""),
        "",
        "| step | seconds | tokens/s | against distil | MiB above the start |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in medians.items():
        cells = [f"{seconds:.3f}", f"{B * S / seconds:.0f}", f"{seconds / medians['distil']:.2f}×"]
        lines.append(f"| {name} | {' | '.join(cells)} | {memory[name]:.0f} |")
    text = "\n".join(lines) + "\n"
    record = {"machine": machine, "tiny": options.tiny, "vocabulary": options.vocabulary}
    options.out.write_text(json.dumps({**record, "runs": found}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
