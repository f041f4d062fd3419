"""Run an experiment: plan, choice, final seeds, figures. Whatever is finished is not repeated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.lock import only_writer
from weighted_mtp.core.logging import ROOT, get_logger, setup_logging
from weighted_mtp.core.processes import share_out
from weighted_mtp.core.run_records import without_nan
from weighted_mtp.evaluation.result_files import write_json
from weighted_mtp.micro_tasks import Split
from weighted_mtp.pipelines.experiments.plan import check_request, choice_seeds, write_plan
from weighted_mtp.pipelines.experiments.request import ExperimentRequest, HasJobs
from weighted_mtp.pipelines.experiments.rows import held_out_rows
from weighted_mtp.pipelines.experiments.seed import held_out_path, run_choice_seed, run_final_seed
from weighted_mtp.pipelines.experiments.summary import summarise

log = get_logger(__name__)

CHOICE, RESULTS = "choice.json", "results.json"


def run_experiment(request: ExperimentRequest) -> dict[str, Any]:
    """Run what is missing and return the results, which are written to results.json too.

    Raises:
        UserError: the request cannot be run, or differs from the plan in its directory.
    """
    check_request(request)
    with only_writer(request.directory, "wait until it ends, or give another --output-dir"):
        plan = write_plan(request)
        _generate(request, "validation", request.n_validation)
        choice = choose(request)
        _generate(request, "test", request.n_test)
        chosen = request.design.grid.get(choice["chosen"], ())
        for_each(request, run_final_seed, [(number, chosen) for number in range(request.seeds)])
        results = dict(without_nan(summarise(request, plan, choice)))
        write_json(request.directory / RESULTS, results)
    return results


def choose(request: ExperimentRequest) -> dict[str, Any]:
    """Choose the settings of the grid by their validation loss, and write the choice. Without a
    grid nothing is chosen.

    Raises:
        UserError: the base of every choice seed failed.
    """
    path = request.directory / CHOICE
    if path.exists():
        return dict(read_json(path))
    if not request.design.grid:
        return {"chosen": ""}
    numbers = choice_seeds(request)
    for_each(request, run_choice_seed, [(number,) for number in numbers])
    losses: dict[str, list[float]] = {}
    for place, name in enumerate(request.design.grid):
        files = [request.directory / f"seed{n}" / f"choice{place}.json" for n in numbers]
        losses[name] = [float(read_json(file)["loss"]) for file in files if file.exists()]
    if not any(losses.values()):
        raise UserError(
            f"{request.directory}: the base of every choice seed has a validation loss above "
            f"{request.data.base_limit}; train it longer (--base-steps)"
        )
    means = {name: sum(values) / len(values) for name, values in losses.items()}
    choice = {"chosen": min(means, key=lambda name: means[name]), "means": means, "losses": losses}
    write_json(path, choice)
    log.info("chosen on validation: %s", choice["chosen"])
    return choice


def _generate(request: ExperimentRequest, split: Split, count: int) -> None:
    recipe = request.design.recipe(request.design.base, request.preset, (), request.settings)
    held_out_rows(held_out_path(request, split), recipe, split, count)


def for_each(request: HasJobs, work: Callable[..., None], tasks: Sequence[tuple[Any, ...]]) -> None:
    """Call `work(request, *task)` for every task, `jobs` at a time, each on one thread."""
    call = partial(_on_one_thread, work, request)
    died, remedy = "a process of the experiment ended", "fewer --jobs; what is finished is kept"
    for _ in share_out(call, tasks, request.jobs, died, remedy, in_order=False):
        pass


def _on_one_thread(work: Callable[..., None], request: HasJobs, task: tuple[Any, ...]) -> None:
    """One thread is the fastest use of a core for models this small."""
    if not logging.getLogger(ROOT).handlers:  # a process of its own
        setup_logging()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work(request, *task)
    finally:
        torch.set_num_threads(before)
