"""Advantages, value targets and token weights of one batch, against plain recursions.

    python benchmarks/td_weighting.py [--runs 5] [--out benchmarks/results/td_weighting.json]

B 16 × S 2048, responses of uneven length, γ 1, λ 0.95 for the advantages and 1 for the targets.

    vectorised  compute_advantages, compute_td_targets, build_weights
    tensors     one backward loop over tokens that indexes tensors element by element
    lists       the same loop on Python floats; the tensors are converted once on either side

The loops share the δ of both recursions, which the functions compute twice. Method: one process,
one thread; every variant in turn (A B C … A B C …) after one warm-up each; the vectorised figure of
a run is the mean of 50 calls, and every figure here the median over the runs. float32, as in
training; the differences are of float64 runs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from train_step import cpu_name
from weighted_mtp.value_weighting.td_weighting import (
    build_weights,
    compute_advantages,
    compute_td_targets,
)

B, S = 16, 2048
GAMMA, LAM, TARGET_LAM = 1.0, 0.95, 1.0
BETA, MIN, MAX = 0.9, 0.1, 5.0
CALLS = 50
Output = tuple[Tensor, Tensor, Tensor]
"""Advantages, targets, weights, `[B, S]` each."""


def make_batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values `[B, S, 1]`, rewards `[B]`, mask `[B, S]`: short prompts, padding on the right."""
    g = torch.Generator().manual_seed(0)
    values = torch.rand(B, S, 1, generator=g, dtype=torch.float64).to(dtype)
    start = torch.randint(32, 256, (B, 1), generator=g)
    end = torch.randint(S // 2, S + 1, (B, 1), generator=g)
    at = torch.arange(S)
    return values, (torch.arange(B) % 2).to(dtype), (at >= start) & (at < end)


def vectorised(values: Tensor, rewards: Tensor, mask: Tensor) -> Output:
    advantages = compute_advantages(values, rewards, mask, GAMMA, LAM)
    targets = compute_td_targets(values, rewards, mask, GAMMA, TARGET_LAM)
    return advantages, targets[:, :, 0], build_weights(advantages, mask, BETA, MIN, MAX)


def with_tensors(values: Tensor, rewards: Tensor, mask: Tensor) -> Output:
    """The recursion on tensor elements."""
    V = values.squeeze(-1)
    advantages, targets, weights = (torch.zeros_like(V) for _ in range(3))
    for b in range(B):
        tokens = mask[b].nonzero()[:, 0].tolist()
        last = tokens[-1]
        A = G = torch.zeros((), dtype=V.dtype)
        for j in reversed(tokens):
            after = rewards[b] if j == last else GAMMA * V[b, j]
            delta = after - V[b, j - 1]
            A = delta + GAMMA * LAM * A
            G = delta + GAMMA * TARGET_LAM * G
            advantages[b, j] = A
            targets[b, j - 1] = V[b, j - 1] + G
            weights[b, j] = torch.exp(A / BETA).clamp(MIN, MAX)
    return advantages, targets, weights


def with_lists(values: Tensor, rewards: Tensor, mask: Tensor) -> Output:
    """The recursion on Python floats."""
    all_advantages, all_targets, all_weights = [], [], []
    for V, R, m in zip(values[:, :, 0].tolist(), rewards.tolist(), mask.tolist(), strict=True):
        advantages, targets, weights = [0.0] * S, [0.0] * S, [0.0] * S
        tokens = [j for j in range(S) if m[j]]
        last = tokens[-1]
        A = G = 0.0
        for j in reversed(tokens):
            delta = (R if j == last else GAMMA * V[j]) - V[j - 1]
            A = delta + GAMMA * LAM * A
            G = delta + GAMMA * TARGET_LAM * G
            advantages[j] = A
            targets[j - 1] = V[j - 1] + G
            weights[j] = min(max(math.exp(A / BETA), MIN), MAX)
        all_advantages.append(advantages)
        all_targets.append(targets)
        all_weights.append(weights)
    made = (torch.tensor(x, dtype=values.dtype) for x in (all_advantages, all_targets, all_weights))
    advantages_, targets_, weights_ = made
    return advantages_, targets_, weights_


VARIANTS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Output], int]] = {
    "vectorised": (vectorised, CALLS),
    "tensors": (with_tensors, 1),
    "lists": (with_lists, 1),
}
"""Each with its calls per run."""


def largest_differences() -> dict[str, float]:
    """Largest difference from the vectorised result over advantages, targets and weights."""
    batch = make_batch(torch.float64)
    ours = vectorised(*batch)
    return {
        name: max(float((a - b).abs().max()) for a, b in zip(ours, function(*batch), strict=True))
        for name, (function, _) in VARIANTS.items()
    }


def measure(runs: int) -> dict[str, list[float]]:
    """Seconds per batch of every variant in every run."""
    batch = make_batch(torch.float32)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for run in range(-1, runs):
        for name, (function, calls) in VARIANTS.items():
            start = time.perf_counter()
            for _ in range(calls):
                function(*batch)
            if run >= 0:  # −1 is the warm-up
                seconds[name].append((time.perf_counter() - start) / calls)
        print(run, {name: times[-1:] for name, times in seconds.items()}, file=sys.stderr)
    return seconds


def table(seconds: dict[str, list[float]], differences: dict[str, float]) -> list[str]:
    ours = statistics.median(seconds["vectorised"])
    lines = [
        "| variant | ms per batch (median, least–most) | vectorised is faster × "
        "| largest difference, float64 |",
        "|---|---|---|---|",
    ]
    for name, times in seconds.items():
        median, least, most = (1e3 * f(times) for f in (statistics.median, min, max))
        lines.append(
            f"| {name} | {median:.2f} ({least:.2f}–{most:.2f}) | {median / ours / 1e3:.0f} "
            f"| {differences[name]:.1e} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/td_weighting.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds, differences = measure(args.runs), largest_differences()
    tokens = int(make_batch(torch.float32)[2].sum())
    head = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu_name()}
    ours = statistics.median(seconds["vectorised"])
    ratios = {name: statistics.median(times) / ours for name, times in seconds.items()}
    record = {
        "machine": head,
        "shape": {"B": B, "S": S, "response_tokens": tokens},
        "seconds": seconds,
        "ratio_of_medians": ratios,
        "largest_difference_float64": differences,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    text = f"{head}\n\nB {B} × S {S}, {tokens} response tokens\n\n"
    text += "\n".join(table(seconds, differences)) + "\n"
    args.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
