"""A reference model's token losses, stored beside the data set they belong to.

One safetensors file: `losses` float32 `[tokens, heads]`, the response tokens of every row one after
the other (EOS included), `offsets` int64 `[rows + 1]`, and in its header what they depend on and a
SHA-256 of all this, which is compared when the file is opened.
Column k − 1 of token x_j is the loss of head k, which predicts it from x_{≤ j−k}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import parse_json
from weighted_mtp.core.sums import verifying
from weighted_mtp.core.tensors import save_file

FORMAT = "weighted-mtp reference losses v4"
_WITHOUT_DIGEST = "weighted-mtp reference losses v3"
_HASHED_TOKENS = 1 << 18
_COMMAND = "weighted-mtp prepare reference-losses"


@dataclass(frozen=True)
class Fingerprint:
    """What stored losses depend on; all but `model` must match the training run.

    Attributes:
        data: SHA-256 of the data file.
        tokenizer: of the tokenizer.
        template, max_length, joint: how rows become sequences.
        model: SHA-256 of the reference's weights.
    """

    data: str
    tokenizer: str
    template: str
    max_length: int
    joint: bool = False
    model: str = ""


def default_path(data: Path) -> Path:
    """`FILE.jsonl` → `FILE.reference.safetensors`."""
    return data.with_suffix(".reference.safetensors")


def write_reference(path: Path, losses: Sequence[Tensor], fingerprint: Fingerprint) -> None:
    """Store one tensor `[tokens, heads]` for each row of the data file, whole or not at all."""
    lengths = torch.tensor([0, *map(len, losses)])
    tensors = {
        "losses": torch.cat([x.float() for x in losses]) if losses else torch.zeros(0, 1),
        "offsets": lengths.cumsum(0),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    header = {"format": FORMAT, "fingerprint": json.dumps(asdict(fingerprint))}
    header["digest"] = _digest(header["fingerprint"], tensors["offsets"], tensors["losses"])
    save_file(tensors, partial, metadata=header)
    partial.replace(path)


def stored_fingerprint(path: Path) -> Fingerprint:
    """What the losses in a file depend on, from its header alone.

    Raises:
        UserError: missing, damaged, or written by another version.
    """
    return _opened(path)[1]


def _digest(fingerprint: str, offsets: Tensor, losses: Any) -> str:
    """SHA-256 of what a file holds, from slices of `losses`, which may stay on disk."""
    digest = hashlib.sha256(fingerprint.encode())
    digest.update(offsets.numpy().tobytes())
    for start in range(0, int(offsets[-1]), _HASHED_TOKENS):
        digest.update(losses[start : start + _HASHED_TOKENS].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _opened(path: Path) -> tuple[Any, Fingerprint]:
    """The file, and its fingerprint."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with: {_COMMAND}")
    try:
        file: Any = safe_open(path, framework="pt")
        header = file.metadata() or {}
        found = Fingerprint(**parse_json(header.get("fingerprint", "")))
    except (SafetensorError, ValueError, TypeError) as error:
        raise _damaged(path) from error
    if header.get("format") not in (FORMAT, _WITHOUT_DIGEST):
        raise UserError(
            f"{path}: written by another version (format {header.get('format')!r}; this version "
            f"reads {FORMAT!r}, which holds the losses of every head); score the data again with: "
            f"{_COMMAND}"
        )
    return file, found


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: no reference losses, or damaged; make them again with: {_COMMAND}")


class ReferenceLosses:
    """Random access to stored losses; the file stays on disk.

    Attributes:
        heads: of the reference, each with losses of its own.

    Raises:
        UserError: missing, damaged, or stale: made for another tokenizer, data file, template or
            length than `expected`.
    """

    def __init__(self, path: Path, expected: Fingerprint) -> None:
        self.path = path
        file, found = _opened(path)  # stays open as long as its slices
        try:
            self._losses: Any = file.get_slice("losses")
            self._offsets: list[int] = file.get_tensor("offsets").tolist()
            tokens, self.heads = self._losses.get_shape()
            if self._offsets[-1:] != [tokens]:
                raise ValueError("tokens are missing")
            header = file.metadata()
            if header["format"] == FORMAT and verifying():
                offsets = file.get_tensor("offsets")
                if _digest(header["fingerprint"], offsets, self._losses) != header.get("digest"):
                    raise ValueError("its SHA-256 is not the stored one")
        except (SafetensorError, ValueError, TypeError) as error:
            raise _damaged(path) from error
        self.fingerprint = found
        for name in ("tokenizer", "data", "template", "max_length", "joint"):
            stored, wanted = getattr(found, name), getattr(expected, name)
            if stored != wanted:
                raise UserError(
                    f"{path}: these losses were made with another {name} ({_short(stored)}, "
                    f"training has {_short(wanted)}); build them again with: {_COMMAND}"
                )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        """`[response tokens, heads]` float32 of a row of the data file."""
        losses: Tensor = self._losses[self._offsets[row] : self._offsets[row + 1]]
        return losses


def _short(value: str | int) -> str:
    return str(value)[:24]
