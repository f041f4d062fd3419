"""Tokenizers that are a `tokenizer.json`, read without transformers.

transformers chooses a class by name and lets it rebuild parts of the tokenizer; some versions
(5.3.0 among them) give a byte-level file the parts of a SentencePiece one, and all spaces are lost.
Here the ids are what `tokenizer.json` says, whatever is installed.

Control tokens are renamed in memory to something that no text spells, so that neither the search
for added tokens nor the model (a merge, a whole word, a Unigram piece) can turn text into one. This
also survives pickling, as the library's own switch (`encode_special_tokens`) does not.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import parse_json, read_regular
from weighted_mtp.data.tokens.files import (
    CONFIG,
    TokenizerFiles,
    added_token,
    check_round_trip,
    token_ends,
    well_formed,
)

_FILE = "tokenizer.json"
_CONTENT_VERSION = 2  # of what text becomes; 1 parsed control tokens in it
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPELLED_BYTE = r"<(?=0x[0-9A-F]{2}>)"
_BEGINS_WITH_BOS = ("Llama", "CodeLlama", "Gemma")  # by default, says their tokenizer class

State = dict[str, Any]  # of tokenizer.json


class HuggingFaceTokenizer:
    """A folder with `tokenizer.json` and its configs, or that file.

    Control tokens are those flagged special, those that a config names, and the ends of sequence.
    Other added tokens (runs of spaces, `<think>`) are part of the vocabulary: text that spells them
    becomes them, as in every other program that trains with the file.
    """

    def __init__(self, path: Path) -> None:
        folder = path if path.is_dir() else path.parent
        files = TokenizerFiles.read(folder)
        if not path.is_dir():
            try:
                contents = {**files.contents, _FILE: read_regular(path)}
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
            files = TokenizerFiles(folder, contents, files.model_stops)
        if _FILE not in files.contents:
            raise UserError(
                f"{folder}: not a Hugging Face tokenizer; it needs {_FILE} (for other formats, "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one)"
            )
        self._load(files)
        check_round_trip(lambda text: self.decode(self.encode(text)), folder / _FILE)

    @property
    def files(self) -> TokenizerFiles:
        """What it was loaded from."""
        return self._files

    def __getstate__(self) -> TokenizerFiles:
        return self._files

    def __setstate__(self, files: TokenizerFiles) -> None:
        self._load(files)

    def _load(self, files: TokenizerFiles) -> None:
        self._files = files
        where = files.folder / _FILE
        try:
            state = _with_added(parse_json(files.contents[_FILE]), files)
            ids = _vocabulary(state)
            self._choose_ids(state, ids, files)
            unknown = (files.named().get("unk"), _unknown(state["model"]))
            private = {**self.control, **{text: ids[text] for text in unknown if text in ids}}
            self._build(state, private)
        except UserError:
            raise
        except Exception as error:  # the Rust side raises plain Exception on a bad file
            raise UserError(
                f"{where}: not a Hugging Face tokenizer ({one_line(error, 160)}); use the original "
                "file"
            ) from error
        self._hidden = frozenset(private.values())
        self.vocab_size = max(ids.values()) + 1

    def _choose_ids(self, state: State, ids: Mapping[str, int], files: TokenizerFiles) -> None:
        """Set the ids of roles, and which tokens are control tokens."""
        named, stops = files.named(), files.stops()
        roles = {role: ids.get(text) for role, text in named.items()}
        eos = roles.get("eos", min(stops, default=None))
        if eos is None:
            raise UserError(f"{files.folder}: {CONFIG} names no eos_token that {_FILE} has; set it")
        self.eos_id = eos
        self.stop_ids = stops | {eos}
        pad = roles.get("pad")
        self.pad_id = eos if pad is None else pad
        # A config may name a BOS that no text begins with (SmolLM2's `<|im_start|>`).
        self.bos_id = roles.get("bos") if _adds_bos(state, files.json(CONFIG), named) else None
        special = files.special()
        control = {
            token["content"]: int(token["id"])
            for token in state["added_tokens"]
            if token["special"] or token["content"] in special or token["id"] in self.stop_ids
        }
        for role in ("bos", "eos"):  # also where tokenizer.json lists them as plain vocabulary
            number = roles.get(role)
            if number is not None:
                control[named[role]] = number
        for text in (_unknown(state["model"]), named.get("unk")):  # text may well be unknown
            if text in control and text not in (named.get("bos"), named.get("eos")):
                del control[text]
        self.control: Mapping[str, int] = control

    def _build(self, state: State, private: Mapping[str, int]) -> None:
        """Make the Rust tokenizer for content."""
        from tokenizers import Tokenizer as Backend

        mark = secrets.token_hex(8)  # drawn for each load, so that no text can contain it
        hidden = {text: f"\ufdd0{mark}{number}" for text, number in private.items()}
        unknown_ends = _unknown(state["model"]) in self.control
        backend = Backend.from_str(json.dumps(_content_only(state, hidden, unknown_ends)))
        for token in state["added_tokens"]:
            text = token["content"]
            found = backend.token_to_id(hidden.get(text, text))
            if found != token["id"]:
                raise UserError(
                    f"{self._files.folder}: the added token {text!r} has id {token['id']}, but "
                    f"{_FILE} gives it {found}; these files do not belong together"
                )
        pre_tokenizer = backend.pre_tokenizer
        self._prefixes = pre_tokenizer is not None and _metaspace_prefix(
            json.loads(pre_tokenizer.__getstate__())
        )
        self._mark, self._private = mark, private
        added = {token["content"] for token in state["added_tokens"]}
        self._names, self._not_added = hidden, [hidden[x] for x in private if x not in added]
        self._backend: Any = backend

    @cached_property
    def fingerprint(self) -> str:
        """Of the tokenizer itself, not of its file: programs write the same one in other orders.
        Two tokenizers that differ in their control tokens begin and end rows differently."""
        own = json.loads(self._backend.to_str().replace(self._mark, ""))
        parts = [_CONTENT_VERSION, own, sorted(self._private.items()), self.bos_id, self.eos_id]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return "huggingface-" + digest[:16]

    def encode(self, text: str) -> list[int]:
        text = " " * self._prefix_is_lost(text) + well_formed(text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        extra = self._prefix_is_lost(text)
        text = " " * extra + well_formed(text)
        found = self._backend.encode(text, add_special_tokens=False)
        ends = token_ends(found.offsets, len(text))
        return found.ids, [max(end - extra, 1) for end in ends] if extra else ends

    def encode_continuation(self, text: str) -> list[int]:
        ids: list[int] = self._unprefixed.encode(well_formed(text), add_special_tokens=False).ids
        return ids

    def encode_with_control(
        self, text: str, control: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of `text` in which some stretches are control tokens; nothing is added to it.

        Args:
            control: where in `text` the names of control tokens stand that mean these tokens, in
                order. Elsewhere a name is text, as it is for `encode`.

        Returns:
            The ids, and where in `text` each begins and ends. One that covers nothing goes with
            the character that follows.
        """
        parts: list[str] = []
        places: list[int] = []  # of each character that the backend sees
        done = 0
        for start, end in control:
            name = self._names[text[start:end]]
            parts += [text[done:start], name]
            places += [*range(done, start), *[start] * len(name)]
            done = end
        parts.append(text[done:])
        places += range(done, len(text) + 1)
        found = self._with_control.encode(well_formed("".join(parts)), add_special_tokens=False)
        return found.ids, [
            (places[a], max(places[b], min(places[a] + 1, len(text)))) for a, b in found.offsets
        ]

    @cached_property
    def _with_control(self) -> Any:
        """The backend, with those control tokens findable that tokenizer.json keeps as plain
        vocabulary."""
        if not self._not_added:
            return self._backend
        from tokenizers import AddedToken

        backend = self._backend.from_str(self._backend.to_str())
        backend.add_special_tokens(
            [AddedToken(x, special=True, normalized=False) for x in self._not_added]
        )
        return backend

    def _prefix_is_lost(self, text: str) -> bool:
        """Whether the tokenizer would not put its space before this text, because it begins with
        one. SentencePiece does, and all decoders take one away: the text would lose its own."""
        return self._prefixes and text.startswith((" ", "▁"))

    @cached_property
    def _unprefixed(self) -> Any:
        """The same, but it puts nothing before a text."""
        state = json.loads(self._backend.to_str())
        parts = {name: state[name] for name in ("normalizer", "pre_tokenizer")}
        changed = {name: _without_prefix(part) for name, part in parts.items()}
        if changed == parts:
            return self._backend
        return self._backend.from_str(json.dumps(state | changed))

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(i) for i in ids if i not in self._hidden and 0 <= i < self.vocab_size]
        text: str = self._backend.decode(kept, skip_special_tokens=False)
        return text

    def save(self, directory: Path) -> None:
        self._files.save(directory, self.eos_id)


