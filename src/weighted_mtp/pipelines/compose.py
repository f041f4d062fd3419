"""From a recipe to a trainer: the parts every pipeline shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from weighted_mtp.core.config.recipe import Recipe, load_recipe_file
from weighted_mtp.core.device import DTYPES, resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger, run_log
from weighted_mtp.core.model_folder import (
    complete_checkpoints,
    find_model,
    find_tokenizer,
    is_hub_id,
    is_sharded,
)
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.tokens.tokenizers import (
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
    make_tokenizer,
)
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import value_head_path
from weighted_mtp.models.meta_mtp.layouts.json_file import LARGEST
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpoint_utils import checkpoint_path, checkpoint_step
from weighted_mtp.pipelines.checkpointing.model_start import (
    Start,
    check_fresh,
    fresh_model,
    stored_model,
    warn_past_positions,
    with_value_head,
)
from weighted_mtp.pipelines.checkpointing.remote_runs import meet, share_recipe
from weighted_mtp.pipelines.checkpointing.resuming import check_sources, is_same_run, tell_changes
from weighted_mtp.pipelines.checkpointing.sharded import sharded_model
from weighted_mtp.pipelines.checkpointing.sums import verify_checkpoint
from weighted_mtp.pipelines.run_directory import writing_run
from weighted_mtp.pipelines.training.data import training_data
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import OBJECTIVES, make_objective
from weighted_mtp.pipelines.training.reference import online_reference
from weighted_mtp.pipelines.training.trainer import Trainer, TrainResult
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.blocks import checkpoint_activations, compile_blocks
from weighted_mtp.runtime.environment import environment_of
from weighted_mtp.runtime.main_process import on_main
from weighted_mtp.runtime.modes import check_mode, parallelise
from weighted_mtp.runtime.out_of_memory import naming_remedies
from weighted_mtp.runtime.shared_directory import check_directory

log = get_logger(__name__)

LAUNCH = "launch.txt"
"""In a run directory: which start of torchrun it belongs to."""


@dataclass(frozen=True)
class RunRequest:
    """What to run and where.

    Attributes:
        resume: continue the run in `run_dir` from its newest complete checkpoint.
        data_dir: where generated data sets are kept, `run_dir` if None.
        record: the recipe the run directory keeps, `recipe` if None.
        outer: the run this one is a stage of; its directory becomes a run together with this one's.
    """

    recipe: Recipe
    run_dir: Path
    resume: bool = False
    data_dir: Path | None = None
    record: Recipe | None = None
    outer: RunRequest | None = None


def run(request: RunRequest) -> TrainResult:
    """Train by a recipe, start to end.

    Raises:
        UserError: anything wrong with the recipe, its files, or the run directory.
    """
    recipe, run_dir = request.recipe, request.run_dir
    runtime, data = recipe.runtime, recipe.data
    outermost = request if request.outer is None else request.outer
    with (
        distributed.naming_the_step(),
        environment_of(runtime) as env,
        writing_run(outermost.run_dir),
    ):
        check_mode(runtime, env.world_size)
        check_sharding(recipe, env.world_size)
        checkpoint = find_checkpoint(request)
        if checkpoint is not None:
            on_main(partial(verify_checkpoint, checkpoint))
        if request.record is None:  # a second stage was told of changes before the first one
            tell_changes(run_dir, recipe, checkpoint)
        distributed.barrier()  # no rank may find the files another one is about to write
        tokenizer = build_tokenizer(recipe)
        collator = AlpacaCollator(
            tokenizer, data.template, data.max_length, data.pad_to_multiple, data.joint
        )
        start = start_model(recipe, tokenizer, checkpoint)
        adapter = start.adapter
        objective = make_objective(recipe.objective, adapter.args.n_future_tokens, runtime.seed)
        dtype, chunk_rows = DTYPES[runtime.compute_dtype], recipe.training.loss_chunk_rows
        module = TrainingModule(adapter, objective, dtype, chunk_rows)
        size = sum(p.numel() for p in adapter.parameters())
        trained = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
        prepare_blocks(recipe, adapter.transformer)
        parallel = parallelise(module, module.grouping_plan(), runtime, env, start.fill)
        rows = training_data(
            recipe,
            collator,
            objective,
            request.data_dir or run_dir,
            checkpoint,
            adapter.args.vocab_size,
        )
        on_main(lambda: check_sources(run_dir, checkpoint, rows.sources))
        annotate = None
        if objective.needs_reference:
            annotate = online_reference(recipe, tokenizer, env.device, objective.heads)
        log.info(
            "%s parameters, %s of them trained, on %s × %d · %s, %s held out",
            f"{size:,}",
            f"{trained:,}",
            env.device,
            env.world_size,
            rows.size,
            f"{len(rows.validation):,}",
        )
        trainer = Trainer(
            recipe,
            module,
            parallel,
            tokenizer,
            rows.train,
            rows.validation,
            run_dir,
            env,
            checkpoint,
            annotate,
            rows.sources,
        )
        record_recipe(request)
        with (
            distributed.naming_the_step(trainer.current_step),
            naming_remedies(trainer.current_step, env.device),
            run_log(run_dir / "train.log", env.is_main),
        ):
            return trainer.fit()


def prepare_blocks(recipe: Recipe, transformer: Transformer) -> None:
    """Activation checkpointing and compilation, block by block; what is compiled includes what will
    be computed again."""
    plan = transformer.grouping_plan()
    how = recipe.training.activation_checkpointing
    if how != "none":
        checkpoint_activations(transformer, plan, how)
    if recipe.runtime.compile:
        compile_blocks(transformer, plan)


def check_sharding(recipe: Recipe, world_size: int) -> None:
    """Raise `UserError` for what does not go with weights that are spread over processes."""
    sharded = recipe.runtime.parallel in ("fsdp", "hsdp") and world_size > 1
    if sharded and recipe.training.optimizer == "muon":
        raise UserError(
            "training.optimizer muon needs whole matrices, which runtime.parallel "
            f"{recipe.runtime.parallel} leaves on no process; use adamw, or runtime.parallel=ddp"
        )
    if recipe.runtime.fsdp.cpu_offload and not sharded:
        raise UserError(
            "runtime.fsdp.cpu_offload acts where fsdp or hsdp spread the weights over several "
            "processes; set it to false here"
        )


def find_checkpoint(request: RunRequest) -> Path | None:
    """The checkpoint to resume from, which the main process looks for, and fetches if the newest
    one is in `training.remote`; None to start afresh.

    Raises:
        UserError: a new run would overwrite an old one, there is no run to resume, or a place
            cannot be used.
    """
    check_directory(request.run_dir)
    meet(request.recipe.training.remote, request.run_dir, request.resume)
    run_dir = request.run_dir
    exists = bool(distributed.from_main((run_dir / "config.yaml").exists()))
    if exists and not request.resume and was_restarted(request):
        request = replace(request, resume=True)
    if exists and not request.resume:
        raise UserError(
            f"{run_dir} holds a run already; add --resume to continue it, or give another "
            "--output-dir"
        )
    if not request.resume:
        return None
    if not exists:
        raise UserError(f"{run_dir}: no run to resume; start it without --resume")
    found = complete_checkpoints(run_dir)
    step = distributed.from_main(checkpoint_step(found[-1]) if found else -1)
    newest = checkpoint_path(run_dir, step) if step >= 0 else None
    distributed.check_shared(newest or run_dir)
    log.info("resuming from %s", newest or "the start: no checkpoint was saved")
    return newest


def was_restarted(request: RunRequest) -> bool:
    """Whether this very launch began the run, and torchrun has started its processes again."""
    mark, config, mine = request.run_dir / LAUNCH, request.run_dir / "config.yaml", False
    if distributed.is_main_process() and mark.exists():
        asked = request.record or request.recipe
        mine = mark.read_text(encoding="utf-8") == distributed.launch()
        mine = mine and is_same_run(load_recipe_file(config), asked)
    return distributed.any_rank(mine, torch.device("cpu"))


def record_recipe(request: RunRequest) -> None:
    """Make `run_dir` a run. Called once all input was read: a start that fails on a bad file leaves
    nothing that would stand in the way of the next one."""
    if request.outer is not None:
        record_recipe(request.outer)
    if distributed.is_main_process():
        request.run_dir.mkdir(parents=True, exist_ok=True)
        recipe = request.record or request.recipe
        partial = request.run_dir / "config.yaml.partial"
        partial.write_text(recipe.to_yaml(), encoding="utf-8")
        launch = distributed.launch()
        if launch is not None:
            (request.run_dir / LAUNCH).write_text(launch, encoding="utf-8")
        partial.replace(request.run_dir / "config.yaml")
    distributed.barrier()
    share_recipe(request.recipe.training.remote, request.run_dir)


def build_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer a recipe names, or the one stored with its model. `tokenizer.path` may be all
    that `model.path` may be, or a tokenizer's file."""
    config = recipe.tokenizer
    if config.kind == "auto":
        source = config.path or recipe.model.path
        if source is None:
            raise UserError(
                "tokenizer.kind auto needs model.path; from scratch, name one, e.g. bytes"
            )
        return load_tokenizer(source)
    path = config.path
    if path is not None and (path.is_dir() or is_hub_id(path)):
        path = find_tokenizer(path)
        path = path / "tokenizer" if (path / "tokenizer").is_dir() else path
        if config.kind == "sentencepiece":
            path = path / "tokenizer.model"
    return make_tokenizer(config.kind, path)


