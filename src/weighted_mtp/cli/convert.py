"""`weighted-mtp convert`: write a checkpoint in another layout or number format."""

from __future__ import annotations

import argparse
from pathlib import Path

from weighted_mtp.core.device import DTYPES, resolve_dtype
from weighted_mtp.core.errors import UserError
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, metavar="SRC", help="a native, Meta or HF checkpoint")
    parser.add_argument("destination", type=Path, metavar="DST", help="the directory to write")
    parser.add_argument("--to", choices=["native", "hf"], default="native", help="layout to write")
    parser.add_argument("--dtype", help=f"number format (default: as stored): {', '.join(DTYPES)}")
    parser.add_argument(
        "--add-heads", type=int, metavar="N", help="N more heads, copies of the last block to train"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint at DST")


def run(args: argparse.Namespace) -> int:
    """Convert, carrying tokenizer files and value head along; 0 when DST is whole."""
    source: Path = args.source
    destination: Path = args.destination
    dtype = resolve_dtype(args.dtype)
    if args.add_heads is not None and args.add_heads < 1:
        raise UserError(f"--add-heads must be at least 1, got {args.add_heads}")
    check_destination(destination, args.overwrite)
    _check_apart(source, destination)
    info = inspect_checkpoint(source)
    model = load_meta_mtp_model(source, device="cpu", dtype=dtype)
    if args.add_heads:
        model = add_heads(model, model.args.n_future_tokens + args.add_heads)
    tokenizer_files = find_tokenizer_files(source)
    value_head = value_head_path(source) if info.has_value_head else None
    if args.to == "hf":
        save_huggingface(
            model,
            destination,
            tokenizer_files=tokenizer_files,
            overwrite=args.overwrite,
            value_head_file=value_head,
        )
    else:
        save_native(
            model,
            destination,
            tokenizer_files=tokenizer_files,
            extra_metadata={"converted_from": info.layout},
            overwrite=args.overwrite,
            value_head_file=value_head,
        )
    carried = ["the weights"]
    carried += [f"{args.add_heads} more heads, still untrained"] if args.add_heads else []
    carried += ["the tokenizer"] if info.has_tokenizer else []
    carried += ["the value head"] if value_head else []
    print(f"{destination}: {args.to} checkpoint with {', '.join(carried)}")
    return 0


def _check_apart(source: Path, destination: Path) -> None:
    inside = source.resolve().is_relative_to(destination.resolve())
    if inside and source.resolve() != destination.resolve():
        raise UserError(f"{destination}: holds the source {source}; choose another destination")
