"""What a recipe amounts to before a weight is read, and every check that needs no more than headers
and first rows: `train --dry-run` and `plan` refuse what `train` refuses."""

from __future__ import annotations

from dataclasses import dataclass

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.device import resolve_device
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.data.collators import CHAT
from weighted_mtp.data.datasets import first_row
from weighted_mtp.data.tokens.chat import ChatTemplate
from weighted_mtp.data.tokens.corpus import Corpus
from weighted_mtp.data.tokens.tokenizers import check_vocabulary
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import find_tokenizer_files, inspect_checkpoint
from weighted_mtp.pipelines.checkpointing.model_start import check_fresh, stretched
from weighted_mtp.pipelines.compose import (
    build_tokenizer,
    check_length,
    check_sharding,
    model_args,
    stored_value_head,
)
from weighted_mtp.pipelines.training.best import check_held_out
from weighted_mtp.pipelines.training.objectives import Objective, make_objective
from weighted_mtp.pipelines.training.reference import check_online, check_reference
from weighted_mtp.runtime.modes import check_mode


@dataclass(frozen=True)
class Processes:
    """How many processes train, and how many of them run on one node (None: as torchrun says)."""

    count: int = 1
    per_node: int | None = None


def resolve(
    recipe: Recipe, processes: Processes, shape: ModelArgs | None = None, planned: bool = False
) -> tuple[ModelArgs, Objective]:
    """Shape and objective of the model a recipe trains, once all is checked that can be.

    Args:
        shape: of a model that does not exist, in place of the recipe's own.
        planned: the recipe may lack what is made later: stored reference losses, and the tokenizer
            of a checkpoint that is there for its shape.

    Raises:
        UserError: what training with this recipe would refuse.
    """
    check_mode(recipe.runtime, processes.count, processes.per_node)
    check_sharding(recipe, processes.count)
    _check_data(recipe)
    path, tokenizer = recipe.model.path, None
    if shape is not None:
        args = shape
    elif path is None:
        tokenizer = build_tokenizer(recipe)
        args = model_args(recipe, tokenizer.vocab_size)
        device = None if planned else resolve_device(recipe.runtime.device)
        check_fresh(args, device, processes.count)
    else:
        model_dir = find_model(path)
        args = inspect_checkpoint(model_dir).args
        named = recipe.tokenizer.kind != "auto" or recipe.tokenizer.path is not None
        if named or not planned or find_tokenizer_files(model_dir):
            tokenizer = build_tokenizer(recipe)
            check_vocabulary(tokenizer, args.vocab_size, str(path))
    if tokenizer is not None and recipe.data.template == CHAT:
        ChatTemplate(tokenizer)
    args = stretched(args, recipe.model)
    check_length(recipe, args)
    objective = make_objective(recipe.objective, args.n_future_tokens)
    rho1 = recipe.objective.rho1
    unnamed = rho1.reference is None and rho1.reference_model is None
    if objective.needs_reference and not (planned and unnamed):
        check_reference(recipe)
        if tokenizer is not None:
            check_online(recipe, tokenizer)
    if objective.needs_value_head and shape is None:
        stored_value_head(recipe, None if path is None else find_model(path))
    return args, objective


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
