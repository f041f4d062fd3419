"""Three kinds of tokenizer behind one small interface.

Text is content: `encode` never makes a control token (BOS, EOS, a chat marker) of it, whatever it
spells. Whoever builds a sequence adds control tokens by id. A tokenizer is stored in a folder
beside the weights it belongs to, and `load_tokenizer` tells from the files which kind it is. All of
them pickle, so that worker processes can have a copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.logging import get_logger, warn_once
from weighted_mtp.core.model_folder import find_tokenizer
from weighted_mtp.core.types import DERIVED_FROM
from weighted_mtp.data.tokens.files import well_formed
from weighted_mtp.data.tokens.huggingface import HuggingFaceTokenizer
from weighted_mtp.data.tokens.sentencepiece import SentencePieceTokenizer

log = get_logger(__name__)

MICRO_VOCABULARY = Path(__file__).parents[2] / "micro_tasks" / "vocabulary"
"""A small byte-level BPE tokenizer of the micro tasks, shipped with the package."""


class Tokenizer(Protocol):
    """What training and decoding ask of a tokenizer.

    Attributes:
        vocab_size: ids are below it.
        bos_id: starts a sequence; None where the tokenizer, left to itself, puts none there: a
            model then never saw one, or not as the start of every text.
        eos_id: ends a response.
        stop_ids: every id that ends what a model writes: `eos_id`, and what the model's
            config.json and generation_config.json list besides.
        pad_id: fills a batch; it is never a target, so any id will do.
        control: ids of the control tokens by name, such as `{"<|im_end|>": 2}`: the way to put one
            into a sequence. No text is ever encoded as one of them.
        fingerprint: equal for tokenizers that give the same ids.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int
    stop_ids: frozenset[int]
    pad_id: int
    control: Mapping[str, int]

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as content: no control token is added, and none made of what it spells.

        Raises:
            UserError: `text` contains a lone surrogate.
        """
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
        """Ids of `text` as a continuation of other text.

        Some tokenizers put a space before every text (Llama 2: "▁"); here it stays away. For text p
        that ends with a newline, `encode(p) + encode_continuation(r)` decodes to `p + r`.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, control tokens left out."""
        ...

    def save(self, directory: Path) -> None:
        """Write the files that `load_tokenizer` needs."""
        ...


def spelled_ends(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The names of BOS and of the ends of sequence. In text they are text; data that contains them
    was often meant for a program that parses them, and deserves a warning."""
    ends = {*tokenizer.stop_ids, tokenizer.bos_id}
    return tuple(sorted(name for name, number in tokenizer.control.items() if number in ends))


class ByteTokenizer:
    """UTF-8 bytes 0 … 255 and three specials: no file, no merges, every text round-trips."""

    vocab_size = 259
    pad_id = 256
    bos_id: int | None = 257
    eos_id = 258
    stop_ids = frozenset({258})
    control: Mapping[str, int] = {"<pad>": 256, "<bos>": 257, "<eos>": 258}
    fingerprint = "bytes-v1"

    def encode(self, text: str) -> list[int]:
        return list(well_formed(text).encode("utf-8"))

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        ids = self.encode(text)
        return ids, [end for end, char in enumerate(text, 1) for _ in char.encode("utf-8")]

    def encode_continuation(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "bytes.json").write_text(json.dumps({"type": self.fingerprint}) + "\n")


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


def load_tokenizer(model_dir: str | Path) -> Tokenizer:
    """The tokenizer stored with a checkpoint, in `tokenizer/` or beside the weights. `model_dir`
    may be all that `find_model` takes.

    Raises:
        UserError: none is there.
    """
    model_dir = find_tokenizer(model_dir)
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
        config = read_json(folder / "tokenizer_config.json")
    except (OSError, UserError, ValueError):
        return False
    source = config.get(DERIVED_FROM) if isinstance(config, dict) else None
    return source == "tokenizer.model" and (folder / source).is_file()


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Compare a tokenizer with the model it is used with.

    A model may have more tokens (padded to a round number): text never contains them. It may lack
    control tokens, such as a padding token that was added to the tokenizer alone: then batches are
    padded with EOS. Both get a warning.

    Raises:
        UserError: the model lacks other tokens.
    """
    own, excess = tokenizer.vocab_size, range(vocab_size, tokenizer.vocab_size)
    if vocab_size > own:
        warn_once(
            log,
            f"{where}: the model has {vocab_size} tokens, the tokenizer {own}; the others are "
            "never read, and what the model writes of them is left out of texts",
        )
    needed = {tokenizer.bos_id, tokenizer.eos_id}
    names = {number: name for name, number in tokenizer.control.items() if number not in needed}
    if any(number not in names for number in excess):
        raise UserError(
            f"{where}: the tokenizer has {own} tokens and the model only {vocab_size}; use the "
            "tokenizer this checkpoint was trained with"
        )
    if excess:
        warn_once(
            log,
            f"{where}: the model has {vocab_size} tokens and lacks the tokenizer's "
            f"{', '.join(names[number] for number in excess[:3])}; it is never fed to it",
        )
    if tokenizer.pad_id >= vocab_size:
        tokenizer.pad_id = tokenizer.eos_id
