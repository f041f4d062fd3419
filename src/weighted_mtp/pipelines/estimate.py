"""What a recipe will cost, before it runs.

Letters: B batch, S sequence, n future tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weighted_mtp.core.config import Recipe
from weighted_mtp.core.device import resolve_device
from weighted_mtp.data.corpus import Corpus
from weighted_mtp.data.datasets import first_row
from weighted_mtp.data.tokenizers import check_vocabulary
from weighted_mtp.losses.linear_cross_entropy import CHUNK_BYTES
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.models.meta_mtp.transformer import ModelArgs, Transformer
from weighted_mtp.pipelines.compose import (
    build_tokenizer,
    check_length,
    model_args,
    stored_value_head,
)
from weighted_mtp.pipelines.objectives import make_objective
from weighted_mtp.pipelines.reference import check_reference


@dataclass(frozen=True)
class Estimate:
    """Size of a run.

    Attributes:
        parameters: all of the model's numbers; what is frozen has no gradient.
        tokens_per_step: upper bound, every row at its longest.
        weights, gradients, optimizer, activations, loss: bytes on one rank.
    """

    parameters: int
    tokens_per_step: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss

    def lines(self) -> list[str]:
        """The estimate for a person."""
        parts = ("weights", "gradients", "optimizer", "activations", "loss")
        detail = ", ".join(f"{part} {_gib(getattr(self, part))}" for part in parts)
        return [
            f"parameters       {self.parameters:,}",
            f"tokens per step  at most {self.tokens_per_step:,}",
            f"memory per rank  about {_gib(self.total)} ({detail})",
        ]


def estimate(recipe: Recipe) -> Estimate:
    """Parameters, tokens and memory of a recipe, after checking all that can be checked without
    loading weights or reading more than the first row of a file.

    Raises:
        UserError: what training with this recipe would refuse.
    """
    resolve_device(recipe.runtime.device)
    for path in (recipe.data.train, recipe.data.validation):
        if recipe.data.source == "jsonl" and path is not None:
            first_row(path)
    if recipe.data.source == "text":
        text = recipe.data.text
        for source in (text.path, text.validation_path):
            if source is not None:
                Corpus(source, text.key, text.suffixes, text.separator).files()
    tokenizer = build_tokenizer(recipe)
    if recipe.model.path is not None:
        args = inspect_checkpoint(recipe.model.path).args
        check_vocabulary(tokenizer, args.vocab_size, str(recipe.model.path))
    else:
        args = model_args(recipe, tokenizer.vocab_size)
    check_length(recipe, args)
    objective = make_objective(recipe.objective, args.n_future_tokens)
    with torch.device("meta"):
        adapter = MetaLlamaMTPAdapter(Transformer(args))
    if objective.needs_reference:
        check_reference(recipe)
    if objective.needs_value_head:
        stored_value_head(recipe, recipe.model.path)
        adapter.attach_value_head(None, recipe.objective.value.head_type)
    objective.prepare(adapter)
    heads = objective.heads
    parameters = sum(p.numel() for p in adapter.parameters())
    trained = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    tokens = recipe.training.micro_batch_size * recipe.data.max_length
    if recipe.data.packing:
        tokens *= objective.group_size  # a pair stays in one row
    size = 2 if recipe.runtime.compute_dtype == "bfloat16" else 4
    return Estimate(
        parameters=parameters,
        tokens_per_step=recipe.training.batch_size * recipe.data.max_length,
        weights=4 * parameters,
        gradients=4 * trained,
        optimizer=8 * trained,
        activations=tokens * _activation_bytes(args, heads, size),
        loss=_loss_bytes(args, tokens * heads, size),
    )


def _activation_bytes(args: ModelArgs, heads: int, size: int) -> int:
    """Bytes kept for the backward pass, per token. A block keeps two residual inputs (float32) and,
    in the compute dtype, two normed inputs, q, k, v, the attention's output, and gate, up and
    product of the feed-forward."""
    kv = 2 * args.kv_heads * args.head_dim
    block = 2 * 4 * args.dim + size * (4 * args.dim + kv + 3 * args.ffn_dim)
    blocks = args.n_layers - args.n_future_tokens + heads
    return blocks * block


def _loss_bytes(args: ModelArgs, rows: int, size: int) -> int:
    """A chunk of logits, the unembedding's gradient, the stacked states and their gradient."""
    chunk = min(CHUNK_BYTES, rows * args.vocab_size * size)
    return chunk + 4 * args.vocab_size * args.dim + 2 * size * rows * args.dim


def _gib(amount: int) -> str:
    return f"{amount / 2**30:.2f} GiB"
