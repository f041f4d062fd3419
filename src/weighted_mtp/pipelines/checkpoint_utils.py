"""Checkpoints of a run: everything the next step depends on, marked complete last.

RUN/config.yaml                          the resolved recipe
RUN/metrics.jsonl
RUN/checkpoints/step-00000300/
    model/                               native layout, tokenizer included
    optimizer.pt  rng-0.pt …             (one generator state for each rank)
    trainer.json                         step, world size, state of objective and trainer
    sums.json                            SHA-256 of these files, and of the model's metadata.json
    COMPLETE                             written last; without it the directory is not a checkpoint

Where every process holds a part of the model (fsdp), `sharded_checkpoints` has `shards/` and
`skeleton/` instead of `optimizer.pt` and `model/`; the last checkpoint of a run has both.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import check_regular, read_json, shown_value
from weighted_mtp.core.model_folder import MARKER, complete_checkpoints
from weighted_mtp.core.sums import SUMS, verifying
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import save_adapted, save_huggingface, save_native
from weighted_mtp.models.meta_mtp.layouts.huggingface import VALUE_HEAD_FILE
from weighted_mtp.models.meta_mtp.layouts.json_file import write_json
from weighted_mtp.models.meta_mtp.layouts.peft_files import Trained
from weighted_mtp.models.meta_mtp.layouts.side_files import CONFIG_FIELDS
from weighted_mtp.models.meta_mtp.order_head import ORDER_HEAD_FILE
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpointing.hub_files import hf_side_files
from weighted_mtp.pipelines.checkpointing.sums import checkpoint_sums, store_sums
from weighted_mtp.pipelines.training.optimization import Optimizer, Optimizers
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.environment import rng_state, set_rng_state
from weighted_mtp.runtime.main_process import on_main
from weighted_mtp.runtime.parts import is_part

_LARGEST_BATCH = 2**24
Layout = Literal["native", "hf"]


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` lives."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def is_trained(run_dir: Path, steps: int) -> bool:
    """Whether the run's newest whole checkpoint is the one after its last step, its model in one
    piece."""
    last = checkpoint_path(run_dir, steps)
    return complete_checkpoints(run_dir)[-1:] == [last] and (last / "model").is_dir()


def save_checkpoint(
    run_dir: Path,
    step: int,
    adapter: MetaLlamaMTPAdapter,
    optimizer: Optimizer,
    tokenizer: Tokenizer,
    keep_last: int,
    keep_steps: Collection[int] = (),
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of `step` (all ranks call this) and drop all but the newest few and
    those of `keep_steps`. `state` is what else the next step depends on, as JSON.

    It is built under another name and renamed once whole: a kill at any moment leaves either the
    old set of checkpoints or the new one.
    """
    final = checkpoint_path(run_dir, step)
    partial = partial_path(final)

    def write() -> None:
        start_checkpoint(partial, step, state or {})
        save_model(adapter, tokenizer, partial / "model")
        save_torch(optimizer.state_dict(), partial / "optimizer.pt")

    with writing(partial):
        on_main(write)
    save_rng(partial)
    with writing(partial):
        on_main(lambda: complete_checkpoint(final, keep_last, keep_steps))
    return final


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what to do where a file cannot be written.

    Raises:
        UserError: one could not.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise unwritten(path, str(error)) from error


def save_torch(state: object, path: Path) -> None:
    """`torch.save`, whose zip writer reports a full disk as one of several RuntimeErrors.

    Raises:
        OSError: it cannot be written.
    """
    try:
        torch.save(state, path)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise OSError(f"{path.name} is incomplete; is the disk full?") from error


def unwritten(path: Path, reason: str) -> UserError:
    """What to say of a checkpoint that cannot be written."""
    return UserError(
        f"{path}: cannot be written ({one_line(reason, 200)}); earlier checkpoints are "
        "untouched: make room, then --resume"
    )


def save_rng(partial: Path) -> None:
    """Write this rank's generator states. Every process calls this; all wait for all.

    Raises:
        UserError: on all of them, if one could not.
    """
    failure: UserError | None = None
    try:
        with writing(partial):
            save_torch(rng_state(), partial / f"rng-{distributed.rank()}.pt")
    except UserError as error:
        failure = error
    if distributed.any_rank(failure is not None, torch.device("cpu")):
        raise failure or unwritten(partial, "by another process")


