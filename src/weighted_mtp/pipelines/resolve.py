"""Find and check what a recipe asks for, before a weight is read: tokenizer, model, objective.

Training, `train --dry-run` and `plan` call this alike, so they refuse the same mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.device import resolve_compute_dtype, resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import find_tokenizer, is_hub_id
from weighted_mtp.data.datasets import first_row
from weighted_mtp.data.templates import CHAT
from weighted_mtp.data.tokens.chat import ChatTemplate
from weighted_mtp.data.tokens.corpus import Corpus
from weighted_mtp.data.tokens.tokenizers import (
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
    make_tokenizer,
)
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import (
    find_tokenizer_files,
    open_checkpoint,
    value_head_path,
)
from weighted_mtp.models.meta_mtp.layouts.json_file import LARGEST
from weighted_mtp.models.meta_mtp.layouts.source import Source
from weighted_mtp.pipelines.checkpointing.model_start import (
    check_fresh,
    warn_past_positions,
    with_context_length,
    with_new_heads,
)
from weighted_mtp.pipelines.training.objectives import (
    Objective,
    make_objective,
    resolve_objective,
)
from weighted_mtp.pipelines.training.policies import check_held_out
from weighted_mtp.pipelines.training.reference import check_online, check_reference
from weighted_mtp.pipelines.training.stored_states import check_header
from weighted_mtp.runtime.modes import check_mode


@dataclass(frozen=True)
class Processes:
    """How many processes train, and how many of them run on one node (None: as torchrun says)."""

    count: int = 1
    per_node: int | None = None


@dataclass(frozen=True)
class Resolved:
    """What a recipe asks for, found and checked.

    Attributes:
        args: shape of the model.
        tokenizer: None only in a plan for a model that has none.
        source: the opened checkpoint of the weights; None for a fresh model, or a given shape.
        value_head: the file that the value head starts from; None for a fresh one, or for none.
    """

    args: ModelArgs
    objective: Objective
    tokenizer: Tokenizer | None
    source: Source | None = None
    value_head: Path | None = None


def settle(recipe: Recipe, planned: bool = False) -> Recipe:
    """Decide what a recipe leaves open: the objective's options, and the number format.

    Args:
        planned: for GPUs, not for this machine.

    Raises:
        UserError: as `resolve_objective`; or no such device.
    """
    recipe, runtime = resolve_objective(recipe), recipe.runtime
    if runtime.compute_dtype != "auto":
        return recipe
    if planned or runtime.fsdp.param_dtype == "bfloat16":
        chosen = "bfloat16"
    else:
        chosen = resolve_compute_dtype("auto", resolve_device(runtime.device))
    runtime = runtime.model_copy(update={"compute_dtype": chosen})
    return recipe.model_copy(update={"runtime": runtime})


def resolve(
    recipe: Recipe,
    processes: Processes,
    model: ModelArgs | Path | None = None,
    planned: bool = False,
) -> Resolved:
    """Find tokenizer, model and objective of a settled recipe and check that they go together.

    Args:
        model: in place of the recipe's own: a shape, or the directory of a checkpoint.
        planned: the recipe may lack what is made later: the tokenizer of a checkpoint that is there
            for its shape, and a machine that holds a fresh model.

    Raises:
        UserError: training with this recipe is not possible.
    """
    check_processes(recipe, processes)
    given = model if isinstance(model, ModelArgs) else None
    path = model if isinstance(model, Path) else recipe.model.path
    source = open_checkpoint(path) if path is not None and given is None else None
    args = given if source is None else source.args
    tokenizer = None
    if not planned or _has_tokenizer(recipe, given, source):
        tokenizer = build_tokenizer(recipe)
    if args is None and tokenizer is not None:
        args = model_args(recipe, tokenizer.vocab_size)
        device = None if planned else resolve_device(recipe.runtime.device)
        check_fresh(args, device, processes.count)
    assert args is not None  # a fresh model is always given a tokenizer
    if recipe.training.adapt == "lora" and source is None and given is None and not planned:
        raise UserError(
            "training.adapt lora adapts a model that is there; set model.path, or "
            "training.adapt=full"
        )
    if recipe.training.adapt == "lora" and recipe.model.add_heads is not None:
        raise UserError(
            "model.add_heads does not go with training.adapt lora, whose checkpoints name a base "
            "that has the heads; make one first: weighted-mtp convert MODEL START --add-heads "
            f"{recipe.model.add_heads}, and set model.path=START"
        )
    if tokenizer is not None:
        check_vocabulary(tokenizer, args.vocab_size, str(path or "the model"))
    if tokenizer is not None and recipe.data.template == CHAT:
        ChatTemplate(tokenizer)  # refuses a tokenizer that has none
    args = with_context_length(args, recipe.model)
    if model is None or planned:  # else it is this run's own checkpoint, which has them
        args = with_new_heads(args, recipe.model)
    check_length(recipe, args)
    objective = make_objective(recipe.objective, args.n_future_tokens, recipe.runtime.seed)
    if objective.learns_from_head_1 and recipe.training.adapt != "heads":
        raise UserError(
            f"objective {recipe.objective.name} teaches the other heads what head 1 predicts, "
            "which must not change meanwhile; set training.adapt=heads"
        )
    if objective.needs_order_head and recipe.training.adapt != "full":
        raise UserError(
            f"objective {recipe.objective.name} shapes the whole model through a second "
            "unembedding; set training.adapt=full"
        )
    head = None
    if objective.needs_value_head and given is None:
        head = stored_value_head(recipe, None if source is None else source.directory)
    return Resolved(args, objective, tokenizer, source, head)


def _has_tokenizer(recipe: Recipe, given: ModelArgs | None, source: Source | None) -> bool:
    if given is not None:
        return False
    named = recipe.tokenizer.kind != "auto" or recipe.tokenizer.path is not None
    return source is None or named or bool(find_tokenizer_files(source.directory))


def check_processes(recipe: Recipe, processes: Processes) -> None:
    """Raise `UserError` for settings that do not work with this number of processes."""
    check_mode(recipe.runtime, processes.count, processes.per_node)
    check_sharding(recipe, processes.count)


def check_inputs(recipe: Recipe, resolved: Resolved, planned: bool = False) -> None:
    """Check the data and the reference model, which a training opens anyway, without reading more
    than headers and the first row of a file.

    Args:
        planned: the reference losses and stored states may not exist yet.

    Raises:
        UserError: training with this recipe is not possible.
    """
    _check_data(recipe)
    if recipe.data.states is not None and not planned:
        check_header(recipe, resolved.args)
    rho1 = recipe.objective.rho1
    unnamed = rho1.reference is None and rho1.reference_model is None
    made_first = recipe.reference_stage is not None
    if resolved.objective.needs_reference and not made_first and not (planned and unnamed):
        check_reference(recipe)
        if resolved.tokenizer is not None:
            check_online(recipe, resolved.tokenizer)


def _check_data(recipe: Recipe) -> None:
    data, text = recipe.data, recipe.data.text
    held_out = data.source == "micro" or data.validation is not None
    if data.source == "jsonl":
        for path in (data.train, data.validation):
            if path is not None:
                first_row(path)
    if data.source == "text":
        held_out = text.validation_path is not None or text.validation_fraction > 0
        for source in (text.path, text.validation_path):
            if source is not None:
                Corpus(source, text.key, text.suffixes, text.separator).files()
    check_held_out(recipe.training, held_out)


def check_sharding(recipe: Recipe, world_size: int) -> None:
    """Raise `UserError` for what does not go with weights that are spread over processes."""
    runtime = recipe.runtime
    sharded = runtime.offloads or (runtime.parallel in ("fsdp", "hsdp") and world_size > 1)
    if sharded and recipe.training.optimizer == "muon":
        raise UserError(
            "training.optimizer muon needs whole matrices, which runtime.parallel "
            f"{recipe.runtime.parallel} leaves on no process; use adamw, or runtime.parallel=ddp"
        )
    if sharded and recipe.training.optimizer == "adamw_8bit":
        raise UserError(
            "training.optimizer adamw_8bit is not saved in parts, as runtime.parallel "
            f"{recipe.runtime.parallel} does; use adamw, or runtime.parallel=ddp"
        )
    if sharded and recipe.data.states is not None:
        raise UserError(
            "data.states trains heads on every process as a whole, which runtime.parallel "
            f"{runtime.parallel} spreads; set runtime.parallel=ddp, or data.states=null"
        )
    if runtime.fsdp.cpu_offload and not runtime.offloads:
        raise UserError(
            f"runtime.fsdp.cpu_offload is a setting of fsdp and hsdp, not of {runtime.parallel}; "
            "set runtime.parallel=fsdp, or set it to false"
        )


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
