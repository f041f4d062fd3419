"""The files of a tokenizer's folder: what they say about special tokens, and their saved copies.

The bytes are kept in memory, so that a checkpoint saved hours later carries exactly what was
loaded, whatever has happened to the folder in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import InvalidTextError, parse_json, read_regular
from weighted_mtp.core.logging import get_logger

CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
_KNOWN = (
    "tokenizer.json",
    "tokenizer.model",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION,  # names the tokens that generation stops at
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
_CHAT = "chat_template.jinja"
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_CODE = "def f(a, b):\n\tif a:\n        return  b  # x\n\n"
log = get_logger(__name__)


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer was loaded from.

    Attributes:
        folder: where the files were.
        contents: their bytes by name.
        model_stops: `eos_token_id` of the model's `config.json`, which is not copied with them.
    """

    folder: Path
    contents: Mapping[str, bytes]
    model_stops: frozenset[int] = frozenset()

    @classmethod
    def read(cls, folder: Path, without: Iterable[str] = ()) -> TokenizerFiles:
        """Read the files of a folder: all in one named `tokenizer`, elsewhere those known by name.

        Args:
            without: names to leave out.

        Raises:
            UserError: a file cannot be read, or config.json is damaged.
        """
        names: Iterable[str] = _KNOWN
        try:
            if folder.name == "tokenizer" and folder.is_dir():
                names = sorted(path.name for path in folder.iterdir())
            contents = {
                name: read_regular(folder / name)
                for name in names
                if name not in without and (folder / name).is_file()
            }
            config = folder / "config.json"
            model = read_regular(config) if config.is_file() else b"{}"
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from error
        stops = _token_ids(_parsed(model, config), config)
        return cls(folder, contents, stops)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's object; empty where there is no such file.

        Raises:
            UserError: it is not a JSON object.
        """
        return _parsed(self.contents.get(name, b"{}"), self.folder / name)

    def named(self) -> dict[str, str]:
        """The tokens named for a role: `{"eos": "</s>", …}`.

        The newer `tokenizer_config.json` (which lists the added tokens) has the last word; an older
        one yields to `special_tokens_map.json`. transformers reads them in this order.
        """
        found = {}
        for table in self._tables():
            for role in _NAMED:
                text = _content(table.get(f"{role}_token"))
                if text is not None:
                    found[role] = text
        return found

    def chat_template(self) -> tuple[str, Path] | None:
        """The Jinja text of the chat template that transformers would take, and the file that
        contains it; None where there is none.

        Raises:
            UserError: it is not text.
        """
        path = self.folder / _CHAT
        if _CHAT in self.contents:
            try:
                return self.contents[_CHAT].decode("utf-8"), path
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it so") from error
        found, path = self.json(CONFIG).get("chat_template"), self.folder / CONFIG
        if isinstance(found, list):  # several by name
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default")
            if found is None:
                raise UserError(f"{path}: its chat templates have none named 'default'; name one")
        if found is not None and not isinstance(found, str):
            raise UserError(f"{path}: chat_template must be text, it is {type(found).__name__}")
        return None if found is None else (found, path)

    def template_variables(self) -> dict[str, str]:
        """Names of special tokens that a chat template may use: `{"eos_token": "</s>", …}`."""
        extra = self.json(CONFIG).get("extra_special_tokens")
        named = extra.items() if isinstance(extra, dict) else ()
        texts = {name: text for name, token in named if (text := _content(token)) is not None}
        return {**texts, **{f"{role}_token": text for role, text in self.named().items()}}

    def special(self) -> set[str]:
        """Every token that a config calls special, whether for a role or not."""
        found = set(self.named().values())
        for table in self._tables():
            for key in ("additional_special_tokens", "extra_special_tokens"):
                more = table.get(key) or ()
                values = more.values() if isinstance(more, dict) else more
                found.update(text for text in map(_content, values) if text is not None)
        found.update(token["content"] for token in self.added() if token["special"])
        return found

    def added(self) -> list[dict[str, Any]]:
        """Added tokens that the configs list, by ascending id, as `tokenizer.json` writes them.

        Raises:
            UserError: a list is damaged.
        """
        tokens: dict[int, dict[str, Any]] = {}
        try:
            for text, number in self.json("added_tokens.json").items():
                tokens[int(number)] = added_token(str(text), int(number), special=False)
            for key, given in self.json(CONFIG).get("added_tokens_decoder", {}).items():
                token = added_token(str(given["content"]), int(key), special=False)
                flags = {flag: bool(given.get(flag, value)) for flag, value in token.items()}
                tokens[int(key)] = {**flags, **{x: token[x] for x in ("id", "content")}}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder}: the added tokens of {CONFIG} or added_tokens.json are damaged "
                f"({type(error).__name__}: {one_line(error, 80)})"
            ) from error
        return [tokens[number] for number in sorted(tokens)]

    def stops(self) -> frozenset[int]:
        """All ids that the model's configs call an end of sequence."""
        return self.model_stops | self._generation_stops()

    def save(self, directory: Path, eos_id: int) -> None:
        """Write the files as they came, bit for bit.

        Where only config.json named further ends of sequence, `generation_config.json` gets them.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.contents.items():
            (directory / name).write_bytes(content)
        if self.stops() - self._generation_stops() - {eos_id}:
            ends = [eos_id, *sorted(self.stops() - {eos_id})]
            config = self.json(GENERATION) or {"_from_model_config": True}
            text = json.dumps({**config, "eos_token_id": ends}, indent=2) + "\n"
            (directory / GENERATION).write_text(text, encoding="utf-8")

    def _generation_stops(self) -> frozenset[int]:
        return _token_ids(self.json(GENERATION), self.folder / GENERATION)

    def _tables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        config, table = self.json(CONFIG), self.json("special_tokens_map.json")
        return (table, config) if "added_tokens_decoder" in config else (config, table)


def added_token(text: str, number: int, special: bool) -> dict[str, Any]:
    """An added token as `tokenizer.json` lists it, that is looked for in the text as it is."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": special}


