"""The model of a checkpoint: checked by arithmetic first, then built without memory for weights."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.models.meta_mtp.args import ModelArgs, parameter_shapes

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    from weighted_mtp.models.meta_mtp.transformer import Transformer

_LARGEST_TENSOR = 2**63
"""PyTorch counts bytes in 64 bits, of float32 here."""


def machine_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_size(args: ModelArgs, config: Path, n_tensors: int) -> None:
    """Refuse a shape that no model has; nothing is built.

    Raises:
        UserError: `config` asks for more layers than `n_tensors` could fill, or for the impossible.
    """
    if args.n_layers > n_tensors:
        raise UserError(
            f"{config}: n_layers {args.n_layers} is more than the {n_tensors} tensors stored; "
            "correct it, or copy the checkpoint again"
        )
    check_positions(args, str(config))
    try:
        for name, shape in parameter_shapes(args).items():
            if 4 * prod(shape) >= _LARGEST_TENSOR:
                raise ValueError(f"{name} would be {' × '.join(f'{size:,}' for size in shape)}")
    except ValueError as error:
        raise UserError(f"{config}: no model can be built from it ({error})") from error


def build_skeleton(args: ModelArgs, where: Path) -> Transformer:
    """The model on the meta device.

    Args:
        where: what an error names.

    Raises:
        UserError: this machine cannot build it.
    """
    from weighted_mtp.models.meta_mtp.frame import on_meta
    from weighted_mtp.models.meta_mtp.transformer import Transformer

    try:
        with on_meta():
            return Transformer(args)
    except (ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = one_line(error, 160)  # PyTorch's own has a line for each frame
        raise UserError(f"{where}: no model can be built from it ({reason})") from error


def check_positions(args: ModelArgs, where: str) -> None:
    """Refuse positions whose rotary table does not fit in memory; it is the one tensor of a model
    that is computed before any weight is there.

    Raises:
        UserError: they do not; starts with `where`.
    """
    table = args.max_positions * args.rotary_dim * 8  # angles, cos and sin, in float64 at worst
    if table > machine_memory():
        raise UserError(
            f"{where}: max_seq_len {args.max_seq_len} needs {table / 2**30:,.0f} GiB for the "
            "rotary positions alone, more than this machine has; correct it"
        )
