"""Checkpoints of a model of which every process holds a part.

RUN/checkpoints/step-00000300/
    shards/                              weights and optimizer state, one file for each process
    skeleton/params.json, tokenizer/     what they are the weights of
    rng-0.pt …  trainer.json  COMPLETE   as in a whole one
    model/                               native layout; in the last checkpoint of a finished run

The files are written in the background, in the format of `torch.distributed.checkpoint`. Tensors
have the names of the adapter's parameters, so any number of processes, and any other mode, can take
them up: `weights.NAME`, `optimizer.NAME.KEY`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import is_sharded
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import open_checkpoint
from weighted_mtp.models.meta_mtp.frame import on_meta
from weighted_mtp.models.meta_mtp.layouts.adapted import is_adapted_folder, read_base, write_base
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
from weighted_mtp.models.meta_mtp.layouts.params import read_params, write_params
from weighted_mtp.models.meta_mtp.layouts.side_files import CONFIG_FIELDS, SideFiles
from weighted_mtp.models.meta_mtp.lora import ADAPTER, LoRA, add_adapters
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpoint_utils import (
    checkpoint_path,
    complete_checkpoint,
    damaged,
    partial_path,
    save_checkpoint,
    save_model,
    save_rng,
    save_tokenizer,
    start_checkpoint,
    unwritten,
    writing,
)
from weighted_mtp.pipelines.checkpointing.model_start import DeferredModel, stored_model, tie
from weighted_mtp.pipelines.checkpointing.remote_copies import Copies
from weighted_mtp.pipelines.checkpointing.sums import store_sums
from weighted_mtp.pipelines.training.optimization import Optimizer
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.main_process import on_main
from weighted_mtp.runtime.parts import is_part

log = get_logger(__name__)

HIDDEN = "weights.value_head.hidden.weight"


class WholeSaver:
    """Saves while the training waits: one process writes all.

    Args:
        weights: this process's part of each weight, by its name in the adapter.
        copies: says how many to keep, and is offered each that is complete.
    """

    def __init__(
        self,
        run_dir: Path,
        adapter: MetaLlamaMTPAdapter,
        weights: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        tokenizer: Tokenizer,
        copies: Copies,
    ) -> None:
        self.run_dir, self.adapter, self.weights = run_dir, adapter, weights
        self.optimizer, self.tokenizer, self.copies = optimizer, tokenizer, copies

    def save(self, step: int, keep_steps: Collection[int], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step`; every process calls this.

        Args:
            keep_steps: of the best checkpoints, which are kept.
            state: see `save_checkpoint`.

        Raises:
            UserError: it could not be written.
        """
        final = save_checkpoint(
            self.run_dir,
            step,
            self.adapter,
            self.optimizer,
            self.tokenizer,
            self.copies.keep_last,
            {*keep_steps, *self.copies.pinned},
            state,
        )
        self.copies.offer(final, keep_steps)
        return final

    def look(self) -> None:
        """Complete what is being written, if it is there by now. Here nothing is."""

    def settle(self) -> None:
        """Wait for what is being written. Here nothing is."""


