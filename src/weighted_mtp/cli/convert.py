"""`weighted-mtp convert`: write a checkpoint in another layout or number format, unsharded."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weighted_mtp.core.choices import SPECULATORS
from weighted_mtp.core.device import resolve_dtype
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_directory, command_line
from weighted_mtp.core.input_files import InvalidTextError, read_json
from weighted_mtp.core.model_folder import MARKER, is_sharded, newest_checkpoint
from weighted_mtp.core.sums import verifying
from weighted_mtp.models.meta_mtp.add_heads import add_heads, with_heads
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import (
    check_destination,
    find_tokenizer_files,
    inspect_checkpoint,
    load_meta_mtp_model,
    save_huggingface,
    save_mtp_llama,
    save_native,
    value_head_path,
)
from weighted_mtp.models.meta_mtp.layouts.eagle3 import (
    Speculator,
    check_speculator,
)
from weighted_mtp.models.meta_mtp.layouts.mtp_llama import check_llama
from weighted_mtp.models.meta_mtp.layouts.side_files import read_config_fields, tokenizer_file
from weighted_mtp.models.meta_mtp.lora import merge_adapters
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpointing.hub_files import hf_side_files
from weighted_mtp.pipelines.checkpointing.sharded import sharded_model
from weighted_mtp.pipelines.checkpointing.sums import verify_checkpoint
from weighted_mtp.pipelines.exporting.card import check_license, make_card
from weighted_mtp.pipelines.exporting.card_text import card_text
from weighted_mtp.pipelines.exporting.draft_vocabulary import DraftChoice


@dataclass(frozen=True)
class _Loaded:
    """A checkpoint in memory, and the directory of its tokenizer and other files."""

    model: Transformer
    layout: str
    folder: Path
    value_head: Path | None

    @property
    def has_tokenizer(self) -> bool:
        return tokenizer_file(self.folder) is not None


def run(args: argparse.Namespace) -> int:
    """Convert, with tokenizer files and value head; return 0 when DST is complete."""
    source: Path = args.source
    destination: Path = args.destination
    dtype = resolve_dtype(args.dtype)
    if args.add_heads is not None and args.add_heads < 1:
        raise UserError(f"--add-heads must be at least 1, got {args.add_heads}")
    if args.license is not None and args.to == "native":
        raise UserError("--license goes into the model card, which --to native does not have")
    check_license(args.license)
    drafts = DraftChoice.read(args.draft_vocabulary, args.draft_text)
    speculator = _speculator(args)
    _check_apart(source, destination, args.to in ("native", "hf"))
    check_destination(destination, args.overwrite)
    for place in (destination, destination.absolute().parent):
        check_output_directory(place, "DST")
    with _load(source, dtype, lambda shape: _check_shape(shape, args, speculator, drafts)) as found:
        model = found.model
        if args.add_heads:
            model = add_heads(model, model.args.n_future_tokens + args.add_heads)
        note = None
        if drafts is not None:
            model.draft_ids, note = drafts.choose(found.folder, model.args.vocab_size)
        if speculator is not None and speculator.draft_ids is None and model.draft_ids is not None:
            speculator = replace(speculator, draft_ids=tuple(model.draft_ids.tolist()))
        if args.to == "native":
            save_native(
                model,
                destination,
                tokenizer_files=find_tokenizer_files(found.folder),
                extra_metadata={"converted_from": found.layout},
                overwrite=args.overwrite,
                value_head_file=found.value_head,
                config_fields=read_config_fields(found.folder),
            )
        else:
            _save_for_others(replace(found, model=model), args, speculator)
    carried = ["the weights"]
    carried += [f"{args.add_heads} more heads, untrained"] if args.add_heads else []
    carried += ["the tokenizer"] if found.has_tokenizer else []
    carried += ["the value head"] if found.value_head else []
    carried += [note] if note else []
    print(f"{destination}: {args.to} checkpoint with {', '.join(carried)}")
    if speculator is not None:
        print(f"{speculator.folder}: head 2 as a speculator. To serve:\n{speculator.command}")
    elif args.to != "native" and not args.add_heads:  # else SRC lacks the heads
        print("next: " + command_line("weighted-mtp", "verify", source, destination))
    return 0


def _save_for_others(
    found: _Loaded, args: argparse.Namespace, speculator: Speculator | None
) -> None:
    """Write one of the layouts that have their tokenizer files beside the weights."""
    with tempfile.TemporaryDirectory() as work:
        files, fields = hf_side_files(found.folder, found.model.args.vocab_size, Path(work))
        save = save_mtp_llama if args.to == "mtp_llama" else save_huggingface
        chosen: dict[str, Any] = {} if speculator is None else {"speculator": speculator}
        name = args.destination.resolve().name
        card = make_card(found.model, args.source, name, args.to, speculator)
        save(
            found.model,
            args.destination,
            tokenizer_files=files,
            overwrite=args.overwrite,
            value_head_file=found.value_head,
            config_fields=fields,
            card=card_text(replace(card, license=args.license)),
            **chosen,
        )


def _speculator(args: argparse.Namespace) -> Speculator | None:
    """What `--to eagle3` or `speculators` asks for, None for other layouts."""
    if args.to not in SPECULATORS:
        for flag, value in (("--engine", args.engine), ("--draft-tokens", args.draft_tokens)):
            if value is not None:
                raise UserError(
                    f"{flag} goes with --to {' or '.join(SPECULATORS)}, not --to {args.to}"
                )
        return None
    # vLLM finds the base by the path in a speculators configuration, wherever it is started.
    base = args.destination.resolve() if args.to == "speculators" else args.destination
    return Speculator(args.to, args.engine or "vllm", str(base), _draft_ids(args.draft_tokens))


def _draft_ids(path: Path | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        ids = read_json(path)
    except InvalidTextError as error:
        raise UserError(f"{path}: {error}; give a JSON list of token ids") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(ids, list) or not all(type(each) is int for each in ids):
        raise UserError(f"{path}: must hold a JSON list of token ids (whole numbers)")
    return tuple(sorted(set(ids)))


def _check_shape(
    shape: ModelArgs,
    args: argparse.Namespace,
    speculator: Speculator | None,
    drafts: DraftChoice | None,
) -> None:
    """Raise `UserError` where the layout asked for does not hold a model of this shape."""
    if args.to == "mtp_llama":
        check_llama(shape, args.to)
    if args.add_heads:
        shape = with_heads(shape, shape.n_future_tokens + args.add_heads)
    if drafts is not None:
        drafts.check(shape)
    if speculator is not None:
        check_speculator(shape, speculator)


@contextmanager
def _load(
    source: Path, dtype: torch.dtype | None, check: Callable[[ModelArgs], None]
) -> Iterator[_Loaded]:
    """Load a model directory, or the model of a checkpoint, into CPU memory.

    Args:
        check: may refuse the model before its weights are read.
    """
    place = newest_checkpoint(source)
    if is_sharded(place):
        with _put_together(place, dtype) as found:
            check(found.model.args)
            yield found
        return
    if (place / MARKER).exists():
        place = place / "model"
    info = inspect_checkpoint(place)
    check(info.args)
    yield _Loaded(
        model=load_meta_mtp_model(
            place, device="cpu", dtype=dtype, verify=not verifying(), keep_formats=True
        ),
        layout=info.layout,
        folder=place,
        value_head=value_head_path(place) if info.has_value_head else None,
    )


@contextmanager
def _put_together(checkpoint: Path, dtype: torch.dtype | None) -> Iterator[_Loaded]:
    """Load a sharded model without a process group."""
    verify_checkpoint(checkpoint, always=True)  # else a damaged copy would get checksums of its own
    adapter = sharded_model(checkpoint).on(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        head = value_head_path(folder) if adapter.value_head is not None else None
        if adapter.value_head is not None and head is not None:
            adapter.value_head.save_checkpoint(head)
        merge_adapters(adapter.transformer)
        model = adapter.transformer if dtype is None else adapter.transformer.to(dtype)
        yield _Loaded(model, "shards", checkpoint / "skeleton", head)


def _check_apart(source: Path, destination: Path, in_place: bool) -> None:
    """Raise `UserError` where DST contains SRC or, unless `in_place`, is SRC or lies in it."""
    src, dst = source.resolve(), destination.resolve()
    if src.is_relative_to(dst) and src != dst:
        raise UserError(f"{destination}: contains the source {source}; choose another destination")
    if dst.is_relative_to(src) and not in_place:
        where = "is" if src == dst else "lies in"
        raise UserError(f"{destination}: {where} the source {source}; choose another destination")
