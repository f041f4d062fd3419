"""Train by a recipe, from Python as from the shell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from weighted_mtp.core.config.recipe import Recipe, load_recipe, setting
from weighted_mtp.core.config.sections import PipelineName
from weighted_mtp.core.config.shipped import available
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_directory
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import complete_checkpoints
from weighted_mtp.pipelines.planning.estimate import Estimate, estimate
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.resolve import settle
from weighted_mtp.runtime import distributed

if TYPE_CHECKING:  # a dry run waits neither for the trainer nor for remote storage
    from weighted_mtp.pipelines.training.trainer import TrainResult

log = get_logger(__name__)

RecipeLike = str | Path | Recipe
"""A recipe: a shipped name, a YAML file, or the object."""


def train(
    recipe: RecipeLike | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    *,
    output_dir: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
) -> TrainResult:
    """Train by a recipe, as `weighted-mtp train` does. Under torchrun every process calls this.

    Example:
        >>> recipe = load_recipe("baseline", "micro", ["training.steps=100"])
        >>> result = train(recipe, output_dir="runs/first")
        >>> result.checkpoint / "model"
        >>> train(output_dir="runs/first", resume=True, overrides=["training.steps=200"])

    Args:
        recipe: a shipped name, a YAML file or a `Recipe`. A run that is resumed keeps its own, so
            None, or a `Recipe` to continue with: changes that the run does not allow are refused.
        preset: another scale, `micro` for instance.
        overrides: `section.key=value` settings on top, as `--set` takes them.
        output_dir: the run directory; `runs/RECIPE-PRESET` by default.
        resume: continue the run in `output_dir`, or in training.remote if that has a newer
            checkpoint; "auto": start it if there is none.

    Returns:
        Last step, checkpoint and validation. `finished` is False where Ctrl-C or SIGTERM ended the
        training early; `uncopied` says what is not in training.remote.

    Raises:
        UserError: anything wrong with the recipe, its files, or the run directory.
    """
    return run_pipeline(run_request(recipe, preset, overrides, output_dir, resume))


def run_request(
    recipe: RecipeLike | None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    output_dir: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
) -> RunRequest:
    """What `train` would run. Arguments and errors as for `train`."""
    run_dir = default_run_dir(recipe, preset) if output_dir is None else Path(output_dir)
    given = settle(load_recipe(recipe, preset, overrides)) if isinstance(recipe, Recipe) else None
    if resume == "auto":
        from weighted_mtp.pipelines.checkpointing.remote_runs import has_run

        places = list(overrides)
        if given is not None and given.training.remote is not None:
            places.append(setting("training.remote", given.training.remote))
        resume = has_run(run_dir, places)
    if not resume:
        if recipe is None:
            raise _unnamed()
        asked = given or load_recipe(recipe, preset, overrides)
        return RunRequest(settle(asked), run_dir)
    from weighted_mtp.pipelines.checkpointing.remote_runs import find_run

    found = find_run(run_dir, overrides, given)
    if given is None and recipe is not None:
        name = Path(str(recipe)).stem
        if name in get_args(PipelineName) and name != found.asked.pipeline:
            kind = found.asked.pipeline
            raise UserError(f"{run_dir} is a {kind} run; it cannot resume as {name}")
        _warn_of_ignored(str(recipe), preset, overrides, run_dir, found.asked)
    return RunRequest(settle(found.asked), run_dir, resume=True, saved=found.saved)


def run_pipeline(request: RunRequest) -> TrainResult:
    """Run the pipeline that a recipe names."""
    from weighted_mtp.pipelines.run_baseline import run_baseline
    from weighted_mtp.pipelines.run_critic import run_critic
    from weighted_mtp.pipelines.run_ntp import run_ntp
    from weighted_mtp.pipelines.run_rho1 import run_rho1
    from weighted_mtp.pipelines.run_verifiable import run_verifiable

    pipelines = {
        "baseline": run_baseline,
        "ntp": run_ntp,
        "critic": run_critic,
        "verifiable": run_verifiable,
        "rho1": run_rho1,
    }
    try:
        return pipelines[request.recipe.pipeline](request)
    except BaseException as error:
        distributed.end_if_abandoned(error)
        raise


def dry_run(request: RunRequest) -> Estimate:
    """Check all but the rows, and estimate what the run takes; nothing is written.

    Raises:
        UserError: what `train` would refuse.
    """
    recipe, run_dir = request.recipe, request.run_dir
    check_output_directory(run_dir, "--output-dir")
    if request.resume:
        from weighted_mtp.pipelines.checkpointing.resuming import tell_changes

        newest = next(reversed(complete_checkpoints(run_dir)), None)
        tell_changes(run_dir, recipe, newest, request.saved)
    found = estimate(recipe)
    if recipe.training.remote is not None:
        from weighted_mtp.pipelines.checkpointing.remote_directory import Remote

        Remote(recipe.training.remote)  # fails if the package for it is missing
    return found


def default_run_dir(recipe: RecipeLike | None, preset: str | None) -> Path:
    """`runs/RECIPE-PRESET`."""
    if recipe is None:
        raise _unnamed()
    name = recipe.pipeline if isinstance(recipe, Recipe) else recipe
    return Path("runs") / "-".join(Path(part).stem for part in (name, preset) if part)


def _unnamed() -> UserError:
    return UserError("name a recipe: --recipe " + " | ".join(available()))


def _warn_of_ignored(
    recipe: str, preset: str | None, overrides: Sequence[str], run_dir: Path, asked: Recipe
) -> None:
    """Warn where recipe and preset, which a resumed run does not read, differ from its own."""
    from weighted_mtp.pipelines.checkpointing.resume_rules import Resume
    from weighted_mtp.pipelines.checkpointing.resuming import changes

    try:
        given = settle(load_recipe(recipe, preset, overrides))
    except UserError:  # a shipped recipe alone, for instance, names no data
        return
    found = [str(change) for change in changes(Resume(asked, given, 0))]
    if found and distributed.is_main_process():
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        log.warning(
            "%s: a resumed run keeps its own recipe; the following of --recipe %s is ignored: "
            "%s%s (change a setting with --set)",
            run_dir,
            recipe,
            "; ".join(found[:5]),
            more,
        )
