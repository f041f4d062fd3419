"""The header of a safetensors file, and short tensors of it, read without PyTorch and NumPy.

The file is 8 bytes with the header's length N, N bytes of JSON (for each tensor its format, its
shape, and where its bytes begin and end after the header), and the tensors' bytes without a gap.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_SIZES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_CODES = {"float64": "d", "float32": "f", "float16": "e", "I64": "q"}
_LENGTH = 8
_LONGEST_HEADER = 100_000_000
"""safetensors refuses longer ones."""


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of one tensor.

    Attributes:
        dtype: a name such as "bfloat16"; of what is not a weight, safetensors' own, such as "I64".
        start, end: the tensor's bytes in the file; both 0 if that is not known.
    """

    shape: tuple[int, ...]
    dtype: str
    start: int = 0
    end: int = 0


def read_header(path: Path, size: int) -> dict[str, TensorInfo] | None:
    """The tensors of a file, by name in alphabetical order, as safetensors lists them; None unless
    everything is as safetensors demands it and of the usual formats.

    Args:
        size: of the file, in bytes.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(_LENGTH))
            if not 2 <= length <= min(size - _LENGTH, _LONGEST_HEADER):
                return None
            text = file.read(length).decode("utf-8")
        fields = json.loads(text, object_pairs_hook=_unique)
    except (OSError, struct.error, ValueError, RecursionError):
        return None
    if not text.startswith("{") or "\\u" in text:  # which may stand for half a character
        return None
    notes = fields.pop("__metadata__", None)
    if notes is not None and not _is_text(notes):
        return None
    found = {}
    for name in sorted(fields):
        info = _described(fields[name], _LENGTH + length)
        if info is None:
            return None
        found[name] = info
    end = _LENGTH + length
    for info in sorted(found.values(), key=lambda each: (each.start, each.end)):
        if info.start != end:
            return None
        end = info.end
    return found if end == size else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _is_text(notes: object) -> bool:
    return isinstance(notes, dict) and all(isinstance(value, str) for value in notes.values())


def _described(entry: Any, origin: int) -> TensorInfo | None:
    """One tensor; None where its entry is not exactly what it should be.

    Args:
        origin: where the first tensor's bytes begin in the file.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    counts = [shape, offsets]
    if not all(isinstance(each, list) and all(map(_is_count, each)) for each in counts):
        return None
    if not isinstance(dtype, str) or dtype not in _SIZES or len(offsets) != 2:
        return None
    start, end = offsets
    if end - start != prod(shape) * _SIZES[dtype]:
        return None
    return TensorInfo(tuple(shape), NAMES.get(dtype, dtype), origin + start, origin + end)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def decode(path: Path, info: TensorInfo) -> list[float] | None:
    """The numbers of a tensor; None if they cannot be read here."""
    code = _CODES.get(info.dtype, "f" if info.dtype == "bfloat16" else None)
    if code is None or not info.end:
        return None
    try:
        with path.open("rb") as file:
            file.seek(info.start)
            raw = file.read(info.end - info.start)
    except OSError:
        return None
    if info.dtype == "bfloat16":  # the upper halves of float32
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
        raw = bytes(wide)
    count = prod(info.shape)
    return list(struct.unpack(f"<{count}{code}", raw)) if len(raw) >= count else None
