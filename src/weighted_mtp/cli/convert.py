"""`weighted-mtp convert`: write a checkpoint in another layout or number format, unsharded."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from weighted_mtp.core.device import DTYPES, resolve_dtype
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_directory, given_path
from weighted_mtp.core.model_folder import MARKER, is_sharded, newest_checkpoint
from weighted_mtp.core.sums import verifying
from weighted_mtp.models.meta_mtp.add_heads import add_heads
from weighted_mtp.models.meta_mtp.checkpoints import (
    check_destination,
    find_tokenizer_files,
    inspect_checkpoint,
    load_meta_mtp_model,
    save_huggingface,
    save_native,
    value_head_path,
)
from weighted_mtp.models.meta_mtp.layouts.side_files import read_config_fields, tokenizer_file
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpointing.hub_files import hf_side_files
from weighted_mtp.pipelines.checkpointing.sharded import sharded_model
from weighted_mtp.pipelines.checkpointing.sums import verify_checkpoint


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `convert`."""
    parser.add_argument(
        "source",
        type=given_path,
        metavar="SRC",
        help="a run, a checkpoint, a model directory, or ORG/NAME on the Hugging Face hub",
    )
    parser.add_argument("destination", type=given_path, metavar="DST", help="directory to write")
    parser.add_argument(
        "--to", choices=["native", "hf"], default="native", help="layout (default native)"
    )
    parser.add_argument("--dtype", help=f"number format (default: as stored): {', '.join(DTYPES)}")
    parser.add_argument(
        "--add-heads", type=int, metavar="N", help="add N heads, untrained copies of the last block"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing checkpoint at DST"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, with tokenizer files and value head; return 0 when DST is complete."""
    source: Path = args.source
    destination: Path = args.destination
    dtype = resolve_dtype(args.dtype)
    if args.add_heads is not None and args.add_heads < 1:
        raise UserError(f"--add-heads must be at least 1, got {args.add_heads}")
    _check_apart(source, destination)
    check_destination(destination, args.overwrite)
    for place in (destination, destination.absolute().parent):
        check_output_directory(place, "DST")
    with _load(source, dtype) as found:
        model = found.model
        if args.add_heads:
            model = add_heads(model, model.args.n_future_tokens + args.add_heads)
        if args.to == "hf":
            with tempfile.TemporaryDirectory() as work:
                files, fields = hf_side_files(found.folder, model.args.vocab_size, Path(work))
                save_huggingface(
                    model,
                    destination,
                    tokenizer_files=files,
                    overwrite=args.overwrite,
                    value_head_file=found.value_head,
                    config_fields=fields,
                )
        else:
            save_native(
                model,
                destination,
                tokenizer_files=find_tokenizer_files(found.folder),
                extra_metadata={"converted_from": found.layout},
                overwrite=args.overwrite,
                value_head_file=found.value_head,
                config_fields=read_config_fields(found.folder),
            )
    carried = ["the weights"]
    carried += [f"{args.add_heads} more heads, untrained"] if args.add_heads else []
    carried += ["the tokenizer"] if found.has_tokenizer else []
    carried += ["the value head"] if found.value_head else []
    print(f"{destination}: {args.to} checkpoint with {', '.join(carried)}")
    return 0


@contextmanager
def _load(source: Path, dtype: torch.dtype | None) -> Iterator[_Loaded]:
    """Load a model directory, or the model of a checkpoint, into CPU memory."""
    place = newest_checkpoint(source)
    if is_sharded(place):
        with _put_together(place, dtype) as found:
            yield found
        return
    if (place / MARKER).exists():
        place = place / "model"
    info = inspect_checkpoint(place)
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
        model = adapter.transformer if dtype is None else adapter.transformer.to(dtype)
        yield _Loaded(model, "shards", checkpoint / "skeleton", head)


def _check_apart(source: Path, destination: Path) -> None:
    inside = source.resolve().is_relative_to(destination.resolve())
    if inside and source.resolve() != destination.resolve():
        raise UserError(f"{destination}: contains the source {source}; choose another destination")