class ShardedSaver(WholeSaver):
    """Saves in the background: every process writes its part. What was begun is complete after
    `settle`. Arguments as for `WholeSaver`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from weighted_mtp.runtime import shards

        self._writer = shards.Writer()
        self._begun: tuple[Future[Any], Path, Collection[int]] | None = None

    def save(self, step: int, keep_steps: Collection[int], state: Mapping[str, Any]) -> Path:
        """Begin the checkpoint of `step`, after the one before it; every process calls this."""
        self.settle()
        final = checkpoint_path(self.run_dir, step)
        partial = partial_path(final)

        def prepare() -> None:
            start_checkpoint(partial, step, state)
            (partial / "shards").mkdir()
            skeleton = partial / "skeleton"
            skeleton.mkdir()
            write_json(skeleton / "params.json", write_params(self.adapter.args))
            save_tokenizer(self.adapter, self.tokenizer, skeleton / "tokenizer")
            write_json(skeleton / CONFIG_FIELDS, dict(self.adapter.side_files.config_fields))
            if self.adapter.base is not None:
                write_base(self.adapter.base, self.adapter.args, skeleton)

        with writing(partial):
            on_main(prepare)
        save_rng(partial)
        tensors = {f"weights.{name}": weight.detach() for name, weight in self.weights.items()}
        tensors |= _optimizer_tensors(self.optimizer, self.weights)
        begun = self._writer.begin(tensors, partial / "shards")
        if distributed.is_main_process():
            begun = _then_summed(begun, partial)
        self._begun = begun, final, tuple(keep_steps)
        return final

    def look(self) -> None:
        """Complete what was begun, if it is written by now."""
        if self._begun is not None and self._begun[0].done():
            self._complete()

    def settle(self) -> None:
        """Wait until what was begun is complete; every process calls this.

        Raises:
            UserError: it could not be written.
        """
        self._complete()
        distributed.barrier()

    def _complete(self) -> None:
        if self._begun is None:
            return
        from torch.distributed.checkpoint.api import CheckpointException

        from weighted_mtp.runtime import shards

        (future, final, keep_steps), self._begun = self._begun, None
        try:
            future.result()
        except (Exception, CheckpointException) as error:  # whatever the other thread met
            if distributed.is_lost(error):
                raise
            raise unwritten(partial_path(final), shards.reason(error)) from error
        if distributed.is_main_process():
            kept = {*keep_steps, *self.copies.pinned}
            with writing(final):
                complete_checkpoint(final, self.copies.keep_last, kept)
            self.copies.offer(final, keep_steps)


def _then_summed(written: Future[Any], partial: Path) -> Future[Any]:
    """Done once the sums of what is being written are stored too; training does not wait."""

    def act() -> None:
        written.result()
        store_sums(partial)

    with_sums = ThreadPoolExecutor(1)
    try:
        return with_sums.submit(act)
    finally:
        with_sums.shutdown(wait=False)


def publish(checkpoint: Path, weights: Mapping[str, nn.Parameter], tokenizer: Tokenizer) -> None:
    """Give a sharded checkpoint its model in one piece, if it has none; every process calls this.
    The main process then has all of it in the host's memory.

    Args:
        weights: those that the checkpoint holds.
    """
    if not distributed.from_main(is_sharded(checkpoint) and not (checkpoint / "model").is_dir()):
        return
    values = {}
    for name, weight in weights.items():
        whole = weight.detach()
        if is_part(whole):
            whole = whole.full_tensor()
        if distributed.is_main_process():
            values[name] = whole.cpu()

    def write() -> None:
        model = sharded_model(checkpoint).adapter
        model.load_state_dict(values, strict=False, assign=True)
        tie(model.transformer)
        save_model(model, tokenizer, checkpoint / "model")

    with writing(checkpoint / "model"):
        on_main(write)


def sharded_model(checkpoint: Path, adapted: bool = True) -> DeferredModel:
    """The model of a sharded checkpoint, its value head with it.

    Args:
        adapted: with the adapters that the checkpoint holds. Else `freeze` adds them before the
            weights are read.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder, skeleton = checkpoint / "shards", checkpoint / "skeleton"
    shapes = stored_shapes(folder)
    base: DeferredModel | None = None
    if is_adapted_folder(skeleton):
        described, args, source = read_base(skeleton, open_checkpoint)
        base = stored_model(source, args)
        adapter = base.adapter
        adapter.base = described
        if adapted:
            _add_stored_adapters(adapter, described.lora, shapes)
    else:
        args = read_params(JsonFile.read(skeleton / "params.json"), 1)
        with on_meta():
            adapter = MetaLlamaMTPAdapter(Transformer(args))
    adapter.side_files = SideFiles.read(skeleton)
    if any(name.startswith("weights.value_head.") for name in shapes):
        with on_meta():
            adapter.attach_value_head(None, "mlp" if HIDDEN in shapes else "linear")
    if "weights.order_head.weight" in shapes:
        with on_meta():
            adapter.attach_order_head()

    def fill() -> None:
        if base is None:
            tie(adapter.transformer)
        else:
            base.fill()
        weights = {
            f"weights.{name}": weight.detach()
            for name, weight in adapter.named_parameters()
            if base is None or weight.requires_grad
        }
        load_shards(weights, folder)
        log.info("%s: loaded, %d weights in parts", checkpoint, len(weights))

    if base is not None:
        return DeferredModel(adapter, fill, base.formats)
    from weighted_mtp.runtime import shards

    prefix = "weights.transformer."
    formats = {
        name.removeprefix(prefix): dtype
        for name, dtype in shards.stored_formats(folder).items()
        if name.startswith(prefix)
    }
    return DeferredModel(adapter, fill, formats)


def _add_stored_adapters(
    adapter: MetaLlamaMTPAdapter, lora: LoRA, shapes: Mapping[str, torch.Size]
) -> None:
    """Add the adapters that are stored, and mark as trained what is stored beside them."""
    prefix, end = "weights.transformer.", f".lora_A.{ADAPTER}.weight"
    names = [name.removeprefix(prefix) for name in shapes if name.startswith(prefix)]
    modules = [name.removesuffix(end) for name in names if name.endswith(end)]
    add_adapters(adapter.transformer, lora, modules)
    for name, parameter in adapter.transformer.named_parameters():
        parameter.requires_grad_(name in names)


def optimizer_names(optimizer: Optimizer, weights: Mapping[str, nn.Parameter]) -> list[str]:
    """Of the optimizer's parameters, in the order in which its state dict numbers them."""
    name_of = {id(weight): name for name, weight in weights.items()}
    return [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(
    optimizer: Optimizer, weights: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    names = optimizer_names(optimizer, weights)
    return {
        f"optimizer.{names[index]}.{key}": value
        for index, kept in optimizer.state_dict()["state"].items()
        for key, value in kept.items()
    }


def stored_shapes(folder: Path) -> dict[str, torch.Size]:
    """What is stored, and how large it is, as `shards.stored_shapes` tells.

    Raises:
        UserError: the index cannot be read.
    """
    from weighted_mtp.runtime import shards

    try:
        return shards.stored_shapes(folder)
    except (OSError, ValueError) as error:
        raise damaged(folder / shards.INDEX, error) from error


def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read them, as `shards.load` does.

    Raises:
        UserError: they cannot be read.
    """
    from weighted_mtp.runtime import shards

    try:
        shards.load(tensors, folder)
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error
