"""`weighted-mtp train`: read a recipe, run its pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import command_line
from weighted_mtp.pipelines.train import dry_run, run_pipeline, run_request
from weighted_mtp.pipelines.training.trainer import TrainResult
from weighted_mtp.runtime import distributed


def run(args: argparse.Namespace) -> int:
    """Train; 0 when finished, 130 when asked to stop early (the state is saved)."""
    resume: bool | Literal["auto"] = args.resume is not None
    if args.resume == "auto":
        resume = "auto"
    request = run_request(args.recipe, args.preset, args.overrides, args.output_dir, resume)
    if args.dry_run:
        found = dry_run(request)
        print(request.recipe.to_yaml())
        print("\n".join(found.lines()))
        return 0
    result = run_pipeline(request)
    if distributed.is_main_process():
        report(result, request.run_dir)
    if result.uncopied is not None:
        raise UserError(result.uncopied)
    return 0 if result.finished else 130


def report(result: TrainResult, run_dir: Path) -> None:
    """Say what was done and what to do next."""
    if result.finished:
        print(f"done: {result.step} steps, model in {result.checkpoint / 'model'}")
        evaluate, show = (command_line("weighted-mtp", c, run_dir) for c in ("evaluate", "report"))
        print(f"next: {evaluate}  ·  {show}")
        return
    print(f"stopped after step {result.step}, saved in {result.checkpoint}")
    again = command_line("weighted-mtp", "train", "--resume", "--output-dir", run_dir)
    print(f"continue with: {again}")