def model_args(recipe: Recipe, vocab_size: int) -> ModelArgs:
    """Shape of the model a recipe trains from scratch; `objective.heads` decides n."""
    if recipe.model.architecture is None:
        raise UserError("model.architecture is not set")
    shape = recipe.model.architecture.model_dump()
    if recipe.objective.heads is not None:
        shape["n_future_tokens"] = recipe.objective.heads
    try:
        args = ModelArgs(vocab_size=vocab_size, **shape)
        if args.ffn_dim >= LARGEST:
            raise ValueError("ffn_dim_multiplier makes the feed-forward width too large")
        return args
    except (ValueError, OverflowError) as error:
        raise UserError(f"model.architecture: {error}") from error


def start_model(recipe: Recipe, tokenizer: Tokenizer, checkpoint: Path | None) -> Start:
    """The model of a recipe, not yet in memory: from a checkpoint of this run, from `model.path`,
    or fresh."""
    objective, needed = recipe.objective, OBJECTIVES[recipe.objective.name].needs_value_head
    sharded = checkpoint is not None and is_sharded(checkpoint)
    source = checkpoint / "model" if checkpoint is not None else recipe.model.path
    if checkpoint is not None and sharded:
        start = sharded_model(checkpoint)
    elif source is not None:
        source = find_model(source)
        start = stored_model(source, recipe.model)
    else:
        args = model_args(recipe, tokenizer.vocab_size)
        check_fresh(args, resolve_device(recipe.runtime.device), distributed.world_size())
        start = fresh_model(args, recipe.model.init_std)
    check_vocabulary(tokenizer, start.adapter.args.vocab_size, str(source or "the model"))
    check_length(recipe, start.adapter.args)
    side_files = start.adapter.side_files
    if recipe.tokenizer.kind != "auto":  # the recipe names another tokenizer
        side_files = side_files.without_tokenizer()
    start.adapter.side_files = side_files.stopping_at(tokenizer.eos_id)
    if sharded:
        return start
    if needed:
        stored = stored_value_head(recipe, source)
        start = with_value_head(start, stored, objective.value.head_type)
    return start


