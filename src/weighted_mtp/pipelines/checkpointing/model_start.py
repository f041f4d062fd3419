"""A model that has no memory yet, and where its weights will come from.

It is built on the meta device, sharded over the processes, and then filled one weight at a time: a
process never holds more than its own part of the model and one weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger, warn_once
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.add_heads import places_of, with_heads
from weighted_mtp.models.meta_mtp.args import ModelArgs, RopeFrequencies
from weighted_mtp.models.meta_mtp.frame import on_meta
from weighted_mtp.models.meta_mtp.layouts.peft_files import Base
from weighted_mtp.models.meta_mtp.layouts.side_files import SideFiles
from weighted_mtp.models.meta_mtp.layouts.skeleton import check_positions, machine_memory
from weighted_mtp.models.meta_mtp.layouts.source import Source, Stored
from weighted_mtp.models.meta_mtp.lora import init_adapters, plain_name
from weighted_mtp.models.meta_mtp.order_head import read_order_head
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.models.meta_mtp.value_head import HeadType, ValueHead
from weighted_mtp.runtime.parallel import Fill
from weighted_mtp.runtime.parts import WholeDraws, copy_whole

if TYPE_CHECKING:  # decoding needs no recipe, and pydantic takes a moment
    from weighted_mtp.core.config.sections import ModelConfig

log = get_logger(__name__)

_LARGEST = 2**50  # bytes; bounds the weights of a model that is only planned
CPU = torch.device("cpu")


@dataclass(frozen=True)
class DeferredModel:
    """A model whose weights are not in memory yet.

    Attributes:
        adapter: on the meta device.
        fill: sets the weights once memory is allocated, in float32: updates of 1e-5 vanish in bf16
            weights.
        formats: in which the weights are stored, by name; {} for fresh ones.
    """

    adapter: MetaLlamaMTPAdapter
    fill: Fill
    formats: Mapping[str, torch.dtype] = field(default_factory=dict)

    def on(self, device: torch.device) -> MetaLlamaMTPAdapter:
        """Put the whole model on one device."""
        self.adapter.to_empty(device=device)
        self.fill()
        return self.adapter


def fresh_model(args: ModelArgs, std: float) -> DeferredModel:
    """Start from random weights; a seed gives the same ones on any number of processes."""
    with on_meta():
        transformer = Transformer(args)

    def fill() -> None:
        with WholeDraws():
            transformer.init_weights(std)

    return DeferredModel(MetaLlamaMTPAdapter(transformer), fill)


def check_fresh(args: ModelArgs, device: torch.device | None = None, processes: int = 1) -> None:
    """Refuse a fresh model that is too large, by arithmetic, before anything is built.

    Args:
        device: of its float32 weights; None if only a plan is made.
        processes: over which they may be sharded.

    Raises:
        UserError: the weights alone exceed the available memory.
    """
    check_positions(args, "model.architecture")
    kv_dim, D = args.kv_heads * args.head_dim, args.dim
    block = 2 * D * D + 2 * D * kv_dim + 3 * D * args.ffn_dim + 2 * D
    vocabulary = args.vocab_size * D * (1 if args.tie_embeddings else 2)
    numbers = args.n_layers * block + vocabulary + D
    if device is None:
        memory, what = _LARGEST, "than can be planned for"
    elif device.type == "cuda":
        memory = processes * torch.cuda.get_device_properties(device).total_memory
        what = "than the GPUs have"
    else:
        memory, what = machine_memory(), "than this machine has"
    if 4 * numbers > memory:
        raise UserError(
            f"model.architecture: {numbers:.3g} parameters need {4 * numbers / 2**30:,.0f} GiB for "
            f"the weights alone, more {what} ({memory / 2**30:,.0f} GiB); make n_layers, dim or "
            "the feed-forward width smaller"
        )


def stored_model(source: Source, args: ModelArgs) -> DeferredModel:
    """Start from the weights of an opened checkpoint, without its value head.

    Args:
        args: its shape, possibly with more positions, or more heads (`with_new_heads`).
    """
    directory = source.directory
    with on_meta():
        transformer = Transformer(args)
    transformer.draft_ids = source.drafts

    def fill() -> None:
        tie(transformer)
        weights = {plain_name(name): w for name, w in transformer.named_parameters()}
        had = source.args.n_future_tokens
        for name, weight in source.read(CPU, torch.float32):
            for place in places_of(name, args, had):
                copy_whole(weight, weights[place])
        log.info("%s: loaded, %s layout, %d files", directory, source.layout, len(source.files))

    adapter = MetaLlamaMTPAdapter(transformer)
    adapter.side_files = SideFiles.read(directory)
    return DeferredModel(adapter, fill, source.dtypes)


def adapted_model(
    start: DeferredModel, base: Base, trained: Mapping[str, Stored] | None
) -> DeferredModel:
    """Start with the adapters that the transformer will have been given by then.

    Args:
        start: the base.
        trained: what a checkpoint holds of this run; None for fresh adapters.
    """
    transformer = start.adapter.transformer
    start.adapter.base = base

    def fill() -> None:
        start.fill()
        with WholeDraws():
            init_adapters(transformer)
        for name, weight in transformer.named_parameters():
            if trained is not None and weight.requires_grad:
                copy_whole(trained[plain_name(name)].read(torch.float32, CPU), weight)

    return DeferredModel(start.adapter, fill, start.formats)


def with_context_length(args: ModelArgs, config: ModelConfig) -> ModelArgs:
    """Return a checkpoint's shape with the context length and rotary base that a recipe sets.

    Raises:
        UserError: its rotary frequencies were computed for its own positions.
    """
    scaling = args.rope_scaling
    if isinstance(scaling, RopeFrequencies):
        kind = scaling.described.get("rope_type")
        if config.rope_theta not in (None, args.rope_theta):
            raise UserError(
                f"model.rope_theta cannot change a model whose rotary scaling is {kind}: its "
                "frequencies are stored; change config.json of the original model, or leave it out"
            )
        if kind == "dynamic" and (config.max_seq_len or 0) > args.max_seq_len:
            raise UserError(
                "model.max_seq_len cannot extend a model whose rotary scaling is dynamic; it has "
                f"{args.max_seq_len} positions"
            )
    return replace(
        args,
        max_seq_len=config.max_seq_len or args.max_seq_len,
        rope_theta=config.rope_theta or args.rope_theta,
    )


def with_new_heads(args: ModelArgs, config: ModelConfig) -> ModelArgs:
    """Return a checkpoint's shape with the heads that a recipe adds.

    Raises:
        UserError: it has more than the next-token head.
    """
    if config.add_heads is None:
        return args
    if args.n_future_tokens > 1:
        raise UserError(
            f"model.add_heads: {config.path} has {args.n_future_tokens} heads already; leave it "
            "out (--set model.add_heads=null) to train those"
        )
    return with_heads(args, 1 + config.add_heads)


def warn_past_positions(longest: int, args: ModelArgs, where: str) -> None:
    """Warn, once, that rows may be longer than the context the model was trained for.

    Args:
        longest: tokens of the longest possible row.
        where: what allows it: a setting, or the model and its prompts.
    """
    if longest > args.max_seq_len:
        warn_once(
            log,
            f"{where} goes past the {args.max_seq_len} positions that the model is made for "
            "(max_seq_len, in config.json max_position_embeddings): what it reads and writes there "
            "may be poor",
        )


def with_value_head(
    start: DeferredModel, stored: Path | None, head_type: HeadType
) -> DeferredModel:
    """Attach the value head of a file, or a fresh one.

    Raises:
        UserError: the file is not a value head, or belongs to a model of another width.
    """
    adapter = start.adapter
    head = None if stored is None else ValueHead.load_checkpoint(stored)
    values = None if head is None else {k: v.clone() for k, v in head.state_dict().items()}
    try:
        with on_meta():
            attached = adapter.attach_value_head(head, head_type)
    except ValueError as error:
        raise UserError(f"{stored}: {error}; it belongs to another model") from error

    def fill() -> None:
        start.fill()
        if values is None:
            copy_values(ValueHead(attached.hidden_size, head_type).state_dict(), attached)
        else:
            copy_values(values, attached)

    return DeferredModel(adapter, fill, start.formats)


def with_order_head(start: DeferredModel, stored: Path | None, std: float) -> DeferredModel:
    """Attach a second unembedding.

    Args:
        stored: the file with its weights; it is fresh if there is no such file.
        std: standard deviation of fresh weights.

    Raises:
        UserError: the file is damaged, or belongs to a model of another shape.
    """
    with on_meta():
        attached = start.adapter.attach_order_head(std)
    shape = attached.weight.shape
    values = None
    if stored is not None and stored.is_file():
        values = read_order_head(stored, shape)

    def fill() -> None:
        start.fill()
        if values is None:
            with WholeDraws():
                attached.init_weights()
        else:
            copy_values({"weight": values}, attached)

    return DeferredModel(start.adapter, fill, start.formats)


def copy_values(values: Mapping[str, Tensor], module: nn.Module) -> None:
    """Copy whole tensors into a module that may be sharded."""
    for name, weight in module.named_parameters():
        copy_whole(values[name], weight)


def tie(transformer: Transformer) -> None:
    """Tie the embeddings again, which `to_empty` untied."""
    if transformer.args.tie_embeddings:
        transformer.output.weight = transformer.tok_embeddings.weight
