"""Three kinds of tokenizer behind one small interface.

Ids are encoded without special tokens; whoever builds a sequence adds BOS and EOS. A tokenizer is
stored in a folder beside the weights it belongs to, and `load_tokenizer` tells from the files which
kind it is. All of them pickle, so that worker processes can have a copy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.types import DERIVED_FROM

MICRO_VOCABULARY = Path(__file__).parent / "micro_tasks" / "vocabulary"
"""A small byte-level BPE tokenizer of the micro tasks, shipped with the package."""


class Tokenizer(Protocol):
    """What training and decoding ask of a tokenizer.

    Attributes:
        vocab_size: ids are below it.
        bos_id: starts a sequence; None where the tokenizer, left to itself, puts none there: a
            model then never saw one, or not as the start of every text.
        eos_id: ends a response.
        pad_id: fills a batch; it is never a target, so any id will do.
        fingerprint: equal for tokenizers that give the same ids.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special tokens added."""
        ...

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of `text` as `encode` gives them, and where in the text each token ends.

        An end is an index in characters, just after the last character the token covers; ends never
        decrease. A token that is part of a character (one byte of it) or only precedes one (a dummy
        prefix) ends where that character does. So a token has a share in `text[n:]` exactly if its
        end is above n. Characters that the tokenizer drops have no token.
        """
        ...

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of `text` where it goes on after other text.

        Some tokenizers put a space before every text (Llama 2: "▁"); here it stays away. For text p
        that ends with a newline, `encode(p) + encode_continuation(r)` decodes to `p + r`.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        ...

    def save(self, directory: Path) -> None:
        """Write the files that `load_tokenizer` needs."""
        ...


class ByteTokenizer:
    """UTF-8 bytes 0 … 255 and three specials: no file, no merges, every text round-trips."""

    vocab_size = 259
    pad_id = 256
    bos_id: int | None = 257
    eos_id = 258
    fingerprint = "bytes-v1"

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        ends = [end for end, char in enumerate(text, 1) for _ in char.encode("utf-8")]
        return self.encode(text), ends

    def encode_continuation(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "bytes.json").write_text(json.dumps({"type": self.fingerprint}) + "\n")


