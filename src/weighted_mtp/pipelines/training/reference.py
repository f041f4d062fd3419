"""Rho-1's reference model: scored once and stored, or run on every batch.

Letters: B batch, S sequence, h heads of the reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.device import DTYPES, resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_file
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch, Example
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import file_digest
from weighted_mtp.data.loading import Examples
from weighted_mtp.data.reference_losses import (
    Fingerprint,
    ReferenceLosses,
    default_path,
    stored_fingerprint,
    write_reference,
)
from weighted_mtp.data.rows.store import open_rows
from weighted_mtp.data.tokens.row_tokens import tokenise
from weighted_mtp.data.tokens.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from weighted_mtp.losses import LossTerms
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpointing.model_start import warn_past_positions
from weighted_mtp.pipelines.training.module import batch_loss, read_batch
from weighted_mtp.pipelines.training.objectives.base import targets_of
from weighted_mtp.runtime import distributed

log = get_logger(__name__)

Annotate = Callable[[Batch], Batch]
"""Adds to a batch what the objective needs and the rows did not bring."""


@dataclass(frozen=True)
class ReferenceRequest:
    """Which data to score with which model.

    Attributes:
        out: where to store the losses; None stores them beside the data.
        batch_size: rows scored at a time.
    """

    data: Path
    model: Path
    out: Path | None = None
    template: str = "alpaca"
    max_length: int = 2048
    joint: bool = False
    batch_size: int = 16
    device: str = "auto"
    compute_dtype: str = "float32"


def prepare_reference_losses(request: ReferenceRequest) -> Path:
    """Score a data set with any Llama in any layout; return where the losses are stored.

    Raises:
        UserError: the data or the model cannot be read, or do not fit each other.
    """
    model_dir, device = find_model(request.model), resolve_device(request.device)
    out = request.out or default_path(request.data)
    check_output_file(out, "--out")
    tokenizer = load_tokenizer(model_dir)
    transformer = load_frozen(model_dir, tokenizer, device, "--max-length", request.max_length)
    collator = AlpacaCollator(tokenizer, request.template, request.max_length, 8, request.joint)
    store = open_rows(request.data)
    examples = tokenise(store, np.arange(len(store)), collator)
    if tokenizer.vocab_size > transformer.args.vocab_size:
        examples.check_ids(transformer.args.vocab_size)
    losses: list[Tensor] = [torch.zeros(0, transformer.args.n_future_tokens)] * len(store)
    by_length = np.argsort(examples.lengths, kind="stable").tolist()
    with Progress(len(by_length), "row") as progress:
        for start in range(0, len(by_length), request.batch_size):
            part = [examples[row] for row in by_length[start : start + request.batch_size]]
            batch = collator(part).to(device)
            scored = token_losses(transformer, batch, DTYPES[request.compute_dtype]).cpu()
            for example, line in zip(part, scored, strict=True):
                losses[example.row] = line[example.prompt_length : len(example.ids)].clone()
            progress.update(len(part))
    made_of = fingerprint(collator, store.digest)
    write_reference(out, losses, replace(made_of, model=model_digest(model_dir)))
    return out


def fingerprint(collator: AlpacaCollator, data_digest: str) -> Fingerprint:
    """What losses of these rows depend on, but for the model."""
    return Fingerprint(
        data=data_digest,
        tokenizer=collator.tokenizer.fingerprint,
        template=collator.template_name,
        max_length=collator.max_length,
        joint=collator.joint,
    )


@torch.no_grad()
def token_losses(
    transformer: Transformer, batch: Batch, dtype: torch.dtype, heads: int | None = None
) -> Tensor:
    """Compute the cross-entropy `[B, S + 1, h]` of every response token under each head: head k
    predicts it from the tokens k or more positions before it. 0 elsewhere.

    Args:
        heads: h; None takes all that the model has.
    """
    device_type = batch.tokens.device.type
    h = heads or transformer.args.n_future_tokens
    with torch.autocast(device_type, dtype=dtype, enabled=dtype != torch.float32):
        states = read_batch(transformer, batch, all_heads=h > 1)[:h]
        targets = targets_of(batch, h)  # [B, S, h]
        terms = LossTerms(targets, torch.ones(h, device=batch.tokens.device))
        ce = batch_loss(batch, states, transformer.output.weight, terms).ce
    ce = ce.masked_fill(targets == IGNORE_INDEX, 0.0)
    S = batch.length
    losses = ce.new_zeros(len(ce), S + 1, h)  # moved from the predicting position to the token
    for k in range(1, min(h, S) + 1):
        losses[:, k:, k - 1] = ce[:, : S + 1 - k, k - 1]
    return losses


def check_reference(recipe: Recipe) -> None:
    """Raise `UserError` if a recipe that needs a reference names none, two, or a missing one."""
    rho1 = recipe.objective.rho1
    if (rho1.reference is None) == (rho1.reference_model is None):
        raise UserError(
            "rho1 needs one of objective.rho1.reference (stored losses, see weighted-mtp prepare "
            "reference-losses), objective.rho1.reference_model (a checkpoint that scores every "
            "batch) and reference_stage.steps (train the reference first)"
        )
    if rho1.reference is not None:
        stored_fingerprint(rho1.reference)
    if rho1.reference_model is not None:
        find_model(rho1.reference_model)


class StoredReference:
    """Rows with the losses stored for them, of the first `heads` heads."""

    def __init__(self, losses: ReferenceLosses, examples: Examples, heads: int) -> None:
        self.examples, self.losses, self.heads = examples, losses, heads

    def __getitem__(self, row: int) -> Example:
        example, losses = self.examples[row], self.losses[row]
        if len(losses) != len(example.ids) - example.prompt_length:
            raise UserError(f"{self.losses.path}: row {row} has another length; score again")
        losses = F.pad(losses[:, : self.heads], (0, 0, example.prompt_length, 0))
        return example._replace(reference=losses)


def with_reference(
    recipe: Recipe, collator: AlpacaCollator, examples: Examples, data_digest: str, heads: int
) -> Examples:
    """Give every row its stored losses; return the rows unchanged if a model scores online.

    Args:
        heads: of the policy.

    Raises:
        UserError: neither or both are named, or the stored losses are stale.
    """
    check_reference(recipe)
    path = recipe.objective.rho1.reference
    if path is None:
        return examples
    expected = fingerprint(collator, data_digest)
    losses = ReferenceLosses(path, expected)
    return StoredReference(losses, examples, compared_heads(recipe, losses.heads, heads))


def compared_heads(recipe: Recipe, available: int, heads: int) -> int:
    """How many of the reference's heads are compared with `heads` heads of the policy; warn where
    it has fewer than `reference_heads: same` asks for."""
    if recipe.objective.rho1.reference_heads == "next":
        return 1
    if available < heads and distributed.is_main_process():
        which = f"head {heads}" if available + 1 == heads else f"heads {available + 1} to {heads}"
        log.warning(
            "objective.rho1.reference_heads same: the reference has %d head%s, the policy %d; %s "
            "will be compared with the reference's next-token loss",
            available,
            "" if available == 1 else "s",
            heads,
            which,
        )
    return min(available, heads)


def check_online(recipe: Recipe, tokenizer: Tokenizer) -> Path | None:
    """The directory of `objective.rho1.reference_model`, looked at before its weights are read;
    None if losses are stored.

    Raises:
        UserError: it has another tokenizer, or fewer positions than the longest row.
    """
    path = recipe.objective.rho1.reference_model
    if path is None:
        return None
    model_dir = find_model(path)
    other = load_tokenizer(model_dir)
    if other.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{model_dir}: the reference has another tokenizer ({other.fingerprint}) than the "
            f"model ({tokenizer.fingerprint}); token losses cannot be compared"
        )
    args = inspect_checkpoint(model_dir).args
    _check_positions(model_dir, args, "data.max_length", recipe.data.max_length)
    return model_dir


def online_reference(
    recipe: Recipe, tokenizer: Tokenizer, device: torch.device, heads: int
) -> Callable[[Batch], Batch] | None:
    """Scores every batch with `objective.rho1.reference_model`; None if losses are stored.

    Args:
        heads: of the policy.

    Raises:
        UserError: as for `check_online`.
    """
    model_dir = check_online(recipe, tokenizer)
    if model_dir is None:
        return None
    longest = recipe.data.max_length
    transformer = load_frozen(model_dir, tokenizer, device, "data.max_length", longest)
    transformer.requires_grad_(False)
    dtype = DTYPES[recipe.runtime.compute_dtype]
    compared = compared_heads(recipe, transformer.args.n_future_tokens, heads)

    def annotate(batch: Batch) -> Batch:
        return batch._replace(reference=token_losses(transformer, batch, dtype, compared))

    return annotate


def reference_digest(recipe: Recipe) -> str:
    """SHA-256 of the reference's weights, those that its stored losses were made with."""
    rho1 = recipe.objective.rho1
    if rho1.reference is not None:
        return stored_fingerprint(rho1.reference).model
    if rho1.reference_model is None:
        raise ValueError("the recipe names no reference")
    return model_digest(find_model(rho1.reference_model))


def model_digest(model_dir: Path) -> str:
    """SHA-256 over the weight files of a checkpoint."""
    digests = [file_digest(path) for path in sorted(inspect_checkpoint(model_dir).files)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def load_frozen(
    model_dir: Path, tokenizer: Tokenizer, device: torch.device, setting: str, longest: int
) -> Transformer:
    """A model that only reads, checked against its tokenizer and the longest row.

    Args:
        setting: allows rows of the length `longest`.
    """
    adapter = MetaLlamaMTPAdapter.from_pretrained(
        model_dir, device=device, dtype=torch.float32, initialize_value_head=False
    )
    check_vocabulary(tokenizer, adapter.args.vocab_size, str(model_dir))
    _check_positions(model_dir, adapter.args, setting, longest)
    return adapter.transformer


def _check_positions(model_dir: Path, args: ModelArgs, setting: str, longest: int) -> None:
    positions = args.max_positions
    if longest > positions:
        raise UserError(f"{setting} {longest} exceeds the {positions} positions of {model_dir}")
    warn_past_positions(longest, args, f"{setting} {longest} of the reference {model_dir}")
