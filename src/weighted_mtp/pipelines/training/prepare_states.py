"""Read every row once with a frozen trunk, and store what heads are trained on.

Letters: B batch, S sequence, D model width, L positions of a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weighted_mtp.core.device import DTYPES, resolve_compute_dtype, resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import check_output_directory
from weighted_mtp.core.lock import only_writer
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.core.progress import Progress
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.rows.metadata import Indices
from weighted_mtp.data.rows.store import open_rows
from weighted_mtp.data.tokens.row_tokens import TokenisedRows, tokenise
from weighted_mtp.data.tokens.tokenizers import load_tokenizer
from weighted_mtp.data.trunk_states import MANIFEST, Manifest, Origin
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.training.reference import load_frozen, model_digest

log = get_logger(__name__)

PART_BYTES = 256 << 20
"""Of states in a part, which are in memory until it is written."""


@dataclass(frozen=True)
class StatesRequest:
    """Which rows to read with which model.

    Attributes:
        out: the folder to write.
        batch_size: rows read at a time.
        compute_dtype: of matrix products, as `runtime.compute_dtype` of the training.
        dtype: of the stored states.
        budget: bytes they may take; None allows half of what is free on the disk.
    """

    data: Path
    model: Path
    out: Path
    template: str = "alpaca"
    max_length: int = 2048
    joint: bool = False
    batch_size: int = 16
    device: str = "auto"
    compute_dtype: str = "auto"
    dtype: str = "bfloat16"
    budget: int | None = None


def prepare_trunk_states(request: StatesRequest) -> Manifest:
    """Store what the trunk and head 1 make of every row; go on where an earlier call stopped.

    Raises:
        UserError: the data or the model cannot be read, or do not fit each other; the states would
            take more than the budget; the folder holds others.
    """
    model_dir, device, out = find_model(request.model), resolve_device(request.device), request.out
    check_output_directory(out, "--out")
    tokenizer = load_tokenizer(model_dir)
    collator = AlpacaCollator(tokenizer, request.template, request.max_length, 8, request.joint)
    store = open_rows(request.data)
    examples = tokenise(store, np.arange(len(store)), collator)
    args = inspect_checkpoint(model_dir).args
    if tokenizer.vocab_size > args.vocab_size:
        examples.check_ids(args.vocab_size)
    origin = _origin(args, model_digest(model_dir), collator, store.digest)
    with only_writer(out, "wait until it has ended, or choose another --out"):
        manifest = _begun(out, Manifest(origin, request.dtype, len(store)))
        sizes = position_bytes(args.dim, request.dtype) * _positions(examples)
        _check_budget(request, manifest, sizes)
        if manifest.stored < len(store):
            transformer = load_frozen(
                model_dir, tokenizer, device, "--max-length", request.max_length
            )
            manifest.write(out)
            with Progress(len(store), "row", done=manifest.stored) as progress:
                for rows in _parts(sizes, manifest.stored):
                    states = _read(transformer, rows, examples, collator, request, progress)
                    manifest = manifest.with_part(out, states)
    return manifest


def position_bytes(width: int, dtype: str) -> int:
    """Bytes of a position: two states."""
    return 2 * width * DTYPES[dtype].itemsize


def _positions(examples: TokenisedRows) -> Indices:
    """`[rows]` positions that the model runs, see `Example.positions`."""
    return np.maximum(1, examples.lengths - 1)


def _origin(args: ModelArgs, model: str, collator: AlpacaCollator, data: str) -> Origin:
    return Origin(
        width=args.dim,
        vocab_size=args.vocab_size,
        rope_theta=args.rope_theta,
        model=model,
        data=data,
        tokenizer=collator.tokenizer.fingerprint,
        template=collator.template_name,
        max_length=collator.max_length,
        joint=collator.joint,
    )


def _begun(out: Path, wanted: Manifest) -> Manifest:
    """What the folder holds already of the states that are wanted."""
    if not (out / MANIFEST).exists():
        return wanted
    found = Manifest.read(out)
    other = found.origin.difference(wanted.origin)
    if other is None and found.dtype != wanted.dtype:
        other = f"another --dtype ({found.dtype}, not {wanted.dtype})"
    if other is not None:
        raise UserError(
            f"{out}: holds states made with {other}; choose another --out, or delete the folder"
        )
    log.info("%s: %s of %s rows are stored", out, f"{found.stored:,}", f"{found.rows:,}")
    return found


def _check_budget(request: StatesRequest, manifest: Manifest, sizes: Indices) -> None:
    """Raise `UserError` where the states do not fit, and say how many rows would.

    Args:
        sizes: bytes of each row.
    """
    out, whole = request.out, np.cumsum(sizes)
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    room = manifest.size + shutil.disk_usage(there).free
    if request.budget is None:
        budget = manifest.size + (room - manifest.size) // 2
        words = "half of the free disk, the default --budget, is"
    elif request.budget <= room:
        budget, words = request.budget, "--budget is"
    else:
        budget, words = room, "the disk has"
    need = int(whole[-1]) if len(whole) else 0
    log.info(
        "%s: the states of %s rows take %s (%s bytes a position)",
        out,
        f"{len(sizes):,}",
        in_units(need),
        f"{position_bytes(manifest.origin.width, manifest.dtype):,}",
    )
    if need > budget and manifest.stored < manifest.rows:
        fit = int(np.searchsorted(whole, budget, "right"))
        raise UserError(
            f"{out}: the states of {len(sizes):,} rows take {in_units(need)}, and {words} "
            f"{in_units(budget)}, enough for the first {fit:,}; raise --budget, or prepare and "
            f"train with those rows only (head -n {fit} {request.data})"
        )


def in_units(size: int) -> str:
    """Bytes in decimal units."""
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:,.1f} {unit}"
    return f"{size} bytes"


def _parts(sizes: Indices, start: int) -> Iterator[range]:
    """Consecutive rows from `start` on, of about `PART_BYTES` each."""
    filled = 0
    for row in range(start, len(sizes)):
        filled += int(sizes[row])
        if filled >= PART_BYTES or row == len(sizes) - 1:
            yield range(start, row + 1)
            start, filled = row + 1, 0


def _read(
    transformer: Transformer,
    rows: range,
    examples: TokenisedRows,
    collator: AlpacaCollator,
    request: StatesRequest,
    progress: Progress,
) -> list[Tensor]:
    """`[L, 2, D]` of each of these rows, in order; those of like length are read together."""
    dtype, found = DTYPES[request.dtype], dict.fromkeys(rows, torch.empty(0))
    device = transformer.output.weight.device
    compute_dtype = DTYPES[resolve_compute_dtype(request.compute_dtype, device)]
    ordered = sorted(rows, key=lambda row: int(examples.lengths[row]))
    for first in range(0, len(ordered), request.batch_size):
        part = [examples[row] for row in ordered[first : first + request.batch_size]]
        tokens = collator(part).tokens.to(device)
        states = trunk_and_first(transformer, tokens, compute_dtype)
        kept = states.to(dtype).cpu()
        for example, line in zip(part, kept, strict=True):
            found[example.row] = line[: example.positions].clone()
        progress.update(len(part))
    return list(found.values())


@torch.no_grad()
def trunk_and_first(transformer: Transformer, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, S]` → `[B, S, 2, D]`: what the block of every head reads, and the normalised output of
    head 1.

    Args:
        dtype: of matrix products (autocast).
    """
    mixed = dtype != torch.float32
    with torch.autocast(tokens.device.type, dtype=dtype, enabled=mixed):
        trunk = transformer.trunk_state(tokens)
        first = transformer.states_from(trunk, [transformer.layers[-1]])[0]
    return torch.stack([trunk, first.to(trunk.dtype)], dim=2)
