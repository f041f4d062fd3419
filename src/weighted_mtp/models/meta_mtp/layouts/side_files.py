"""Files that go with the weights: the tokenizer, its chat template, token ids, generation settings.

A Hugging Face folder keeps them beside the weights. The native layout keeps the files, unchanged,
in `tokenizer/`, and what `config.json` says of ids and generation in `configs/generation.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weighted_mtp.core.types import DERIVED_FROM
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile

GENERATION_CONFIG = "generation_config.json"
CONFIG_FIELDS = Path("configs", "generation.json")

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


def find_side_files(model_dir: Path) -> dict[str, Path]:
    """The files by name, a name being the path inside `tokenizer/` or, in a folder without one,
    beside the weights. Files that an export derived from others are left out."""
    folder = model_dir / "tokenizer"
    if folder.is_dir():
        paths = [path for path in folder.rglob("*") if path.is_file()]
    else:
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


def find_tokenizer(model_dir: Path) -> Path | None:
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
        if value is not None and (key.endswith("_token_id") or key in _GENERATION_KEYS)
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
        files = {name: path.read_bytes() for name, path in find_side_files(model_dir).items()}
        return cls(files, read_config_fields(model_dir))

    @property
    def has_tokenizer(self) -> bool:
        return any(name in self.files for name in _LOADABLE)

    def without_tokenizer(self) -> SideFiles:
        """The generation settings alone, for a model that gets another tokenizer."""
        kept = {k: v for k, v in self.files.items() if k == GENERATION_CONFIG}
        return replace(self, files=kept)

    def stopping_at(self, eos_id: int) -> SideFiles:
        """The same, with `eos_id` among the ids that end a text: training ends responses with it.
        Where nothing names such ids nothing changes: the tokenizer names them."""
        generation = _parsed(self.files.get(GENERATION_CONFIG))
        if generation.get("eos_token_id") is not None:
            ids = _with(generation["eos_token_id"], eos_id)
            if ids == generation["eos_token_id"]:
                return self
            text = json.dumps({**generation, "eos_token_id": ids}, indent=2) + "\n"
            return replace(self, files={**self.files, GENERATION_CONFIG: text.encode()})
        ids = self.config_fields.get("eos_token_id")
        if ids is None:
            return self
        fields = {**self.config_fields, "eos_token_id": _with(ids, eos_id)}
        return replace(self, config_fields=fields)

    def write(self, directory: Path) -> None:
        """Write the files, bit for bit, into a directory that exists."""
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        fields = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}  # carried as it is; nothing is read from it
    return fields if isinstance(fields, dict) else {}


def _with(ids: Any, eos_id: int) -> Any:
    known = ids if isinstance(ids, list) else [ids]
    return ids if eos_id in known else [*known, eos_id]
