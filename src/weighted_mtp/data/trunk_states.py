"""States of a frozen trunk, stored for every position of every row of a data file.

A folder holds parts of consecutive rows, `states-00000.safetensors`, …, and `states.json`, which
says what the states depend on and, of every part, its rows, size and SHA-256. A part has `states`
`[P, 2, D]`, at each position what the block of every head reads and then the normalised output of
head 1, and `offsets` int64 `[rows + 1]`. Parts are memory-mapped, and written whole or not at all:
whoever is interrupted goes on behind the last one.

Letters: P positions of a part, D model width, L positions of a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.sums import fields_digest, sha256, sums_of, verifying
from weighted_mtp.core.tensors import save_file

FORMAT = "weighted-mtp trunk states v1"
MANIFEST = "states.json"
COMMAND = "weighted-mtp prepare states"
_OPEN_PARTS = 64


@dataclass(frozen=True)
class Origin:
    """What stored states depend on. All of it must be the training's.

    Attributes:
        width, vocab_size, rope_theta: of the model.
        model: SHA-256 of its weights.
        data: SHA-256 of the data file.
        tokenizer: fingerprint of it.
        template, max_length, joint: how rows become sequences.
    """

    width: int
    vocab_size: int
    rope_theta: float
    model: str
    data: str
    tokenizer: str
    template: str
    max_length: int
    joint: bool

    def difference(self, other: Origin) -> str | None:
        """The first attribute that differs, in words; None if none does."""
        for field in fields(self):
            stored, wanted = getattr(self, field.name), getattr(other, field.name)
            if stored != wanted:
                name = _WORDS.get(field.name, field.name)
                return f"another {name} ({str(stored)[:24]}; here it is {str(wanted)[:24]})"
        return None


_WORDS = {
    "width": "model width",
    "vocab_size": "vocabulary size",
    "rope_theta": "rope_theta",
    "model": "model",
    "data": "data file",
}


class Part(NamedTuple):
    """One file of the folder."""

    name: str
    rows: int
    positions: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`states.json`.

    Attributes:
        dtype: of the states, `bfloat16` or `float32`.
        rows: of the data file; fewer may be stored yet.
    """

    origin: Origin
    dtype: str
    rows: int
    parts: tuple[Part, ...] = ()

    @property
    def stored(self) -> int:
        """How many rows are stored, the first ones."""
        return sum(part.rows for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of the parts."""
        return sum(part.size for part in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 of everything stored, by way of the parts' own sums."""
        return fields_digest(self._fields())

    def _fields(self) -> dict[str, Any]:
        parts = [part._asdict() for part in self.parts]
        origin = asdict(self.origin)
        return {"origin": origin, "dtype": self.dtype, "rows": self.rows, "parts": parts}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read that of a folder, and compare the sizes of its parts.

        Raises:
            UserError: there is none, it is damaged or of another version, or a part is missing or
                has another size.
        """
        try:
            found = read_json(folder / MANIFEST)
        except OSError as error:
            raise UserError(
                f"{folder}: holds no stored states ({error.strerror}); make them with: {COMMAND}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise _damaged(folder / MANIFEST) from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UserError(
                f"{folder / MANIFEST}: no stored states, or written by another version; make them "
                f"again with: {COMMAND}"
            )
        try:
            parts = tuple(Part(**part) for part in found["parts"])
            manifest = cls(Origin(**found["origin"]), found["dtype"], found["rows"], parts)
            if manifest.digest != found["digest"]:
                raise ValueError("its digest is another one")
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(folder / MANIFEST) from error
        for part in parts:
            path = folder / part.name
            if not path.is_file() or path.stat().st_size != part.size:
                raise _damaged(path)
        return manifest

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        partial = folder / (MANIFEST + ".partial")
        content = {"format": FORMAT, **self._fields(), "digest": self.digest}
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / MANIFEST)

    def with_part(self, folder: Path, states: Iterable[Tensor]) -> Manifest:
        """Store the next rows, `[L, 2, D]` each, and the manifest that counts them.

        Raises:
            UserError: they cannot be written.
        """
        rows = list(states)
        path = folder / f"states-{len(self.parts):05d}.safetensors"
        partial = path.with_name(path.name + ".partial")
        tensors = {
            "states": torch.cat(rows),
            "offsets": torch.tensor([0, *accumulate(map(len, rows))]),
        }
        try:
            save_file(tensors, partial)
            size, digest = partial.stat().st_size, sha256(partial)
            partial.replace(path)
            part = Part(path.name, len(rows), len(tensors["states"]), size, digest)
            more = Manifest(self.origin, self.dtype, self.rows, (*self.parts, part))
            more.write(folder)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: cannot be written ({one_line(error, 160)}); make room, and give the "
                "same command again: it goes on behind the parts that are there"
            ) from error
        return more


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: is missing, cut short or damaged; delete the folder and make it again with: "
        f"{COMMAND}"
    )


class TrunkStates:
    """Random access to the states of a folder, which stay on disk. Pickles as its place.

    Raises:
        UserError: as for `Manifest.read`; or rows are missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, Manifest.read(folder)
        if self.manifest.stored != self.manifest.rows:
            raise UserError(
                f"{folder}: holds {self.manifest.stored:,} of {self.manifest.rows:,} rows; give "
                f"the {COMMAND} command that made it again, and it goes on"
            )
        self._starts = np.cumsum([0, *(part.rows for part in self.manifest.parts)])
        self._opened: dict[int, tuple[Any, list[int]]] = {}

    def __reduce__(self) -> tuple[type[TrunkStates], tuple[Path]]:
        return TrunkStates, (self.folder,)

    def __len__(self) -> int:
        return self.manifest.rows

    def verify(self) -> None:
        """Compare every part with its SHA-256, unless the environment switches it off.

        Raises:
            UserError: one is not what was written.
        """
        parts = self.manifest.parts if verifying() else ()
        try:
            found = sums_of(self.folder, [self.folder / part.name for part in parts])
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be read ({error.strerror})") from error
        for part in parts:
            if found[part.name] != part.sha256:
                raise _damaged(self.folder / part.name)

    def __getitem__(self, row: int) -> Tensor:
        """`[L, 2, D]` of a row of the data file."""
        index = int(np.searchsorted(self._starts, row, "right")) - 1
        states, offsets = self._part(index)
        place = row - int(self._starts[index])
        found: Tensor = states[offsets[place] : offsets[place + 1]]
        return found

    def _part(self, index: int) -> tuple[Any, list[int]]:
        if index not in self._opened:
            while len(self._opened) >= _OPEN_PARTS:  # each has a file open
                self._opened.pop(next(iter(self._opened)))
            part = self.manifest.parts[index]
            try:
                file: Any = safe_open(self.folder / part.name, framework="pt")
                states, offsets = file.get_slice("states"), file.get_tensor("offsets").tolist()
                shape = [part.positions, 2, self.manifest.origin.width]
                if list(states.get_shape()) != shape or offsets[-1] != part.positions:
                    raise ValueError("another shape")
            except (OSError, SafetensorError, ValueError) as error:
                raise _damaged(self.folder / part.name) from error
            self._opened[index] = states, offsets
        return self._opened[index]
