"""`weighted-mtp train`: read a recipe, run its pipeline."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from weighted_mtp.cli.recipe_options import add_recipe_options
from weighted_mtp.core.config.recipe import Recipe, available, load_recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_directory, command_line, given_path
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import complete_checkpoints
from weighted_mtp.pipelines.checkpointing.remote_directory import Remote
from weighted_mtp.pipelines.checkpointing.remote_runs import has_run, saved_recipe
from weighted_mtp.pipelines.checkpointing.resume_rules import Resume
from weighted_mtp.pipelines.checkpointing.resuming import changes, tell_changes
from weighted_mtp.pipelines.compose import RunRequest
from weighted_mtp.pipelines.planning.estimate import estimate
from weighted_mtp.pipelines.run_baseline import run_baseline
from weighted_mtp.pipelines.run_critic import run_critic
from weighted_mtp.pipelines.run_ntp import run_ntp
from weighted_mtp.pipelines.run_rho1 import run_rho1
from weighted_mtp.pipelines.run_verifiable import run_verifiable
from weighted_mtp.pipelines.training.trainer import TrainResult
from weighted_mtp.runtime import distributed

log = get_logger(__name__)

PIPELINES: dict[str, Callable[[RunRequest], TrainResult]] = {
    "baseline": run_baseline,
    "ntp": run_ntp,
    "critic": run_critic,
    "verifiable": run_verifiable,
    "rho1": run_rho1,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `train`."""
    add_recipe_options(parser)
    parser.add_argument(
        "--output-dir", type=given_path, help="run directory (default runs/RECIPE-PRESET)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=["always", "auto"],
        help="continue the run in --output-dir, or in training.remote if that has a newer "
        "checkpoint; auto: start it if there is none",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything but the rows, print recipe and memory, write nothing",
    )


def run(args: argparse.Namespace) -> int:
    """Train; 0 when finished, 130 when asked to stop early (the state is saved)."""
    run_dir = args.output_dir or default_run_dir(args.recipe, args.preset)
    resume = args.resume == "always" or (args.resume == "auto" and has_run(run_dir, args.overrides))
    recipe = read_recipe(args, run_dir, resume)
    if args.dry_run:
        check_output_directory(run_dir, "--output-dir")
        if resume:
            tell_changes(run_dir, recipe, next(reversed(complete_checkpoints(run_dir)), None))
        print(recipe.to_yaml())
        print("\n".join(estimate(recipe).lines()))
        if recipe.training.remote is not None:
            Remote(recipe.training.remote)  # or its package is missing
        return 0
    try:
        result = run_pipeline(RunRequest(recipe, run_dir, resume))
    except BaseException as error:
        distributed.end_if_abandoned(error)
        raise
    if distributed.is_main_process():
        report(result, run_dir)
    if result.uncopied is not None:
        raise UserError(result.uncopied)
    return 0 if result.finished else 130


def run_pipeline(request: RunRequest) -> TrainResult:
    """Run the pipeline a recipe names."""
    return PIPELINES[request.recipe.pipeline](request)


def default_run_dir(recipe: str | None, preset: str | None) -> Path:
    """`runs/RECIPE-PRESET`."""
    if recipe is None:
        raise UserError("name a recipe: --recipe " + " | ".join(available()))
    return Path("runs") / "-".join(Path(name).stem for name in (recipe, preset) if name)


def read_recipe(args: argparse.Namespace, run_dir: Path, resume: bool) -> Recipe:
    """The recipe asked for; when resuming, the run's own, with any --set on top.

    Raises:
        UserError: resuming a run with another recipe than its own.
    """
    if resume:
        recipe = saved_recipe(run_dir, args.overrides)
        asked = Path(args.recipe).stem if args.recipe else recipe.pipeline
        if asked in PIPELINES and asked != recipe.pipeline:
            raise UserError(f"{run_dir} is a {recipe.pipeline} run; it cannot resume as {asked}")
        tell_ignored(args, run_dir, recipe)
        return recipe
    if args.recipe is None:
        raise UserError("name a recipe: --recipe " + " | ".join(available()))
    return load_recipe(args.recipe, args.preset, args.overrides)


def tell_ignored(args: argparse.Namespace, run_dir: Path, recipe: Recipe) -> None:
    """Warn where --recipe and --preset, which a resumed run does not read, say something else."""
    try:
        given = load_recipe(args.recipe, args.preset, args.overrides) if args.recipe else recipe
    except UserError:  # a shipped recipe alone, say, names no data
        return
    found = [str(change) for change in changes(Resume(recipe, given, 0))]
    if found and distributed.is_main_process():
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        log.warning(
            "%s: a resumed run keeps its own recipe; of --recipe %s is ignored: %s%s (change a "
            "setting with --set)",
            run_dir,
            args.recipe,
            "; ".join(found[:5]),
            more,
        )


def report(result: TrainResult, run_dir: Path) -> None:
    """Say what was done and what to do next."""
    if result.finished:
        print(f"done: {result.step} steps, model in {result.checkpoint / 'model'}")
        evaluate, show = (command_line("weighted-mtp", c, run_dir) for c in ("evaluate", "report"))
        print(f"next: {evaluate}  ·  {show}")
        return
    print(f"stopped after step {result.step}, saved in {result.checkpoint}")
    again = command_line("weighted-mtp", "train", "--resume", "--output-dir", run_dir)
    print(f"go on with: {again}")
