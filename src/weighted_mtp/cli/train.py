"""`weighted-mtp train`: read a recipe, run its pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weighted_mtp.core.config.recipe import Recipe, load_recipe, setting
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import command_line, set_options
from weighted_mtp.pipelines.train import dry_run, run_pipeline, run_request
from weighted_mtp.runtime import distributed

if TYPE_CHECKING:  # the trainer, which a dry run does not load
    from weighted_mtp.pipelines.training.trainer import TrainResult


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
        report(result, request.run_dir, request.recipe)
    if result.uncopied is not None:
        raise UserError(result.uncopied)
    return 0 if result.finished else 130


def report(result: TrainResult, run_dir: Path, recipe: Recipe) -> None:
    """Say what was done and what to do next."""
    if result.finished:
        print(f"done: {result.step} steps, model in {result.checkpoint / 'model'}")
        print("next: " + "  ·  ".join(command_line(*words) for words in _next(run_dir, recipe)))
        return
    print(f"stopped after step {result.step}, saved in {result.checkpoint}")
    again = command_line("weighted-mtp", "train", "--resume", "--output-dir", run_dir)
    print(f"continue with: {again}")


def _next(run_dir: Path, recipe: Recipe) -> list[list[str | Path]]:
    """Commands that fit what was trained. `evaluate` alone judges micro tasks, which say nothing
    of a model of other rows."""
    show: list[str | Path] = ["weighted-mtp", "report", run_dir]
    if recipe.data.source == "micro":
        judge: list[str | Path] = ["weighted-mtp", "evaluate", run_dir]
        return [show] if recipe.pipeline == "critic" else [judge, show]
    if recipe.pipeline == "critic":
        weighted = ["weighted-mtp", "train", "--recipe", "verifiable"]
        return [show, [*weighted, *_after_critic(run_dir, recipe)]]
    return [["weighted-mtp", "generate", run_dir, "--prompt", "…"], show]


def _after_critic(run_dir: Path, recipe: Recipe) -> list[str]:
    """The critic and its rows as settings of the second stage, as far as its recipe differs."""
    found = [setting("model.path", run_dir), setting("data.train", recipe.data.train)]
    plain, data = load_recipe("verifiable", None, found).data, recipe.data
    if data.validation is not None:
        found.append(setting("data.validation", data.validation))
    if data.template != plain.template:
        found.append(f"data.template={data.template}")
    if data.max_length != plain.max_length:
        found.append(f"data.max_length={data.max_length}")
    return set_options(found)