def _vocabulary(state: State) -> dict[str, int]:
    vocab = state["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of piece and score
        vocab = {piece: number for number, (piece, _) in enumerate(vocab)}
    return {**vocab, **{token["content"]: int(token["id"]) for token in state["added_tokens"]}}


def _with_added(state: State, files: TokenizerFiles) -> State:
    """The tokenizer.json with the added tokens that only the configs list. A BOS or EOS that no
    file lists gets the next free id, as in transformers."""
    own = state["added_tokens"]
    texts = {token["content"] for token in own}
    own = [*own, *(token for token in files.added() if token["content"] not in texts)]
    ids = _vocabulary({**state, "added_tokens": own})
    for role in ("bos", "eos"):
        name = files.named().get(role)
        if name is not None and name not in ids:
            ids[name] = max(ids.values(), default=-1) + 1
            own.append(added_token(name, ids[name], special=True))
    return {**state, "added_tokens": own}


def _unknown(model: State) -> str | None:
    """The token that stands for what the vocabulary does not know."""
    if isinstance(model["vocab"], list):
        number = model.get("unk_id")
        return None if number is None else str(model["vocab"][number][0])
    return model.get("unk_token")


def _adds_bos(state: State, config: State, named: Mapping[str, str]) -> bool:
    """Whether a text begins with BOS: as the config says, else as the post-processor does it."""
    said = config.get("add_bos_token")
    if isinstance(said, bool):
        return said
    post = state.get("post_processor")
    parts = (post or {}).get("processors", [post])
    for part in parts:
        if part is not None and part["type"] == "TemplateProcessing":
            return bool(part["single"][0].get("SpecialToken", {}).get("id") == named.get("bos"))
        if part is not None and part["type"] in ("BertProcessing", "RobertaProcessing"):
            return bool(part["cls"][0] == named.get("bos"))
    family = str(config.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer")
    return post is None and family in _BEGINS_WITH_BOS


def _metaspace_prefix(part: State | None) -> bool:
    """Whether a pre-tokeniser puts "▁" before a text, unless there is one."""
    if part is None or part["type"] == "Sequence":
        return part is not None and any(map(_metaspace_prefix, part["pretokenizers"][:1]))
    return bool(part["type"] == "Metaspace" and part["prepend_scheme"] != "never")


def _content_only(state: State, hidden: Mapping[str, str], unknown_ends: bool) -> State:
    """A tokenizer.json that encodes content: control tokens have the names in `hidden`, no merge
    makes one, or the piece of a single byte, and nothing is added, cut or dropped at random.

    Args:
        unknown_ends: the unknown token is also a control token, such as EOS.
    """
    model = dict(state["model"])
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {hidden.get(piece, piece): number for piece, number in vocab.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    bytewise, pre_tokenizer = model.get("byte_fallback", False), state.get("pre_tokenizer")
    if "merges" in model:
        if unknown_ends:  # BPE can leave out what it does not know; EOS must not stand for it
            model["unk_token"] = None
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        made = ((pair, {*pair, "".join(pair)}) for pair in pairs)
        model["merges"] = [
            pair
            for pair, pieces in made
            if pieces.isdisjoint(hidden) and not (bytewise and any(map(_BYTE.fullmatch, pieces)))
        ]
        model["dropout"] = None
    if bytewise and ("merges" not in model or model.get("ignore_merges")):
        split = {"type": "Split", "pattern": {"Regex": _SPELLED_BYTE}, "invert": False}
        split["behavior"] = "MergedWithPrevious"
        parts = [part for part in (pre_tokenizer, split) if part is not None]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": parts}
    return {
        **state,
        "added_tokens": [
            {**token, "content": hidden.get(token["content"], token["content"])}
            for token in state["added_tokens"]
        ],
        "model": model,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,  # adds tokens, and may take spaces out of the offsets
        "truncation": None,
        "padding": None,
    }


def _without_prefix(part: State | None) -> State | None:
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
