"""From a recipe to a trainer: the parts every pipeline shares."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from weighted_mtp.core.config.recipe import Recipe, load_recipe_file
from weighted_mtp.core.device import DTYPES
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger, run_log
from weighted_mtp.core.model_folder import (
    complete_checkpoints,
    is_sharded,
)
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.models.meta_mtp.layouts.adapted import AdaptedSource
from weighted_mtp.models.meta_mtp.layouts.peft_files import Base
from weighted_mtp.models.meta_mtp.order_head import ORDER_HEAD_FILE
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpoint_utils import checkpoint_path, checkpoint_step
from weighted_mtp.pipelines.checkpointing.model_start import (
    DeferredModel,
    adapted_model,
    fresh_model,
    stored_model,
    with_order_head,
    with_value_head,
)
from weighted_mtp.pipelines.checkpointing.remote_runs import share_recipe, sync_with_remote
from weighted_mtp.pipelines.checkpointing.resuming import check_sources, is_same_run, tell_changes
from weighted_mtp.pipelines.checkpointing.sharded import sharded_model
from weighted_mtp.pipelines.checkpointing.sums import verify_checkpoint
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.resolve import Processes, check_processes, resolve, settle
from weighted_mtp.pipelines.run_directory import writing_run
from weighted_mtp.pipelines.training.adapting import freeze, halve_frozen, lora_of
from weighted_mtp.pipelines.training.data import training_data
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import Objective
from weighted_mtp.pipelines.training.reference import online_reference
from weighted_mtp.pipelines.training.stored_states import check_model
from weighted_mtp.pipelines.training.trainer import Trainer, TrainingRun, TrainResult
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.blocks import checkpoint_activations, compile_blocks
from weighted_mtp.runtime.environment import environment_of
from weighted_mtp.runtime.main_process import on_main
from weighted_mtp.runtime.modes import parallelise
from weighted_mtp.runtime.out_of_memory import naming_remedies
from weighted_mtp.runtime.shared_directory import check_directory

log = get_logger(__name__)

LAUNCH = "launch.txt"
"""File in a run directory: which start of torchrun it belongs to."""


def run(request: RunRequest) -> TrainResult:
    """Train by a recipe, start to end.

    Raises:
        UserError: anything wrong with the recipe, its files, or the run directory.
    """
    recipe, run_dir = settle(request.recipe), request.run_dir
    request = replace(request, recipe=recipe)
    runtime, data = recipe.runtime, recipe.data
    outermost = request if request.outer is None else request.outer
    with (
        distributed.report_lost_rank(),
        environment_of(runtime) as env,
        writing_run(outermost.run_dir),
    ):
        processes = Processes(env.world_size)
        check_processes(recipe, processes)
        checkpoint = find_checkpoint(request)
        if checkpoint is not None:
            on_main(partial(verify_checkpoint, checkpoint))
        if request.record is None:  # else changes were reported before the first stage
            tell_changes(run_dir, recipe, checkpoint, request.saved)
        distributed.barrier()  # no rank may see files that another is about to write
        start, objective, tokenizer = start_model(recipe, processes, checkpoint)
        adapter = start.adapter
        on_main(partial(check_model, recipe, adapter.args, checkpoint))
        collator = AlpacaCollator(
            tokenizer, data.template, data.max_length, data.pad_to_multiple, data.joint
        )
        dtype, chunk_rows = DTYPES[runtime.compute_dtype], recipe.training.loss_chunk_rows
        module = TrainingModule(adapter, objective, dtype, chunk_rows)
        freeze(adapter, recipe, objective)
        halve_frozen(adapter, recipe, start.formats)
        module.drops = recipe.training.drops
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
        if objective.needs_reference:
            annotate = online_reference(recipe, tokenizer, env.device, objective.heads)
            rows = replace(rows, annotate=annotate)
        log.info(
            "%s parameters, %s of them trained, on %s × %d · %s, %s held out",
            f"{size:,}",
            f"{trained:,}",
            env.device,
            env.world_size,
            rows.size,
            f"{len(rows.validation):,}",
        )
        training = TrainingRun(recipe, run_dir, env, tokenizer, checkpoint)
        trainer = Trainer(training, module, parallel, rows)
        record_recipe(request)
        with (
            distributed.report_lost_rank(trainer.current_step),
            naming_remedies(trainer.current_step, env.device),
            run_log(run_dir / "train.log", env.is_main),
        ):
            return trainer.fit()


def prepare_blocks(recipe: Recipe, transformer: Transformer) -> None:
    """Apply activation checkpointing and compilation to each block. Checkpointing comes first, so
    that the recomputation is compiled too."""
    plan = transformer.grouping_plan()
    how = recipe.training.activation_checkpointing
    if how != "none":
        checkpoint_activations(transformer, plan, how, recipe.training.drops)
    if recipe.runtime.compile:
        compile_blocks(transformer, plan)


def find_checkpoint(request: RunRequest) -> Path | None:
    """Find the checkpoint to resume from; None to start a new run. The main process looks for it,
    and fetches it if `training.remote` has a newer one.

    Raises:
        UserError: a new run would overwrite an old one, there is no run to resume, or a place
            cannot be used.
    """
    check_directory(request.run_dir)
    sync_with_remote(request.record or request.recipe, request.run_dir, request.resume)
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
    """Whether this launch began the run and torchrun has restarted its processes."""
    mark, config, mine = request.run_dir / LAUNCH, request.run_dir / "config.yaml", False
    if distributed.is_main_process() and mark.exists():
        asked = request.record or request.recipe
        mine = mark.read_text(encoding="utf-8") == distributed.launch()
        mine = mine and is_same_run(load_recipe_file(config), asked)
    return distributed.any_rank(mine, torch.device("cpu"))


def record_recipe(request: RunRequest) -> None:
    """Make `run_dir` a run. Call this after all input was read: a start that fails on a bad file
    then leaves nothing that would block the next one."""
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


def start_model(
    recipe: Recipe, processes: Processes, checkpoint: Path | None = None
) -> tuple[DeferredModel, Objective, Tokenizer]:
    """Find the model of a recipe, not yet in memory, with its objective and tokenizer.

    Args:
        checkpoint: of this run; None starts from `model.path`, or with fresh weights.
    """
    if checkpoint is not None and is_sharded(checkpoint):
        start = sharded_model(checkpoint, adapted=False)
        resolved = resolve(recipe, processes, start.adapter.args)
    else:
        resolved = resolve(recipe, processes, None if checkpoint is None else checkpoint / "model")
        source = resolved.source
        if source is None:
            start = fresh_model(resolved.args, recipe.model.init_std)
        elif recipe.training.adapt != "lora":
            start = stored_model(source, resolved.args)
        elif checkpoint is not None and isinstance(source, AdaptedSource):
            start = stored_model(source.base, resolved.args)
            start = adapted_model(start, source.described, source.trained)
        else:
            start = stored_model(source, resolved.args)
            start = adapted_model(
                start, Base.of(source, lora_of(recipe.training.lora), recipe.model.path), None
            )
        if resolved.objective.needs_value_head:
            head_type = recipe.objective.value.head_type
            start = with_value_head(start, resolved.value_head, head_type)
        if resolved.objective.needs_order_head:
            stored = None if source is None else source.directory / ORDER_HEAD_FILE
            start = with_order_head(start, stored, recipe.model.init_std)
    assert resolved.tokenizer is not None  # only a plan may lack one
    side_files = start.adapter.side_files
    if recipe.tokenizer.kind != "auto":  # the recipe names another tokenizer
        side_files = side_files.without_tokenizer()
    start.adapter.side_files = side_files.stopping_at(resolved.tokenizer.eos_id)
    return start, resolved.objective, resolved.tokenizer
