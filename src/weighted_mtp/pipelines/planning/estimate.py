"""Estimate what a recipe costs before it runs, with the arithmetic of `memory`.

Letters: n future tokens (heads).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.device import resolve_device
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.models.meta_mtp.frame import on_meta
from weighted_mtp.models.meta_mtp.lora import adapted_modules, plain_name
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.planning.memory import Memory, block_bytes, peak_memory
from weighted_mtp.pipelines.planning.memory_inputs import (
    WIDE,
    Adapters,
    Counts,
    Documents,
    Mode,
    Setting,
)
from weighted_mtp.pipelines.resolve import Processes, check_inputs, resolve, settle
from weighted_mtp.pipelines.training.adapting import freeze, is_halved
from weighted_mtp.pipelines.training.muon import Scratch, scratch_of
from weighted_mtp.pipelines.training.objectives import Objective


@dataclass(frozen=True)
class Estimate:
    """Size of a run.

    Attributes:
        parameters: all of the model's, frozen ones too.
        tokens_per_step: upper bound, every row at its longest.
        memory: of one rank at the peak of a step, every row at its longest.
    """

    parameters: int
    tokens_per_step: int
    memory: Memory

    def lines(self) -> list[str]:
        """Format the estimate for a person."""
        memory = self.memory
        detail = ", ".join(f"{part} {_gib(size)}" for part, size in memory.parts.items() if size)
        return [
            f"parameters       {self.parameters:,}",
            f"tokens per step  at most {self.tokens_per_step:,}",
            f"memory per rank  about {_gib(memory.total)} ({detail}) at peak "
            f"({memory.moment}); one process, for more see weighted-mtp plan",
        ]


def estimate(recipe: Recipe) -> Estimate:
    """Estimate parameters, tokens and memory of a recipe on one process, after checking all that
    can be checked without loading weights or reading more than the first row of a file.

    Example:
        >>> estimate(load_recipe("baseline", "micro")).memory.total  # bytes

    Raises:
        UserError: what training with this recipe would refuse.
    """
    recipe = settle(recipe)
    device = resolve_device(recipe.runtime.device)
    processes = Processes(int(os.environ.get("WORLD_SIZE", "1")))
    resolved = resolve(recipe, processes)
    check_inputs(recipe, resolved)
    args, objective = resolved.args, resolved.objective
    formats = {} if resolved.source is None else resolved.source.dtypes
    counts = count(recipe, args, objective, formats)
    setting = setting_of(recipe, args, objective, gpu=device.type == "cuda")
    setting = replace(setting, reference=reference_numbers(recipe, objective))
    return Estimate(
        parameters=counts.parameters,
        tokens_per_step=recipe.training.batch_size * recipe.data.max_length,
        memory=peak_memory(counts, setting),
    )


def count(
    recipe: Recipe,
    args: ModelArgs,
    objective: Objective,
    formats: Mapping[str, torch.dtype] | None = None,
) -> Counts:
    """Count the parameters of a model of this shape under a recipe, on the meta device.

    Args:
        formats: in which its weights are stored, by name ({} for fresh ones); None if that is not
            known.

    Raises:
        UserError: the objective does not go with the model.
    """
    value = recipe.objective.value
    with on_meta():
        adapter = MetaLlamaMTPAdapter(Transformer(args))
    if objective.needs_value_head:
        adapter.attach_value_head(None, value.head_type)
    if objective.needs_order_head:
        with on_meta():
            adapter.attach_order_head()
    objective.prepare(adapter)
    freeze(adapter, recipe, objective)
    transformer = adapter.transformer
    heads = [transformer.layers[-1]]
    if objective.runs_heads and objective.heads > 1:
        heads += list(transformer.extra_heads)[: objective.heads - 1]
    trunk = list(transformer.layers[:-1])
    trained = _numbers(p for p in adapter.parameters() if p.requires_grad)
    once, scratch = 0, Scratch(0, 0)  # Muon keeps one state for what AdamW keeps two
    if recipe.training.optimizer == "muon":
        blocks = [*transformer.layers, *transformer.extra_heads]
        once = sum(_matrices(block, trained=True) for block in blocks)
        inner = [p for block in blocks for p in block.parameters() if p.requires_grad]
        scratch = scratch_of((p.shape[0], p.shape[1]) for p in inner if p.ndim > 1)
    copies = {"linear": 1, "mlp": 3}[value.head_type] if objective.needs_value_head else 0

    def stored(name: str) -> torch.dtype | None:
        return None if formats is None else formats.get(name, torch.float32)

    return Counts(
        args=args,
        parameters=_numbers(adapter.parameters()),
        trained=trained,
        states=2 * trained - once,
        block=_numbers(transformer.layers[0].parameters()),
        matrices=_matrices(transformer.layers[0]),
        run=len(trunk) + len(heads),
        trunk=sum(map(_learns, trunk)),
        heads=sum(map(_learns, heads)),
        predicting=len(heads) if objective.runs_heads else 0,
        value_copies=copies,
        halved=_numbers(
            p
            for name, p in transformer.named_parameters()
            if not p.requires_grad and is_halved(recipe, p, stored(plain_name(name)))
        ),
        trains_vocabulary=transformer.output.weight.requires_grad,
        adapters=_adapters(recipe, adapter, [*trunk, *heads], stored),
        state_bytes=_state_bytes(recipe, adapter.parameters()),
        **scratch._asdict(),
    )


def _adapters(
    recipe: Recipe,
    adapter: MetaLlamaMTPAdapter,
    blocks: Sequence[nn.Module],
    stored: Callable[[str], torch.dtype | None],
) -> Adapters | None:
    """What the adapters of the next-token head's block, and the trained weights beside them, take;
    None without any. That block has the adapters of the others, or (a critic's) more."""
    transformer = adapter.transformer
    if recipe.training.adapt != "lora":
        return None
    block = transformer.layers[-1]
    found = {name.rpartition(".")[2]: module for name, module in adapted_modules(block)}
    drops = recipe.training.drops
    learning = {id(p) for each in blocks if _learns(each) for p in _copied(each)}
    inner = {id(p) for each in transformer.layers for p in each.parameters()}
    inner |= {id(p) for each in transformer.extra_heads for p in each.parameters()}
    outside = [p for p in adapter.parameters() if id(p) not in inner]
    return Adapters(
        trained=_numbers(p for p in block.parameters() if p.requires_grad),
        columns=len(found) * recipe.training.lora.rank,
        dropped=sum(m.in_features for m in found.values()) if drops else 0,
        keeps_normed=0 if drops else sum(bool(names & found.keys()) for names in _READERS[:2]),
        keeps_product="w2" in found and not drops,
        float32=_numbers(
            p
            for name, p in transformer.named_parameters()
            if id(p) in learning
            if p.requires_grad or not is_halved(recipe, p, stored(plain_name(name)))
        ),
        root=_numbers(outside),
        trained_root=_numbers(p for p in outside if p.requires_grad),
    )


_READERS = ({"wq", "wk", "wv"}, {"w1", "w3"}, {"w2"})
"""Matrices that read the same input, which is computed again if none of them is adapted."""


def _copied(block: nn.Module) -> Iterator[nn.Parameter]:
    """The matrices of which autocast's copies stay until the backward pass."""
    adapted = {name.rpartition(".")[2] for name, _ in adapted_modules(block)}
    again = {name for names in _READERS if not names & adapted for name in names}
    for name, parameter in block.named_parameters():
        if parameter.ndim > 1 and plain_name(name).split(".")[-2] not in again:
            yield parameter


def _state_bytes(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> int | None:
    """Of two averages in 8 bits and a float32 scale for each 256 numbers; torchao keeps small and
    odd-sized weights' in float32."""
    if recipe.training.optimizer != "adamw_8bit":
        return None
    sizes = [p.numel() for p in parameters if p.requires_grad]
    return sum(
        2 * (n + WIDE * n // 256) if n >= 4096 and n % 256 == 0 else 2 * WIDE * n for n in sizes
    )


def setting_of(
    recipe: Recipe,
    args: ModelArgs,
    objective: Objective,
    gpus: int = 1,
    gpus_per_node: int = 8,
    gpu: bool = True,
) -> Setting:
    """Describe how a recipe runs on each of `gpus` ranks, every row at its longest. How packed rows
    split into documents is not known yet, so the most expensive way is assumed. A reference model
    is not counted.
    """
    data, training, runtime = recipe.data, recipe.training, recipe.runtime
    rows, length = training.micro_batch_size, data.max_length - 1  # the last token is a target
    if data.packing:
        length *= objective.group_size  # a pair stays in one row
        length += -length % data.pad_to_multiple
    mode: Mode = runtime.parallel if gpus > 1 or runtime.offloads else "none"
    fsdp = runtime.fsdp
    shards = {"fsdp": gpus, "hsdp": fsdp.shard_size or min(gpus, gpus_per_node)}.get(mode, 1)
    setting = Setting(
        rows=rows,
        length=length,
        half=runtime.compute_dtype != "float32",
        gpu=gpu,
        checkpointing=training.activation_checkpointing,
        accumulate=training.batch_size > rows * gpus,
        mode=mode,
        shards=shards,
        gather_half=fsdp.param_dtype == "bfloat16",
        reduce_half=fsdp.reduce_dtype == "bfloat16",
        reshard=fsdp.reshard_after_forward,
        reduce_each=fsdp.reduce_gradients == "micro_batch",
        offload=fsdp.cpu_offload and mode in ("fsdp", "hsdp") and gpu,
        chunk_rows=training.loss_chunk_rows,
        distils=objective.learns_from_head_1,
        compared=recipe.objective.distil.vocabulary if objective.learns_from_head_1 else None,
    )
    if not data.packing:
        return setting
    if not gpu:
        return replace(setting, documents=Documents(rows, length, runs=True))  # one a row at worst
    ways = (Documents(), Documents(2 * rows, length))  # `Packing.unpacks_cheaply`: at most twice
    packed = [replace(setting, documents=way) for way in ways]
    return max(packed, key=lambda way: block_bytes(args, way))


def reference_numbers(recipe: Recipe, objective: Objective) -> int:
    """Count the parameters of the reference model that scores online; 0 without one.

    Raises:
        UserError: it cannot be read.
    """
    model = recipe.objective.rho1.reference_model if objective.needs_reference else None
    return 0 if model is None else inspect_checkpoint(model).parameters


def numbers_of(args: ModelArgs) -> int:
    """Count the parameters of a model of this shape."""
    with on_meta():
        return _numbers(Transformer(args).parameters())


def _learns(block: nn.Module) -> bool:
    return any(p.requires_grad for p in block.parameters())


def _matrices(block: nn.Module, trained: bool = False) -> int:
    wanted = (p for p in block.parameters() if p.ndim > 1 and (p.requires_grad or not trained))
    return _numbers(wanted)


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
