"""Tokenizers that are a SentencePiece model file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import read_regular
from weighted_mtp.data.tokens.files import (
    CONFIG,
    TokenizerFiles,
    check_round_trip,
    log,
    token_ends,
    well_formed,
)

_MODEL = "tokenizer.model"
_STRANGER = "\ue000"
"""A private-use character: no vocabulary has a piece with it."""


class SentencePieceTokenizer:
    """A SentencePiece model file, such as Llama 2's `tokenizer.model`, with the configs beside it.

    SentencePiece itself never makes a control piece from text, and always makes a user-defined one.
    """

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor  # slow to import, and often not needed

        beside = path.name == _MODEL  # the configs in a folder belong to the file of this name
        files = TokenizerFiles.read(path.parent, without=["tokenizer.json"])
        try:
            content = read_regular(path)
            self._model: Any = SentencePieceProcessor()
            self._model.LoadFromSerializedProto(content)  # an empty model_proto is ignored
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path}: not a SentencePiece model ({one_line(error, 160)})"
            ) from error
        self._files = TokenizerFiles(
            path.parent,
            {**(files.contents if beside else {}), _MODEL: content},
            files.model_stops if beside else frozenset(),
        )
        pieces = range(self._model.vocab_size())
        control = {self._model.id_to_piece(i): i for i in pieces if self._model.is_control(i)}
        self.control: Mapping[str, int] = {**control, **self._added()}
        self.vocab_size = max([len(pieces), *(i + 1 for i in self.control.values())])
        self.bos_id: int | None = self._role("bos", self._model.bos_id())
        if self._files.json(CONFIG).get("add_bos_token") is False:
            self.bos_id = None
        eos = self._role("eos", self._model.eos_id())
        if eos is None:
            raise UserError(f"{path}: this SentencePiece model has no EOS; responses cannot end")
        self.eos_id = eos
        pad = self._role("pad", self._model.pad_id())
        self.pad_id = eos if pad is None else pad
        self.stop_ids = self._files.stops() | {eos}
        self._hidden = {*self.control.values(), self.eos_id}
        self.fingerprint = "sentencepiece-" + hashlib.sha256(content).hexdigest()[:16]
        if (self.bos_id, eos) != (_known(self._model.bos_id()), _known(self._model.eos_id())):
            self.fingerprint += f"-{self.bos_id}-{eos}"
        check_round_trip(lambda text: self.decode(self.encode(text)), path)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(well_formed(text))
        return ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        # The offsets are those of the text as given, not of the normalised one.
        found = self._model.encode(well_formed(text), return_type="offset_mapping")
        return found["ids"], token_ends(found["offsets"], len(text))

    def encode_continuation(self, text: str) -> list[int]:
        """The text is encoded after a character that merges with nothing, whose tokens go again.
        Where that cannot be done (without byte fallback, characters that the model does not know
        are joined) this is `encode`."""
        head, unknown = self._stranger, self._model.unk_id()
        ids = self.encode(_STRANGER + well_formed(text))
        joined = unknown in head and unknown in self.encode(text[:1])
        return self.encode(text) if joined or ids[: len(head)] != head else ids[len(head) :]

    @cached_property
    def _stranger(self) -> list[int]:
        return self.encode(_STRANGER)

    def decode(self, ids: Sequence[int]) -> str:
        size = self._model.vocab_size()
        text: str = self._model.decode(
            [int(i) for i in ids if i not in self._hidden and 0 <= i < size]
        )
        return text

    def save(self, directory: Path) -> None:
        self._files.save(directory, self.eos_id)

    def _added(self) -> dict[str, int]:
        """Tokens that the configs add to the model file's; text never becomes one of them."""
        added = {token["content"]: int(token["id"]) for token in self._files.added()}
        new = {text: i for text, i in added.items() if i >= self._model.vocab_size()}
        plain = sorted(new.keys() - self._files.special())
        if plain:
            log.warning(
                f"{self._files.folder}: {len(plain)} added tokens are not in {_MODEL} and are not "
                f"recognised in text ({', '.join(plain[:3])}); add a tokenizer.json that has them"
            )
        return new

    def _role(self, role: str, own: int) -> int | None:
        """The id that the configs give to a role; without them the model file's own."""
        name = self._files.named().get(role)
        if name is not None and name in self.control:
            return self.control[name]
        found = own if name is None else self._model.piece_to_id(name)
        return _known(own if found == self._model.unk_id() else found)


def _known(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None
