"""The model of a checkpoint, built without memory for its weights."""

from __future__ import annotations

from pathlib import Path

from weighted_mtp.core.device import machine_memory
from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.frame import on_meta
from weighted_mtp.models.meta_mtp.transformer import Transformer


def build_skeleton(args: ModelArgs, config: Path, n_tensors: int) -> Transformer:
    """The model on the meta device.

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
        with on_meta():
            return Transformer(args)
    except (ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = one_line(error, 160)  # PyTorch's own has a line for each frame
        raise UserError(f"{config}: no model can be built from it ({reason})") from error


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
