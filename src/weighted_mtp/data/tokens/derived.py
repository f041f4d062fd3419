"""Files with which `AutoTokenizer` gives the ids of a tokenizer that has no `tokenizer.json`.

Built from the SentencePiece model itself, and compared with it: transformers' own conversion
depends on its version, and its result on the class that a configuration names.

As in every Hugging Face tokenizer, text that spells a special token is that token there, unless
`split_special_tokens=True`. Ours never reads one out of text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import unpack
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from weighted_mtp.core.input_files import read_regular
from weighted_mtp.core.types import DERIVED_FROM
from weighted_mtp.data.tokens.sentencepiece import SentencePieceTokenizer
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece's piece types
_UNIGRAM, _BPE = 1, 2
_SPACE = "▁"
_PROBES = (
    "def f(xs):\n    if xs:\n\t\treturn xs[0]  # two  spaces\n\n\n",
    "    indented",
    " x",
    "\t\ttabs \t mixed\r\n",
    "\n\n  \n",
    "a  b   c     d  ",
    "é漢😀ﬁ½ \u200b\u00a0|\ue000",
    "__init__(self, *args)->None:pass;x=={'a':1,\"b\":[2.5e-3]}",
    "aaaaaaaaaaaaa ======= ----- ####### (((((((",
    f"{_SPACE}already{_SPACE * 2}escaped",
    "",
)


def derived_files(tokenizer: Tokenizer, source: Path) -> dict[str, str] | None:
    """`tokenizer.json` and `tokenizer_config.json` of a byte or SentencePiece tokenizer, by name.

    Args:
        source: the file that the tokenizer was loaded from.

    Returns:
        The files; None where Hugging Face's library cannot give the same ids.
    """
    probes = list(_PROBES)
    if isinstance(tokenizer, ByteTokenizer):
        backend = _byte_backend()
        names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    elif isinstance(tokenizer, SentencePieceTokenizer):
        model = _read_model(source)
        if model.kind != _BPE or model.normalises:  # where the two libraries can differ
            return None
        backend = _sentencepiece_backend(model)
        probes += [f"{symbol}{symbol} x {symbol}\n  y{symbol}" for symbol in model.symbols]
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": model.unk}
        if tokenizer.pad_id != tokenizer.eos_id:
            ids["pad_token"] = tokenizer.pad_id
        names = {key: model.pieces[i].text for key, i in ids.items() if i is not None}
    else:
        return None
    bos = names.get("bos_token")
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_id)]
        )
    if any(_ids(backend, text) != tokenizer.encode(text) for text in probes):
        return None
    config = {
        DERIVED_FROM: source.name,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        # transformers 4 also returns token_type_ids by default, which Llama's generate refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        **names,
    }
    return {
        "tokenizer.json": backend.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }


def _ids(backend: Any, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def _byte_backend() -> Any:
    """Bytes as byte-level BPE without merges."""
    alphabet = _byte_alphabet()
    backend = Backend(models.BPE({char: byte for byte, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(_special(["<|pad|>", "<|bos|>", "<|eos|>"]))
    return backend


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE (as GPT-2 defined it)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _special(texts: Sequence[str]) -> list[Any]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


# --- SentencePiece -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class _Model:
    """What a SentencePiece model file says (`sentencepiece_model.proto`).

    Attributes:
        prefix: a space is put before every text.
        normalises: characters are replaced, or spaces joined and trimmed.
    """

    pieces: list[_Piece]
    kind: int
    byte_fallback: bool
    prefix: bool
    normalises: bool

    @property
    def symbols(self) -> list[str]:
        """Pieces that a user defined: always a token of their own."""
        return [piece.text for piece in self.pieces if piece.kind == _USER_DEFINED]

    @property
    def unk(self) -> int:
        return next(i for i, piece in enumerate(self.pieces) if piece.kind == _UNKNOWN)


def _read_model(path: Path) -> _Model:
    pieces: list[_Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(read_regular(path)):
        if number == 1:
            fields = dict(_fields(value))
            score = unpack("<f", fields.get(2, bytes(4)))[0]
            pieces.append(_Piece(fields[1].decode(), score, fields.get(3, _NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    return _Model(
        pieces,
        trainer.get(3, _UNIGRAM),
        bool(trainer.get(35, 0)),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(2, b"") or normalizer.get(4, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protocol buffer message, without its schema: a whole number,
    or the bytes of anything else."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, data[place : place + size]
        place += size


def _sentencepiece_backend(model: _Model) -> Any:
    """The same tokenizer in Hugging Face's library."""
    vocabulary = {piece.text: i for i, piece in enumerate(model.pieces)}
    symbols = model.symbols
    core = models.BPE(
        vocabulary,
        _merges(model),
        unk_token=model.pieces[model.unk].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=bool(symbols),  # a symbol that was split off is a token as it is
    )
    backend = Backend(core)
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if model.prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if model.prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens(
        _special([p.text for p in model.pieces if p.kind in (_UNKNOWN, _CONTROL)])
    )
    if symbols:  # not as added tokens: the text after one would get a prefix of its own
        longest_first = sorted(symbols, key=len, reverse=True)
        pattern = Regex("|".join(map(re.escape, longest_first)))
        backend.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    return backend


def _merges(model: _Model) -> list[tuple[str, str]]:
    """Every way to put a piece together of two others, best scores first."""
    scores = {p.text: p.score for p in model.pieces if p.kind == _NORMAL}
    ranked = sorted(scores, key=lambda text: -scores[text])  # stable: by id where scores tie
    return [
        (text[:cut], text[cut:])
        for text in ranked
        for cut in range(len(text) - 1, 0, -1)
        if text[:cut] in scores and text[cut:] in scores
    ]
