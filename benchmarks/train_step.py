"""One training step (forward, loss, backward) against named peers.

    python benchmarks/train_step.py [--runs 3] [--out benchmarks/results/train_step.json]

dim 512, 8 layers (5 + 3 extra heads), n = 4, V = 32000, B 4 × S 512, all tokens labelled. Peers:

    meta-naive   benchmarks/naive.py: Meta's forward under autograd, [B, S, n, V] logits
    same-blocks  our blocks, [B, S, n, V] logits, cross-entropy under autograd
    ours         our blocks and the fused loss, float32
    ours-bf16    the same under bfloat16 autocast (weights float32)
    ours-30%     ours with 30 % of the tokens labelled

Method: every variant runs in a process of its own, in turn (A B C … A B C …), one warm-up step and
`--steps` timed ones; the figure is the median over all. Peak memory is the largest resident size,
sampled every 2 ms, less the size after the model was built. The GEMM rate is the median of 20
products 2048³ in each process, before the steps. The step's arithmetic is counted as 6 FLOP per
weight and token for the blocks and per weight and row for the unembedding; attention is left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from naive import NaiveTransformer, naive_loss
from weighted_mtp.losses import LossTerms, count_targets, mtp_loss, shift_labels
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer

B, S, N = 4, 512, 4
VARIANTS = ("meta-naive", "same-blocks", "ours", "ours-bf16", "ours-30%")
ARGS = {
    "dim": 512,
    "n_layers": 8,
    "n_heads": 8,
    "vocab_size": 32000,
    "n_future_tokens": N,
    "max_seq_len": 512,
}


class PeakMemory:
    """Largest resident size while active, above the size at the start, in bytes."""

    def __enter__(self) -> PeakMemory:
        self.process = psutil.Process()
        self.start = self.peak = self.process.memory_info().rss
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()

    @property
    def bytes(self) -> int:
        return self.peak - self.start


def step_function(variant: str) -> tuple[nn.Module, Callable[[], Tensor], int]:
    """A model, its loss as a function, and the number of rows that are unembedded in it."""
    torch.manual_seed(0)
    args = ModelArgs(**ARGS)
    tokens = torch.randint(0, args.vocab_size, (B, S))
    if variant == "meta-naive":
        naive = NaiveTransformer(args)
        return naive, lambda: naive_loss(naive(tokens), tokens), B * S * N
    model = Transformer(args)
    model.init_weights()
    labels = tokens.clone()
    if variant == "ours-30%":
        labels[torch.rand(B, S) > 0.3] = -100
    targets = shift_labels(labels, N)
    denominators = count_targets(targets)

    def ours() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "ours-bf16"):
            hidden = model.head_states(tokens, return_all_heads=True)
            terms = LossTerms(targets, denominators)
            return mtp_loss(hidden, model.output.weight, *terms).loss

    def same_blocks() -> Tensor:
        logits = model(tokens, return_all_heads=True)
        return naive_loss(logits, tokens)

    rows = int(denominators.sum()) if variant != "same-blocks" else B * S * N
    return model, same_blocks if variant == "same-blocks" else ours, rows


def gemm_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a 2048³ product."""
    a = torch.randn(2048, 2048).to(dtype)
    times = []
    for _ in range(22):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times[2:]) / 1e9


def measure(variant: str, steps: int) -> dict[str, object]:
    """Run one variant in this process."""
    model, loss_of, rows = step_function(variant)
    blocks = [*model.layers, *model.extra_heads]
    weights = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1)
    unembedding = ARGS["dim"] * ARGS["vocab_size"]
    flop = 6 * (weights * B * S + unembedding * rows)
    dtype = torch.bfloat16 if variant == "ours-bf16" else torch.float32
    rate = gemm_rate(dtype)
    seconds, loss = [], 0.0
    with PeakMemory() as memory:
        for _ in range(steps + 1):
            start = time.perf_counter()
            value = loss_of()
            value.backward()
            seconds.append(time.perf_counter() - start)
            loss = value.item()
            model.zero_grad(set_to_none=True)
    return {
        "variant": variant,
        "seconds": seconds[1:],
        "peak_bytes": memory.bytes,
        "gemm_gflops": rate,
        "flop": flop,
        "loss": loss,
    }


def summary(records: list[dict]) -> list[str]:
    """The table, ratios against both peers."""
    by = {v: [r for r in records if r["variant"] == v] for v in VARIANTS}
    time_of = {v: statistics.median(s for r in by[v] for s in r["seconds"]) for v in VARIANTS}
    peak_of = {v: statistics.median(r["peak_bytes"] for r in by[v]) for v in VARIANTS}
    lines = [
        "| variant | s/step | tokens/s | × meta-naive | × same-blocks | peak GB | of meta-naive "
        "| of same-blocks | share of GEMM rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for v in VARIANTS:
        rate = statistics.median(r["gemm_gflops"] for r in by[v])
        share = by[v][0]["flop"] / time_of[v] / rate / 1e9
        lines.append(
            f"| {v} | {time_of[v]:.2f} | {B * S / time_of[v]:.0f} "
            f"| {time_of['meta-naive'] / time_of[v]:.2f} "
            f"| {time_of['same-blocks'] / time_of[v]:.2f} "
            f"| {peak_of[v] / 1e9:.2f} | {peak_of[v] / peak_of['meta-naive']:.2f} "
            f"| {peak_of[v] / peak_of['same-blocks']:.2f} | {share:.0%} of {rate:.0f} GFLOP/s |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help="run one in this process (internal)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/train_step.json"
    )
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.variant, args.steps)))
        return
    records = []
    for run in range(args.runs):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant, "--steps", str(args.steps)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            records.append(json.loads(out))
            print(run, variant, [round(s, 2) for s in records[-1]["seconds"]], file=sys.stderr)
    head = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu_name()}
    store(args.out, head, records, summary(records))


def store(out: Path, machine: dict, records: list[dict], lines: list[str]) -> None:
    """Write records as JSON and their table beside it, and print the table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")
    text = "\n".join([str(machine), "", *lines])
    out.with_suffix(".md").write_text(text + "\n")
    print(text)


def cpu_name() -> str:
    """The processor, as Linux names it."""
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


if __name__ == "__main__":
    main()
