"""Files that go with the weights: the tokenizer, its chat template, token ids, generation settings.

A Hugging Face folder keeps them beside the weights. The native layout keeps all in `tokenizer/`:
the files unchanged, and in a `config.json` what that of the model said of ids and generation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weighted_mtp.core.input_files import InvalidTextError, parse_json, read_regular
from weighted_mtp.core.types import DERIVED_FROM
from weighted_mtp.models.meta_mtp.layouts.atomic import copy_files
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json

GENERATION_CONFIG = "generation_config.json"
CONFIG_FIELDS = Path("tokenizer", "config.json")

_NAMES = (
    "tokenizer.model*",  # Mistral numbers the versions: tokenizer.model.v3
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "bytes.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    GENERATION_CONFIG,
)
_LOADABLE = ("tokenizer.json", "tokenizer.model", "bytes.json")
# transformers 4 allows generation settings in config.json; the model then generates with them.
_GENERATION_KEYS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "num_return_sequences",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)


def write_tokenizer_folder(
    directory: Path, files: Sequence[Path], config_fields: Mapping[str, Any]
) -> None:
    """Copy the files into `tokenizer/`, and write beside them what the model's `config.json` said;
    nothing where there is neither."""
    if files or config_fields:
        (directory / "tokenizer").mkdir()
        copy_files(files, directory / "tokenizer")
    if config_fields:
        write_json(directory / CONFIG_FIELDS, dict(config_fields))


def find_side_files(model_dir: Path) -> dict[str, Path]:
    """The files by name, a name being the path inside `tokenizer/` or, in a folder without one,
    beside the weights. Files that an export derived from others are left out."""
    folder, fields = model_dir / "tokenizer", model_dir / CONFIG_FIELDS
    paths = [path for path in folder.rglob("*") if path.is_file() and path != fields]
    if not paths:
        folder = model_dir
        paths = [path for name in _NAMES for path in folder.glob(name) if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    beside = model_dir / GENERATION_CONFIG
    if GENERATION_CONFIG not in found and beside.is_file():
        found[GENERATION_CONFIG] = beside
    settings = found.get("tokenizer_config.json")
    if settings is not None and JsonFile.read(settings).fields.get(DERIVED_FROM) in found:
        del found["tokenizer_config.json"]
        found.pop("tokenizer.json", None)
    return found


def tokenizer_file(model_dir: Path) -> Path | None:
    """The file that the tokenizer is loaded from, None where there is none."""
    found = find_side_files(model_dir)
    return next((found[name] for name in _LOADABLE if name in found), None)


def read_config_fields(model_dir: Path) -> dict[str, Any]:
    """What the model's configuration says of token ids and generation; absent and null fields say
    nothing.

    Raises:
        UserError: the file cannot be read.
    """
    if (model_dir / CONFIG_FIELDS).is_file():
        fields = JsonFile.read(model_dir / CONFIG_FIELDS).fields
    elif (model_dir / "config.json").is_file():
        fields = JsonFile.read(model_dir / "config.json").fields
    else:
        return {}
    return {
        key: value
        for key, value in fields.items()
        if value is not None and (_is_id(key) or key in _GENERATION_KEYS)
    }


@dataclass(frozen=True)
class SideFiles:
    """Side files in memory: the folder they came from may be gone when they are saved.

    Attributes:
        files: content by name.
        config_fields: see `read_config_fields`.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    config_fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, model_dir: Path) -> SideFiles:
        """Read those of a model folder in any layout.

        Raises:
            UserError: a configuration file cannot be read.
        """
        files = {name: read_regular(path) for name, path in find_side_files(model_dir).items()}
        return cls(files, read_config_fields(model_dir))

    @property
    def has_tokenizer(self) -> bool:
        return any(name in self.files for name in _LOADABLE)

    def without_tokenizer(self) -> SideFiles:
        """The generation settings without ids, for a model that gets another tokenizer."""
        generation = _parsed(self.files.get(GENERATION_CONFIG))
        settings = {k: v for k, v in generation.items() if not _is_id(k)}
        files = {GENERATION_CONFIG: _json(settings)} if settings else {}
        return SideFiles(files, {k: v for k, v in self.config_fields.items() if not _is_id(k)})

    def stopping_at(self, eos_id: int) -> SideFiles:
        """The same, with `eos_id` among the ids that end a text: training ends responses with it.
        Where nothing names such ids nothing changes: they are the tokenizer's."""
        files, fields = dict(self.files), dict(self.config_fields)
        said = fields.get("eos_token_id")
        if said is not None:
            fields["eos_token_id"] = _with(said, eos_id)
        generation = _parsed(files.get(GENERATION_CONFIG))
        own = generation.get("eos_token_id")
        if generation and (own is None or _with(own, eos_id) != own):  # it hides config.json's
            ids = _with([] if own is None else own, eos_id)
            files[GENERATION_CONFIG] = _json({**generation, "eos_token_id": ids})
        return SideFiles(files, fields)

    def write(self, directory: Path) -> None:
        """Write the files, bit for bit, into a directory that exists; what is there stays."""
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                path.write_bytes(content)


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        fields = parse_json(content or b"{}")
    except InvalidTextError:
        return {}  # carried as it is; nothing is read from it
    return fields if isinstance(fields, dict) else {}


def _json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()


def _is_id(key: str) -> bool:
    return key.endswith("_token_id")


def _with(ids: Any, eos_id: int) -> Any:
    known = ids if isinstance(ids, list) else [ids]
    if eos_id in known:
        return ids
    return [*known, eos_id] if known else eos_id