def well_formed(text: str) -> str:
    """The text itself.

    Raises:
        UserError: it contains a lone surrogate, which UTF-8 cannot encode and no tokenizer reads.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"a text contains a lone surrogate ({text[error.start]!a} at character "
            f"{error.start + 1}), so it is not valid Unicode; remove it"
        ) from error
    return text


def token_ends(offsets: Sequence[tuple[int, int]], length: int) -> list[int]:
    """Ends of tokens from `(begin, end)`; one that covers nothing goes with the character there."""
    ends = (max(end, min(begin + 1, length)) for begin, end in offsets)
    return list(accumulate(ends, max))


def check_round_trip(read_back: Callable[[str], str], where: Path) -> None:
    """Encode and decode a few lines of code.

    A tokenizer that joins words is refused: what it trains has no spaces. One that only changes
    indentation or characters may be meant for prose, so this is a warning.

    Args:
        read_back: decodes what it encodes.

    Raises:
        UserError: spaces between words are lost.
    """
    back = read_back(_CODE)
    if back.lstrip(" ") == _CODE:
        return
    if back.split() != _CODE.split() and "".join(back.split()) == "".join(_CODE.split()):
        raise UserError(
            f"{where}: this tokenizer loses the spaces between words ({_CODE[:12]!r} comes back as "
            f"{back[:12]!r}); the file was probably rewritten by another program: use the original"
        )
    log.warning(
        f"{where}: code does not survive this tokenizer ({_CODE!r} comes back as {back!r}); do not "
        "train programs with it"
    )


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = parse_json(content)
    except InvalidTextError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: must be a JSON object, it is {type(found).__name__}")
    return found


def _token_ids(config: Mapping[str, Any], path: Path) -> frozenset[int]:
    """`eos_token_id`: an id, a list of them or null."""
    found = config.get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list) else [found]
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int):
            raise UserError(f"{path}: eos_token_id must be token ids, it has {number!r}")
    return frozenset(number for number in ids if number >= 0)  # -1 stands for none


def _content(token: Any) -> str | None:
    """The text of a token that a config gives as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None
