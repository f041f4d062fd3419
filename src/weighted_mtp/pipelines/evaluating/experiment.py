"""Compare objectives from one start, under one budget, with controls: does weighting help?

For each seed a base model is trained on right and wrong programs alike, together with a critic.
Every arm starts from that base and trains for the same number of steps and rows; all are evaluated
on the same held-out problems. Each training and evaluation is a separate process, so that an
experiment can be interrupted and resumed, and several can run in parallel.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weighted_mtp.core.config.recipe import Recipe, load_recipe, setting
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json_lines
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import complete_checkpoints
from weighted_mtp.core.processes import available_cores
from weighted_mtp.pipelines.checkpoint_utils import is_trained
from weighted_mtp.pipelines.metrics_utils import read_metrics

log = get_logger(__name__)

SPLITS = ("test", "compositions")


@dataclass(frozen=True)
class Arm:
    """One objective under test.

    Attributes:
        recipe: the shipped recipe it starts from.
        about: a short description.
        settings: changes to the recipe.
    """

    recipe: str
    about: str
    settings: tuple[str, ...] = ()


ARMS: dict[str, Arm] = {
    "ntp": Arm("ntp", "correct programs, next token only"),
    "baseline": Arm("baseline", "correct programs, all heads"),
    "uniform": Arm("baseline", "right and wrong programs alike", ("objective.name=uniform",)),
    "value_only": Arm(
        "verifiable",
        "all programs alike, with the value loss",
        ("objective.td.min_weight=1", "objective.td.max_weight=1"),
    ),
    "verifiable": Arm("verifiable", "all programs, weighted by the critic's TD errors"),
    "random_matched": Arm(
        "verifiable",
        "all programs, random weights of the same mean and spread",
        ("objective.name=random_matched",),
    ),
    "shuffled": Arm(
        "verifiable",
        "all programs, the TD weights shuffled within each",
        ("objective.name=shuffled",),
    ),
    "rho1": Arm("rho1", "all programs, the 60 % of tokens furthest behind the baseline arm"),
}
COMPARISONS = (
    ("verifiable", "value_only", "weights at all"),
    ("verifiable", "random_matched", "weights from evidence, not just uneven ones"),
    ("verifiable", "shuffled", "weights on the right tokens, not just on the right programs"),
    ("rho1", "uniform", "selected tokens, not all of them"),
    ("baseline", "uniform", "leaving wrong programs out"),
    ("verifiable", "baseline", "weighting wrong programs down, not leaving them out"),
    ("baseline", "ntp", "more heads than one"),
)
"""Pairs of arms, and what their difference shows."""
LAST = ("rho1",)
"""Arms whose reference model is another arm."""


@dataclass(frozen=True)
class ExperimentRequest:
    """Which arms to compare, and on what scale.

    Attributes:
        steps, base_steps: optimizer steps of every arm and of the base.
        n_problems: held-out problems of each split.
        jobs: processes at a time; each gets its share of the cores.
        settings: `section.key=value` for every training.
    """

    directory: Path
    preset: str = "micro"
    seeds: int = 3
    arms: tuple[str, ...] = tuple(ARMS)
    steps: int = 150
    base_steps: int = 500
    n_problems: int = 200
    jobs: int = 1
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArmResult:
    """The result of one arm with one seed.

    Attributes:
        passed: for each split, whether each problem was solved, by task_id.
        tokens: target tokens of head 1 that were trained on (for rho1, those kept).
        head_loss: held-out loss of each head on correct programs, in nats per token.
        right_preferred: of held-out pairs of a right and a wrong program of one problem, the share
            whose right one the model finds likelier.
    """

    arm: str
    seed: int
    passed: dict[str, dict[str, bool]]
    tokens: int
    head_loss: list[float] = field(default_factory=list)
    right_preferred: float = math.nan


def run_experiment(request: ExperimentRequest) -> list[ArmResult]:
    """Train and evaluate every arm with every seed; what is complete is not repeated, what was
    interrupted resumes.

    Raises:
        UserError: an arm is unknown, a recipe or setting is wrong, or a training failed.
    """
    unknown = [arm for arm in request.arms if arm not in ARMS]
    if unknown:
        raise UserError(f"no arm {', '.join(unknown)}; choose from {', '.join(ARMS)}")
    if any(arm in LAST for arm in request.arms) and "baseline" not in request.arms:
        raise UserError("rho1's reference model is the baseline arm: add baseline to --arms")
    seeds = range(request.seeds)
    first = [(arm, seed) for seed in seeds for arm in request.arms if arm not in LAST]
    last = [(arm, seed) for seed in seeds for arm in request.arms if arm in LAST]
    with ThreadPoolExecutor(request.jobs) as pool:
        list(pool.map(lambda seed: train(request, "base", seed), seeds))
        for phase in (first, last):
            list(pool.map(lambda task: train_and_evaluate(request, *task), phase))
    return [collect(request, arm, seed) for arm, seed in sorted(first + last)]


def folder(request: ExperimentRequest, arm: str, seed: int) -> Path:
    """Return the run directory of an arm."""
    return request.directory / f"seed{seed}" / arm


def train_and_evaluate(request: ExperimentRequest, arm: str, seed: int) -> None:
    """Train and evaluate one arm with one seed."""
    train(request, arm, seed)
    run_dir = folder(request, arm, seed)
    for split in SPLITS:
        output = run_dir / "evaluation" / f"micro-{split}.jsonl"
        if not output.exists():
            command = ["evaluate", str(run_dir), "--split", split, "--show", "0"]
            _call(request, [*command, "--n-problems", str(request.n_problems)], run_dir)


def train(request: ExperimentRequest, arm: str, seed: int) -> None:
    """Train the base of a seed, or an arm that starts from it."""
    run_dir = folder(request, arm, seed)
    recipe = arm_recipe(request, arm, seed)
    started = (run_dir / "config.yaml").exists()
    file = run_dir.with_suffix(".yaml")
    if started and file.read_text(encoding="utf-8") != recipe.to_yaml():
        raise UserError(f"{run_dir}: was made with other settings; give another --output-dir")
    if is_trained(run_dir, recipe.training.steps):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    command = ["train", "--output-dir", str(run_dir)]
    command += ["--resume"] if started else ["--recipe", str(file)]
    log.info("seed %d: training %s", seed, arm)
    _call(request, command, run_dir)


def arm_recipe(request: ExperimentRequest, arm: str, seed: int) -> Recipe:
    """Resolve the recipe of an arm (or of the base), each with a remote directory of its own."""
    recipe = _arm_recipe(request, arm, seed)
    if recipe.training.remote is None:
        return recipe
    url = f"{recipe.training.remote.rstrip('/')}/seed{seed}/{arm}"
    training = recipe.training.model_copy(update={"remote": url})
    return recipe.model_copy(update={"training": training})


def _arm_recipe(request: ExperimentRequest, arm: str, seed: int) -> Recipe:
    data = [f"data.micro.seed={seed}", f"runtime.seed={seed}"]
    # The same rows for all arms: each objective selects among them.
    data += ["data.micro.n_validation=300", "data.micro.incorrect_per_problem=3"]
    if arm == "base":
        base = [
            "objective.value.lm_rows=all",
            f"training.steps={request.base_steps}",
            f"training.save_every={request.base_steps}",
            f"training.validate_every={request.base_steps}",
            "training.keep_last=1",
        ]
        return load_recipe("critic", request.preset, [*data, *base, *request.settings])
    start = complete_checkpoints(folder(request, "base", seed))[-1] / "model"
    changes = [
        "model.architecture=null",
        setting("model.path", start),
        f"training.steps={request.steps}",
        f"training.save_every={request.steps}",
        f"training.validate_every={request.steps}",
        "training.log_every=1",
        "training.keep_last=1",
        # Another order of the rows than the base had, the same for every arm.
        f"runtime.seed={seed + 1000}",
    ]
    chosen = ARMS[arm]
    if chosen.recipe == "verifiable":
        changes.append("critic_stage=null")
    if arm == "rho1":
        baseline = folder(request, "baseline", seed)
        changes.append("reference_stage=null")
        changes.append(setting("objective.rho1.reference_model", baseline))
    settings = [*data, *changes, *chosen.settings, *request.settings]
    return load_recipe(chosen.recipe, request.preset, settings)


def collect(request: ExperimentRequest, arm: str, seed: int) -> ArmResult:
    """Read the result files of an arm."""
    run_dir = folder(request, arm, seed)
    passed = {}
    for split in SPLITS:
        path = run_dir / "evaluation" / f"micro-{split}.jsonl"
        records = [r for r in read_json_lines(path)[0] if isinstance(r.get("passed"), bool)]
        if len(records) != request.n_problems:
            raise UserError(
                f"{run_dir}: evaluated on {len(records)} problems, not {request.n_problems}; "
                "delete its evaluation/ or give another --output-dir"
            )
        passed[split] = {str(record.get("task_id")): record["passed"] for record in records}
    metrics = read_metrics(run_dir / "metrics.jsonl")
    held_out = [r for r in metrics if r["kind"] == "validation"]
    return ArmResult(
        arm,
        seed,
        passed,
        round(sum(_trained(r) for r in metrics if r["kind"] == "train")),
        held_out[-1]["head_loss"] if held_out else [],
        held_out[-1].get("right_preferred", math.nan) if held_out else math.nan,
    )


def _trained(record: dict[str, Any]) -> float:
    share = record.get("rho1", {}).get("kept_share_head_1", 1.0)
    return float(record["tokens"] * share) if record["tokens"] else 0.0  # the share may be NaN


def _call(request: ExperimentRequest, arguments: Sequence[str], run_dir: Path) -> None:
    """Run `weighted-mtp` in a process of its own; its output goes to a file beside the run."""
    threads = max(1, available_cores() // request.jobs)
    printed = run_dir.with_suffix(".log")
    with printed.open("a", encoding="utf-8") as file:
        result = subprocess.run(
            [sys.executable, "-m", "weighted_mtp", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=False,
        )
    if result.returncode:
        last = printed.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        raise UserError(f"{run_dir}: {''.join(last)} (full output: {printed})")