def partial_path(final: Path) -> Path:
    """The name under which a checkpoint is built."""
    return final.with_name(final.name + ".partial")


def start_checkpoint(partial: Path, step: int, state: Mapping[str, Any]) -> None:
    """Make the directory, and in it `trainer.json`. One is written at a time: what else is partial
    was left by a run that was killed, and goes."""
    run_dir = partial.parents[1]
    if not run_dir.is_dir():
        raise UserError(
            f"{run_dir}: was deleted or moved while the run wrote to it; step {step} is not saved"
        )
    for left in {partial, *partial.parent.glob("step-*.partial")}:
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    trainer = {"step": step, "world_size": distributed.world_size(), "sums": SUMS, **state}
    (partial / "trainer.json").write_text(json.dumps(trainer) + "\n")


def complete_checkpoint(final: Path, keep_last: int, keep_steps: Collection[int]) -> None:
    """All of it is written: complete it, and drop the ones it replaces."""
    if not (partial_path(final) / SUMS).exists():
        store_sums(partial_path(final))
    give_name(final)
    drop_old(final.parents[1], keep_last, keep_steps)


def give_name(final: Path) -> None:
    """All of a checkpoint is in its partial place: give it its marker, then its name."""
    partial = partial_path(final)
    (partial / MARKER).touch()
    _remove(final)
    partial.replace(final)


def drop_old(run_dir: Path, keep_last: int, keep_steps: Collection[int]) -> None:
    """Delete all complete checkpoints but the newest few and those of `keep_steps`."""
    kept = {checkpoint_path(run_dir, step) for step in keep_steps}
    for old in complete_checkpoints(run_dir)[:-keep_last]:
        if old not in kept:
            _remove(old)


def _remove(checkpoint: Path) -> None:
    """Its marker first: a half-deleted directory is not a checkpoint."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def save_tokenizer(adapter: MetaLlamaMTPAdapter, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write the tokenizer's files, those of the model's own folder unchanged, and the generation
    settings that came with the model."""
    folder.mkdir(parents=True)
    if tokenizer is not None and not adapter.side_files.has_tokenizer:
        tokenizer.save(folder)
    adapter.side_files.write(folder)


def save_model(
    adapter: MetaLlamaMTPAdapter,
    tokenizer: Tokenizer | None,
    directory: Path,
    layout: Layout = "native",
    overwrite: bool = False,
) -> None:
    """Write the weights, with tokenizer, value head and generation settings. Where the transformer
    has adapters, the native layout is that of `layouts.adapted`.

    Raises:
        UserError: `directory` exists (or, with `overwrite`, is not a checkpoint).
    """
    if layout not in get_args(Layout):
        raise UserError(f"layout {layout!r} is not one of {', '.join(get_args(Layout))}")
    model, fields = adapter.transformer, adapter.side_files.config_fields
    with tempfile.TemporaryDirectory() as name:
        folder, head = Path(name) / "tokenizer", None
        save_tokenizer(adapter, tokenizer, folder)
        files = sorted(folder.iterdir())
        if adapter.value_head is not None:
            head = Path(name) / VALUE_HEAD_FILE
            adapter.value_head.save_checkpoint(head)
        if layout == "hf":
            write_json(Path(name) / CONFIG_FIELDS, dict(fields))
            derived = Path(name) / "derived"
            derived.mkdir()
            files, fields = hf_side_files(Path(name), model.args.vocab_size, derived)
        write: Callable[..., None] = save_native if layout == "native" else save_huggingface
        what: Transformer | Trained = model
        if adapter.base is not None and layout == "native":
            what, write = Trained.of(model, model.args, adapter.base), save_adapted
        more: dict[str, Path] = {}
        if adapter.order_head is not None and write is save_native:  # exports leave it out
            more["order_head_file"] = Path(name) / ORDER_HEAD_FILE
            adapter.order_head.save_checkpoint(more["order_head_file"])
        write(
            what,
            directory,
            tokenizer_files=files,
            overwrite=overwrite,
            value_head_file=head,
            config_fields=fields,
            **more,
        )


def restore_optimizer(path: Path, optimizer: Optimizer, state: Any) -> None:
    """Take up a saved optimizer state, with the rates and other settings of the recipe, which --set
    may have changed.

    Args:
        path: where it was saved.

    Raises:
        UserError: it was made for another model.
    """
    asked = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
        for group, settings in zip(optimizer.param_groups, asked, strict=True):
            group.update(settings)
        _check_state(optimizer)
    except Exception as error:  # the state may be of any shape and kind
        reason = one_line(f"{type(error).__name__}: {error}", 160)
        raise UserError(f"{path}: damaged, or made for another model ({reason})") from error


