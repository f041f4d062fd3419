"""Which settings of a recipe fit which GPUs: a run's estimate for every combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from weighted_mtp.core.choices import PLANNED_SHAPES
from weighted_mtp.core.config.recipe import Recipe, load_recipe, setting
from weighted_mtp.core.config.section import Section
from weighted_mtp.core.device import resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.planning.communication import Hardware, Step, step_on_paper
from weighted_mtp.pipelines.planning.estimate import (
    count,
    numbers_of,
    reference_numbers,
    setting_of,
)
from weighted_mtp.pipelines.planning.memory import Memory, peak_memory
from weighted_mtp.pipelines.planning.memory_inputs import Checkpointing, Counts, Mode
from weighted_mtp.pipelines.planning.shapes import args_of, check_there, shape_of
from weighted_mtp.pipelines.resolve import Processes, check_inputs, resolve, settle
from weighted_mtp.pipelines.training.objectives import Objective

SHARE = 0.9
"""Share of a GPU's memory that an estimate may use: the rest is for the CUDA context, NCCL,
fragmentation, and the estimate's own error."""

CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full")
"""From the fastest to the one that uses the least memory."""

LEAN = {"reduce_gradients": "micro_batch", "param_dtype": "bfloat16"}
"""FSDP settings that use the least memory without recomputation; `param_dtype` only if the compute
dtype is bfloat16 too."""


@dataclass(frozen=True)
class PlanRequest:
    """What to plan for.

    Attributes:
        recipe: a shipped name, a YAML file or a recipe.
        model: a name in `MODELS`, "micro", or a directory; None takes the recipe's own.
        gpus_per_node: GPUs that share a copy of the weights under hsdp.
        reference: a model that scores online (rho1), named as `model` is; None: losses are stored.
        hardware: what the estimate of a step's time assumes.
    """

    recipe: str | Path | Recipe
    preset: str | None = None
    overrides: Sequence[str] = ()
    model: str | None = None
    gpus: int = 1
    gpus_per_node: int = 8
    reference: str | None = None
    hardware: Hardware = field(default_factory=Hardware)

    @property
    def name(self) -> str:
        """The recipe's name, for messages."""
        return self.recipe.pipeline if isinstance(self.recipe, Recipe) else str(self.recipe)


@dataclass(frozen=True)
class Choice:
    """One way to run, its peak memory, and what a step sends and computes.

    Attributes:
        lean: with FSDP's `LEAN` settings.
        changes: `--set` options that change the recipe to this choice.
    """

    mode: Mode
    lean: bool
    checkpointing: Checkpointing
    micro_batch_size: int
    changes: tuple[str, ...]
    memory: Memory
    step: Step

    @property
    def way(self) -> str:
        """How the weights are sharded, in a word or two."""
        if self.mode == "none":
            return "one GPU"
        return f"{self.mode} lean" if self.lean else self.mode

    def fits(self, gib: float) -> bool:
        """Whether it fits on a GPU of this many GiB."""
        return self.memory.total <= SHARE * gib * 2**30


@dataclass(frozen=True)
class Plan:
    """Every choice for a recipe.

    Attributes:
        own: the micro-batch size of the recipe, or the nearest that a rank can have.
    """

    recipe: Recipe
    counts: Counts
    gpus: int
    own: int
    choices: tuple[Choice, ...]

    def best(self, gib: float) -> Choice | None:
        """What to try first on a GPU of this many GiB; None if nothing fits.

        Least recomputation first, because it always costs time; then least sharding, because its
        transfers overlap with computation; then the largest micro-batch.
        """
        fitting = [choice for choice in self.choices if choice.fits(gib)]
        ways = list(dict.fromkeys(choice.way for choice in self.choices))

        def cost(choice: Choice) -> tuple[int, int, int]:
            recomputed = CHECKPOINTING.index(choice.checkpointing)
            return recomputed, ways.index(choice.way), -choice.micro_batch_size

        return min(fitting, key=cost, default=None)

    def smallest(self) -> Choice:
        """The choice with the lowest peak."""
        return min(self.choices, key=lambda choice: choice.memory.total)


