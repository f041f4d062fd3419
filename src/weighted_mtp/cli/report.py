"""`weighted-mtp report`: the loss curves of a run as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from weighted_mtp.analysis.plots import plot_losses
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.metrics_utils import curve, heads_in_words, read_metrics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `report`."""
    parser.add_argument("run_dir", type=Path, help="a run directory")
    parser.add_argument("--output", type=Path, help="PNG to write (default RUN/loss.png)")


def run(args: argparse.Namespace) -> int:
    """Draw RUN/loss.png and print the last held-out figures."""
    metrics = args.run_dir / "metrics.jsonl"
    if not metrics.exists():
        raise UserError(f"{metrics}: no such file; give the directory of a training run")
    records = read_metrics(metrics)
    train = curve(records, "train", "head_loss")
    if not train[0]:
        raise UserError(f"{metrics}: holds no training step yet")
    output = args.output or args.run_dir / "loss.png"
    held_out = [r for r in records if r["kind"] == "validation"]
    plot_losses(
        train,
        curve(records, "validation", "head_loss"),
        curve(records, "validation", "head_accuracy"),
        output,
        f"{args.run_dir.name}: {train[0][-1]} steps",
    )
    if held_out:
        print(f"held out  {heads_in_words(held_out[-1])}")
    print(f"loss curves: {output}")
    return 0