class SentencePieceTokenizer:
    """A SentencePiece model file, such as Llama 2's `tokenizer.model`."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor  # slow to import, and often not needed

        self.path = path
        try:
            self._model: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path}: not a SentencePiece model ({one_line(error, 160)})"
            ) from error
        self.vocab_size = int(self._model.vocab_size())
        self.bos_id: int | None = _known(self._model.bos_id())
        eos = _known(self._model.eos_id())
        if eos is None:
            raise UserError(f"{path}: this SentencePiece model has no EOS; responses cannot end")
        self.eos_id = eos
        self.pad_id = next(i for i in (_known(self._model.pad_id()), eos) if i is not None)
        self.fingerprint = "sentencepiece-" + _digest(path)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text)
        return ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        found = self._model.encode(text, return_type="offset_mapping")  # of the text as given
        return found["ids"], _ends(found["offsets"], len(text))

    def encode_continuation(self, text: str) -> list[int]:
        """The text is encoded after a character that merges with nothing, whose tokens go again.
        Where that cannot be done (without byte fallback, characters that the model does not know
        are joined) this is `encode`."""
        head, unknown = self._stranger, self._model.unk_id()
        ids = self.encode(_STRANGER + text)
        joined = unknown in head and unknown in self.encode(text[:1])
        return self.encode(text) if joined or ids[: len(head)] != head else ids[len(head) :]

    @cached_property
    def _stranger(self) -> list[int]:
        return self.encode(_STRANGER)

    def decode(self, ids: Sequence[int]) -> str:
        specials = {self.bos_id, self.eos_id}
        text: str = self._model.decode(
            [int(i) for i in ids if i not in specials and i < self.vocab_size]
        )
        return text

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, directory / "tokenizer.model")


class HuggingFaceTokenizer:
    """A fast tokenizer folder (`tokenizer.json` and its config)."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer

        folder = path if path.is_dir() else path.parent
        try:
            self._fast: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the Rust side raises plain Exception on a bad file
            raise UserError(
                f"{folder}: not a Hugging Face tokenizer ({one_line(error, 160)}); it needs "
                "tokenizer.json"
            ) from error
        if self._fast.eos_token_id is None:
            raise UserError(f"{folder}: tokenizer_config.json names no eos_token; set it")
        self.vocab_size = len(self._fast)
        self.eos_id = int(self._fast.eos_token_id)
        pad = self._fast.pad_token_id
        self.pad_id = self.eos_id if pad is None else int(pad)
        # The Rust tokenizer itself: the wrapper encodes batches, for which it starts threads.
        self._backend: Any = self._fast.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        # A config may name a BOS that no text begins with (SmolLM2's `<|im_start|>`).
        first: list[int] = self._backend.encode("x", add_special_tokens=True).ids[:1]
        named: int | None = self._fast.bos_token_id
        self.bos_id: int | None = named if first == [named] else None
        # Of the tokenizer itself, not of its file: saving rewrites the file in another order.
        # The specials come from its config: two tokenizers that differ there end rows differently.
        state = json.dumps(
            [json.loads(self._backend.to_str()), self.bos_id, self.eos_id], sort_keys=True
        )
        self.fingerprint = "huggingface-" + hashlib.sha256(state.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        found = self._untrimmed.encode(text, add_special_tokens=False)
        return found.ids, _ends(found.offsets, len(text))

    def encode_continuation(self, text: str) -> list[int]:
        ids: list[int] = self._unprefixed.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _untrimmed(self) -> Any:
        """The same without post-processor, which may take spaces out of the offsets."""
        return self._changed(post_processor=None)

    @cached_property
    def _unprefixed(self) -> Any:
        """The same, but it puts nothing before a text."""
        state = json.loads(self._backend.to_str())
        parts = {name: state[name] for name in ("normalizer", "pre_tokenizer")}
        changed = {name: _without_prefix(part) for name, part in parts.items()}
        return self._backend if changed == parts else self._changed(**changed)

    def _changed(self, **parts: Any) -> Any:
        """A copy of the backend with some parts of its tokenizer.json replaced."""
        return self._backend.from_str(json.dumps(json.loads(self._backend.to_str()) | parts))

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._fast.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._fast.save_pretrained(str(directory))


def make_tokenizer(kind: str, path: Path | None = None) -> Tokenizer:
    """A tokenizer by kind: `bytes`, `micro`, `sentencepiece` or `huggingface`.

    Raises:
        UserError: an unknown kind, a missing path or a damaged file.
    """
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "micro":
        return HuggingFaceTokenizer(MICRO_VOCABULARY)
    if kind not in ("sentencepiece", "huggingface"):
        raise UserError(
            f"tokenizer.kind {kind!r} is not one of bytes, micro, sentencepiece, huggingface"
        )
    if path is None or not path.exists():
        raise UserError(f"tokenizer.path {path}: no such file; a {kind} tokenizer needs one")
    if kind == "sentencepiece":
        return SentencePieceTokenizer(path)
    return HuggingFaceTokenizer(path)


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """The tokenizer stored with a checkpoint, in `tokenizer/` or beside the weights.

    Raises:
        UserError: none is there.
    """
    for folder in (model_dir / "tokenizer", model_dir):
        if (folder / "bytes.json").is_file():
            return ByteTokenizer()
        if (folder / "tokenizer.json").is_file() and not _is_derived(folder):
            return HuggingFaceTokenizer(folder)
        if (folder / "tokenizer.model").is_file():
            return SentencePieceTokenizer(folder / "tokenizer.model")
    raise UserError(
        f"{model_dir}: holds no tokenizer (tokenizer.json, tokenizer.model or bytes.json); "
        "set tokenizer.kind and tokenizer.path"
    )


def _is_derived(folder: Path) -> bool:
    """Whether an export made tokenizer.json from the tokenizer.model beside it."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    source = config.get(DERIVED_FROM) if isinstance(config, dict) else None
    return source == "tokenizer.model" and (folder / source).is_file()


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Refuse a tokenizer whose ids the model does not have.

    Raises:
        UserError: the vocabulary of the model is the smaller one.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens and the model only "
            f"{vocab_size}; use the tokenizer this checkpoint was trained with"
        )


_STRANGER = "\ue000"
"""A private-use character: no vocabulary has a piece with it."""


def _ends(offsets: Sequence[tuple[int, int]], length: int) -> list[int]:
    """Ends of tokens from `(begin, end)`; one that covers nothing goes with the character there."""
    ends = (max(end, min(begin + 1, length)) for begin, end in offsets)
    return list(accumulate(ends, max))


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normaliser or pre-tokeniser of tokenizer.json that puts nothing before a text."""
    kind = None if part is None else part["type"]
    if part is None or kind == "Prepend":
        return None
    if kind == "Metaspace":
        return part | {"prepend_scheme": "never"}
    if kind == "ByteLevel":
        return part | {"add_prefix_space": False}
    if kind == "Sequence" and "normalizers" in part:
        kept = [_without_prefix(inner) for inner in part["normalizers"]]
        return part | {"normalizers": [inner for inner in kept if inner is not None]}
    if kind == "Sequence":  # the first alone: later ones see words, which keep their spaces
        inner = part["pretokenizers"]
        return part | {"pretokenizers": [*map(_without_prefix, inner[:1]), *inner[1:]]}
    return part


def _known(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
