"""Batches of all ranks side by side, for decisions that are taken over all of them.

Letters: B rows of one rank, R rows of all ranks, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.runtime import distributed


def concat_rows(parts: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Batches one under the other: field by field, columns padded to the widest. The first field is
    padded with −100, the others with 0. A field that is None in one batch is None in all."""
    fields: list[Tensor | None] = []
    for index, column in enumerate(zip(*parts, strict=True)):
        tensors = [x for x in column if x is not None]
        if not tensors:
            fields.append(None)
            continue
        width = max(x.shape[1] if x.ndim > 1 else 0 for x in tensors)
        fill = IGNORE_INDEX if index == 0 else 0
        fields.append(torch.cat([_widen(x, width, fill) for x in tensors]))
    return fields


def gather_rows(fields: Sequence[Tensor | None]) -> tuple[list[Tensor | None], slice]:
    """The rows of all ranks in rank order, and which of them are this rank's. Every rank must call
    this; rows and columns may differ in number.

    Args:
        fields: tensors `[B]`, `[B, S, …]` or None; padded as `concat_rows` does.
    """
    rows = next(len(x) for x in fields if x is not None)
    world = distributed.world_size()
    if world == 1:
        return list(fields), slice(0, rows)
    widths = [x.shape[1] if x is not None and x.ndim > 1 else 0 for x in fields]
    device = next(x.device for x in fields if x is not None)
    own = torch.tensor([rows, *widths], device=device)
    shapes = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(shapes, own)
    table = torch.stack(shapes).cpu()  # [world, 1 + fields]
    most, counts = int(table[:, 0].max()), table[:, 0].tolist()
    gathered: list[Tensor | None] = []
    for index, field in enumerate(fields):
        if field is None:
            gathered.append(None)
            continue
        width, fill = int(table[:, 1 + index].max()), IGNORE_INDEX if index == 0 else 0
        block = _widen(field, width, fill)
        sent = block.to(torch.uint8) if block.dtype == torch.bool else block
        padded = F.pad(sent, [0, 0] * (sent.ndim - 1) + [0, most - rows]).contiguous()
        received = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(received, padded)
        whole = torch.cat([x[:count] for x, count in zip(received, counts, strict=True)])
        gathered.append(whole.to(field.dtype))
    start = sum(counts[: distributed.rank()])
    return gathered, slice(start, start + rows)


def _widen(x: Tensor, width: int, fill: int) -> Tensor:
    """Pad the second dimension on the right."""
    if x.ndim < 2 or x.shape[1] == width:
        return x
    return F.pad(x, [0, 0] * (x.ndim - 2) + [0, width - x.shape[1]], value=fill)