def build_adapter(
    recipe: Recipe, tokenizer: Tokenizer, device: torch.device, checkpoint: Path | None
) -> MetaLlamaMTPAdapter:
    """The model of a recipe, whole on one device."""
    return start_model(recipe, tokenizer, checkpoint).on(device)


def stored_value_head(recipe: Recipe, source: Path | None) -> Path | None:
    """The value head a run starts from; None for a fresh one, which only a critic may have.

    Raises:
        UserError: the objective needs one and there is none.
    """
    stored = value_head_path(source) if source is not None else None
    if stored is not None and stored.is_file():
        return stored
    if recipe.pipeline != "critic" and recipe.critic_stage is None:
        where = "a model from scratch" if source is None else str(source)
        raise UserError(
            f"{where} has no value head; train one first (weighted-mtp train --recipe critic) and "
            "set model.path to it, or set critic_stage.steps to do both"
        )
    return None


def check_length(recipe: Recipe, args: ModelArgs) -> None:
    """Raise `UserError` where rows may be longer than the model has positions."""
    longest, half = args.max_positions, -(-recipe.data.max_length // 2)
    key = "model.max_seq_len" if recipe.model.path else "model.architecture.max_seq_len"
    if recipe.data.max_length > longest:
        raise UserError(
            f"data.max_length {recipe.data.max_length} exceeds the model's {longest} positions; "
            f"--set data.max_length={longest}, or give it more: --set {key}={half}"
        )
    warn_past_positions(recipe.data.max_length, args, f"data.max_length {recipe.data.max_length}")