def plan(request: PlanRequest) -> Plan:
    """Estimate every combination of parallel mode, checkpointing and micro-batch size.

    Raises:
        UserError: the recipe, the model and the number of GPUs do not make a possible run.
    """
    _check_gpus(request)
    recipe = settle(_read_recipe(request), planned=True)
    processes = Processes(request.gpus, min(request.gpus, request.gpus_per_node))
    shape = None if request.model is None else shape_of(request.model)
    if request.model is not None and shape is None:
        check_there(request.model, "--model")
    resolved = resolve(recipe, processes, shape, planned=True)
    check_inputs(recipe, resolved, planned=True)
    args, objective = resolved.args, resolved.objective
    device = recipe.runtime.device
    if not device.startswith(("cuda", "mps")):  # the GPUs that are planned for need not be here
        resolve_device(device)
    formats: Mapping[str, torch.dtype] | None = None  # unknown for a shape alone
    if shape is None:
        formats = {}
    if resolved.source is not None:
        formats = resolved.source.dtypes
    counts = count(recipe, args, objective, formats)
    reference = _reference_numbers(request, recipe, objective)
    sizes = _micro_batch_sizes(recipe, request.gpus)
    choices = []
    for mode, lean in _ways(recipe, request):
        for checkpointing in CHECKPOINTING:
            for size in sizes:
                changed, changes = _change(recipe, mode, lean, checkpointing, size)
                setting = setting_of(changed, args, objective, request.gpus, request.gpus_per_node)
                memory = peak_memory(counts, replace(setting, reference=reference))
                micro_batches = -(-recipe.training.batch_size // (size * request.gpus))
                where = (request.gpus, request.gpus_per_node, micro_batches, request.hardware)
                step = step_on_paper(counts, setting, *where)
                choices.append(Choice(mode, lean, checkpointing, size, changes, memory, step))
    wanted = recipe.training.micro_batch_size
    own = max((size for size in sizes if size <= wanted), default=sizes[0])
    return Plan(recipe, counts, request.gpus, own, tuple(choices))


def _check_gpus(request: PlanRequest) -> None:
    for name, value in (("--gpus", request.gpus), ("--gpus-per-node", request.gpus_per_node)):
        if value < 1:
            raise UserError(f"{name} {value}: give a number of 1 or more")


def _read_recipe(request: PlanRequest) -> Recipe:
    """Read the recipe, which need not name data and model yet."""
    overrides = list(request.overrides)
    if request.model is not None:
        overrides += ["model.architecture=null", setting("model.path", request.model)]
    try:
        return load_recipe(request.recipe, request.preset, overrides)
    except UserError as error:
        if "data.source jsonl needs data.train" in str(error):
            more = [*request.overrides, "data.source=micro"]
            return _read_recipe(replace(request, overrides=more))
        if request.model is None and "give one of model.path" in str(error):
            names = ", ".join(PLANNED_SHAPES)
            raise UserError(
                f"recipe {request.name} names no model: --model NAME ({names}) or DIRECTORY"
            ) from error
        raise


def _reference_numbers(request: PlanRequest, recipe: Recipe, objective: Objective) -> int:
    if request.reference is None:
        return reference_numbers(recipe, objective)
    if not objective.needs_reference:
        raise UserError(
            f"--reference-model: the {request.name} recipe compares with no reference model; "
            "leave it out, or plan rho1"
        )
    return numbers_of(args_of(request.reference, "--reference-model"))


def _micro_batch_sizes(recipe: Recipe, gpus: int) -> list[int]:
    """Powers of two, and the recipe's own, that a rank can have in a step."""
    batch, own = recipe.training.batch_size, recipe.training.micro_batch_size
    group = 2 if recipe.objective.value.loss == "pairwise" and not recipe.data.packing else 1
    share = batch // gpus
    if share < group:
        raise UserError(
            f"training.batch_size {batch} counts the rows of all {gpus} GPUs together, which is "
            f"less than {group} each; --set training.batch_size={group * gpus} or more"
        )
    powers = {2**i for i in range(share.bit_length())}
    return sorted(
        size
        for size in powers | {own}
        if size <= share and size % group == 0 and (recipe.data.packing or batch % size == 0)
    )


def _ways(recipe: Recipe, request: PlanRequest) -> Iterator[tuple[Mode, bool]]:
    """Ways to shard the weights, the least sharded first, and whether FSDP uses `LEAN`."""
    if request.gpus == 1:
        yield ("fsdp" if recipe.runtime.offloads else "none"), False
        return
    yield "ddp", False
    if recipe.training.optimizer == "muon":  # needs whole matrices
        return
    size = recipe.runtime.fsdp.shard_size or request.gpus_per_node
    modes: list[Mode] = ["fsdp"]
    if size < request.gpus and request.gpus % size == 0:
        modes.insert(0, "hsdp")
    for mode in modes:
        yield mode, False
        if any(getattr(recipe.runtime.fsdp, key) != value for key, value in _lean(recipe).items()):
            yield mode, True


def _lean(recipe: Recipe) -> dict[str, str]:
    """`LEAN`, as far as the compute dtype allows."""
    half = recipe.runtime.compute_dtype != "float32"
    return {key: value for key, value in LEAN.items() if half or key != "param_dtype"}


def _change(
    recipe: Recipe, mode: Mode, lean: bool, checkpointing: Checkpointing, size: int
) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with one choice made, and the changes that make it. Settings for many
    processes do no harm on one."""
    parallel: dict[str, object] = {} if mode == "none" else {"parallel": mode}
    fsdp: dict[str, object] = {**_lean(recipe)} if lean else {}
    blocks: dict[str, object] = {
        "activation_checkpointing": checkpointing,
        "micro_batch_size": size,
    }
    runtime, training = recipe.runtime, recipe.training
    changes = (
        *_differing("runtime", runtime, parallel),
        *_differing("runtime.fsdp", runtime.fsdp, fsdp),
        *_differing("training", training, blocks),
    )
    parallel["fsdp"] = runtime.fsdp.model_copy(update=fsdp)
    changed = recipe.model_copy(
        update={
            "runtime": runtime.model_copy(update=parallel),
            "training": training.model_copy(update=blocks),
        }
    )
    return changed, changes


def _differing(name: str, section: Section, values: Mapping[str, object]) -> list[str]:
    """The `values` that differ from those of a section, as `--set` takes them."""
    return [f"{name}.{key}={x}" for key, x in values.items() if getattr(section, key) != x]