def _check_state(optimizer: Optimizer) -> None:
    """Refuse a state with which a step would fail, or go wrong in silence.

    Raises:
        ValueError: a tensor is not like its weight, not finite, or missing.
    """
    parts = optimizer.parts.values() if isinstance(optimizer, Optimizers) else [optimizer]
    for part in parts:
        if not isinstance(part, torch.optim.Optimizer):
            continue
        adam = type(part).__name__ != "Muon"  # which older versions of PyTorch lack
        wanted = {"step", "exp_avg", "exp_avg_sq"} if adam else {"momentum_buffer"}
        known = {weight for group in part.param_groups for weight in group["params"]}
        for weight, state in part.state.items():
            if weight not in known or not isinstance(state, dict) or state.keys() != wanted:
                raise ValueError(f"a weight's state is not {', '.join(sorted(wanted))}")
            for name, value in state.items():
                _check_tensor(name, value, weight)


def _check_tensor(name: str, value: Any, weight: Tensor) -> None:
    if type(value).__name__ == "OptimState8bit":
        value = value.dequantize()
    shape = torch.Size() if name == "step" else weight.shape
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise ValueError(f"{name} is not an ordinary tensor")
    if value.shape != shape or not value.is_floating_point():
        raise ValueError(f"{name} is {value.dtype} of shape {list(value.shape)}")
    local = value.to_local() if is_part(value) else value
    if local.untyped_storage().nbytes() < local.nbytes:
        raise ValueError(f"{name} overlaps itself")
    negative = name in ("step", "exp_avg_sq") and bool((local < 0).any())
    if negative or not bool(local.isfinite().all()):
        raise ValueError(f"{name} has values that it cannot have")


def restore_rng(checkpoint: Path) -> None:
    """Take up this rank's generator states; a rank that was not there before starts from its seed.

    Raises:
        UserError: the file is damaged or missing.
    """
    rng = checkpoint / f"rng-{distributed.rank()}.pt"
    if distributed.rank() < saved_state(checkpoint).get("world_size", 0) or rng.exists():
        state = load_saved(rng)
        with reading(rng):
            set_rng_state(state)


def load_saved(path: Path, mmap: bool = False) -> Any:
    """What `torch.save` wrote.

    Args:
        mmap: read no tensor before it is used.

    Raises:
        UserError: it cannot be read.
    """
    try:
        check_regular(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the unpickler raises anything on damaged bytes
        raise damaged(path, error) from error


def saved_state(checkpoint: Path) -> dict[str, Any]:
    """What has a small state of its own, `step` among it.

    Raises:
        UserError: it cannot be read.
    """
    sums = checkpoint_sums(checkpoint) if verifying() else None
    if sums is not None:
        sums.verify(["trainer.json"])
    path = checkpoint / "trainer.json"
    try:
        state: dict[str, Any] = read_json(path)
        state.pop("sums", None)
        step = state["step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error
    with reading(path):
        if type(step) is not int or step != checkpoint_step(checkpoint):
            raise ValueError(f"step is {shown_value(step)}, which is not that of {checkpoint.name}")
        for name in ("objective", "best", "skipped", "reader", "sources"):
            if not isinstance(state.get(name, {}), dict):
                raise ValueError(f"{name} is {shown_value(state[name])}, not an object")
        reader = state.get("reader", {"position": step, "planned": 0})
        place, _ = reader["position"], reader["planned"]
        if type(place) is not int or not step <= place <= step * _LARGEST_BATCH:
            raise ValueError(f"reader.position {shown_value(place)} is not possible at step {step}")
        numbers = {"reader": "planned", "skipped": "count", "best": "stale"}
        for name, key in numbers.items():
            value = state.get(name, {}).get(key, 0)
            if type(value) is not int or not 0 <= value < 2**53:
                raise ValueError(f"{name}.{key} is {shown_value(value)}, which is not possible")
    return state


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Blame the file for whatever goes wrong when its content is used.

    Raises:
        UserError: something did.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the content may be of any shape and kind
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """What to say of a file of a checkpoint that cannot be read."""
    return UserError(
        f"{path}: cannot be read ({one_line(error, 120)}); delete this checkpoint directory to "
        "resume from the one before it"
    )
