"""`weighted-mtp inspect`: describe a checkpoint from its headers."""

from __future__ import annotations

import argparse

from weighted_mtp.models.meta_mtp.args import RopeFrequencies
from weighted_mtp.models.meta_mtp.checkpoints import CheckpointInfo, inspect_checkpoint
from weighted_mtp.models.meta_mtp.layouts.params import write_params


def run(args: argparse.Namespace) -> int:
    """Print the description; return 0 if the checkpoint is sound."""
    info = inspect_checkpoint(args.path, verify=args.verify)
    for name, value in describe(info):
        print(f"{name:<12} {value}")
    return 0


def describe(info: CheckpointInfo) -> list[tuple[str, str]]:
    """Return label and text of each line of the description."""
    args = info.args
    given = {key: value for key, value in write_params(args).items() if value is not None}
    if isinstance(args.rope_scaling, RopeFrequencies):
        given["rope_scaling"] = dict(args.rope_scaling.described)
    extra = args.n_future_tokens - 1
    mixed = f" (loaded as {info.loaded_dtype})" if "," in info.dtype else ""
    others = [name for name in info.side_files if name != info.tokenizer]
    ids = ", ".join(f"{key}={value}" for key, value in info.config_fields.items())
    lines = [
        ("layout", info.layout),
        ("parameters", f"{info.parameters:,}"),
        ("dtype", info.dtype + mixed),
        ("size", f"{info.bytes / 2**20:,.1f} MiB in {len(info.files)} file(s)"),
        ("blocks", f"{args.n_layers - extra} (the last is the next-token head) + {extra} heads"),
        ("shape", ", ".join(f"{key}={value}" for key, value in given.items())),
        ("tokenizer", f"yes ({info.tokenizer})" if info.tokenizer else "no"),
        ("also", ", ".join(others) or "nothing"),
        ("token ids", ids or "as the tokenizer has them"),
        ("value head", "yes" if info.has_value_head else "no"),
    ]
    if info.draft_tokens is not None:
        lines.append(("drafts from", f"{info.draft_tokens:,} of {args.vocab_size:,} tokens"))
    lines += [("file", str(path)) for path in info.files]
    if info.verified:
        lines.append(("verified", f"every weight is finite; {info.verified}"))
    return lines
