"""More prediction heads for a model that has few or, as any released Llama, the first one only."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.transformer import Transformer


def add_heads(model: Transformer, n_future_tokens: int) -> Transformer:
    """The model with `n_future_tokens` heads; what it had is shared with it, not copied.

    Every head that is new begins as a copy of the last block of `layers`, the next-token head: it
    reads the same trunk state, and what it predicts at first is the next token. `forward` without
    `return_all_heads` gives what it gave before. Parameter names are Meta's, as always. To train
    the new heads alone, switch off `requires_grad` of the others.

    Args:
        model: with fewer heads; it stays usable, and training either one trains what they share.
        n_future_tokens: heads n of the result.

    Raises:
        ValueError: the model has as many heads already.
    """
    args, have = model.args, model.args.n_future_tokens
    if n_future_tokens <= have:
        raise ValueError(
            f"the model has {have} head(s) already; ask for more than that, not {n_future_tokens}"
        )
    new = n_future_tokens - have
    with torch.device("meta"):  # a frame: all that holds numbers is put in below
        wide = Transformer(with_heads(args, n_future_tokens))
    wide.tok_embeddings, wide.layers = model.tok_embeddings, model.layers
    copies = [copy.deepcopy(model.layers[-1]) for _ in range(new)]
    wide.extra_heads = nn.ModuleList([*model.extra_heads, *copies])
    wide.norm, wide.output, wide.freqs_cis = model.norm, model.output, model.freqs_cis
    wide.draft_ids = model.draft_ids
    return wide.train(model.training)


def with_heads(args: ModelArgs, n_future_tokens: int) -> ModelArgs:
    """The shape of a model that `add_heads` returns."""
    new = n_future_tokens - args.n_future_tokens
    return replace(args, n_layers=args.n_layers + new, n_future_tokens=n_future_tokens)


def places_of(name: str, args: ModelArgs, had: int) -> Iterator[str]:
    """Yield the weights that begin as a stored one: itself, and its copies in new heads.

    Args:
        name: of the stored weight.
        args: shape of the model with the new heads.
        had: heads of the model that is stored.
    """
    yield name
    last = f"layers.{args.n_layers - args.n_future_tokens}."  # the next-token head
    if name.startswith(last):
        for head in range(had - 1, args.n_future_tokens - 1):
            yield f"extra_heads.{head}.{name.removeprefix(last)}"
