"""The draft vocabulary: the tokens that heads 2 … n may propose, stored with a model.

`mtp/draft_vocabulary.safetensors` holds `ids`, int64 `[V']`, ascending, and `vocab_size`, int64
`[1]`, the V that they belong to. Verification reads all V tokens, so the ids decide how many drafts
are right and what they cost, never what is written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.layouts.tensor_files import (
    SafetensorsFile,
    write_safetensors_file,
)

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    from torch import Tensor

DRAFT_FILE = Path("mtp", "draft_vocabulary.safetensors")
COVERAGE = 0.995
"""Share of the counted tokens that `auto` covers."""
_SMALLEST = 256
_AGAIN = "choose it again (weighted-mtp convert --draft-vocabulary)"


def choose_ids(counts: Tensor, size: int | None, always: Collection[int]) -> Tensor | None:
    """The most frequent tokens, `[V']`, ascending; equal counts: the lower id first.

    Args:
        counts: `[V]`, how often each token was counted.
        size: V'. None takes the first of 256, 384, 512, 768, 1024, … (powers of two, and one and a
            half of them) that covers `COVERAGE` of the counted tokens.
        always: tokens below V that are in it whatever their counts.

    Returns:
        None if none of these below V covers enough.

    Raises:
        ValueError: the size is not from the number of `always` to V.
    """
    import torch

    V, must = len(counts), sorted(set(always))
    ranked = counts.clone()
    ranked[must] = int(counts.sum()) + 1
    order = torch.sort(ranked, descending=True, stable=True).indices
    if size is None:
        covered = counts[order].cumsum(0)
        wanted = COVERAGE * int(counts.sum())
        size = _SMALLEST
        while size < V and (size < len(must) or covered[size - 1] < wanted):
            size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
        if size >= V:
            return None
    if not max(1, len(must)) <= size <= V:
        raise ValueError(f"{size} must be from {max(1, len(must))} to {V}, the model's vocabulary")
    return order[:size].sort().values


def write_draft_vocabulary(ids: Tensor, vocab_size: int, directory: Path) -> None:
    """Write the ids into a model directory."""
    import torch

    path = directory / DRAFT_FILE
    path.parent.mkdir(exist_ok=True)
    write_safetensors_file({"ids": ids.long(), "vocab_size": torch.tensor([vocab_size])}, path)


def read_draft_vocabulary(directory: Path, vocab_size: int) -> tuple[int, ...] | None:
    """The ids, ascending, that are stored with a model; None if none are.

    Raises:
        UserError: the file is damaged, or is not of a model with this vocabulary.
    """
    path = directory / DRAFT_FILE
    if not path.is_file():
        return None
    file = SafetensorsFile(path)
    for name in ("ids", "vocab_size"):
        if name not in file.header:
            raise UserError(f"{path}: has no tensor {name!r}; {_AGAIN}")
        found = file.header[name]
        if found.dtype != "I64" or len(found.shape) != 1:
            raise UserError(f"{path}: {name!r} must be a list of int64; {_AGAIN}")
    ids, size = ([int(number) for number in file.numbers(name)] for name in ("ids", "vocab_size"))
    file.release()
    if size != [vocab_size]:
        shown = ", ".join(map(str, size[:2])) or "no"
        raise UserError(
            f"{path}: belongs to a vocabulary of {shown} tokens, but the model has {vocab_size}; "
            f"{_AGAIN}"
        )
    fault = fault_of(ids, vocab_size)
    if fault:
        raise UserError(f"{path}: {fault}; {_AGAIN}")
    return tuple(ids)


def fault_of(ids: Sequence[int], vocab_size: int) -> str:
    """What is wrong with ids `[V']`; "" if they are ascending tokens of the vocabulary."""
    if not ids:
        return "holds no token"
    if min(ids) < 0 or max(ids) >= vocab_size:
        return f"holds token ids outside 0 to {vocab_size - 1}"
    if len(set(ids)) < len(ids):
        return "holds a token twice"
    if list(ids) != sorted(ids):
        return "its token ids do not ascend"
    return ""


def check_stops(
    ids: Collection[int] | None, stop_ids: Collection[int], vocab_size: int, where: Path
) -> None:
    """Raise `UserError` unless tokens that end a text may be drafted.

    Args:
        ids: None for no draft vocabulary.
        where: the model directory.
    """
    if ids is None:
        return
    missing = sorted({each for each in stop_ids if each < vocab_size}.difference(ids))
    if missing:
        raise UserError(
            f"{where / DRAFT_FILE}: lacks token {missing[0]}, which ends a text; {_AGAIN}, or "
            "decode with --draft-vocabulary none"
        )
