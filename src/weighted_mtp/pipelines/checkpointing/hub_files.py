"""What an export to Hugging Face's layout says of tokens: the model's files, or derived ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.data.tokens.derived import derived_files
from weighted_mtp.data.tokens.tokenizers import Tokenizer, load_tokenizer
from weighted_mtp.models.meta_mtp.checkpoints import find_tokenizer_files
from weighted_mtp.models.meta_mtp.layouts.side_files import read_config_fields, tokenizer_file

log = get_logger(__name__)


def hf_side_files(
    model_dir: Path, vocab_size: int, folder: Path
) -> tuple[list[Path], dict[str, Any]]:
    """The tokenizer files and `config.json` fields of an export.

    What the model folder says goes out as it is. Ids that it does not name are the tokenizer's, and
    a tokenizer that `AutoTokenizer` could not read gets files with which it gives the same ids.

    Args:
        vocab_size: of the model; ids that it does not have are not named.
        folder: an empty one, for derived files.

    Raises:
        UserError: a configuration file cannot be read.
    """
    files, fields = find_tokenizer_files(model_dir), read_config_fields(model_dir)
    source = tokenizer_file(model_dir)
    if source is None:
        return files, fields
    try:
        tokenizer = load_tokenizer(model_dir)
    except UserError as error:  # of a kind that we do not know; the weights can be converted
        log.warning("%s; its files are copied as they are", error)
        return files, fields
    named = {key: x for key, x in _ids(tokenizer).items() if x is not None and x < vocab_size}
    if {"tokenizer.json", "tokenizer_config.json"}.isdisjoint(file.name for file in files):
        derived = derived_files(tokenizer, source)
        if derived is None:
            log.warning(
                "%s: Hugging Face's library cannot give this tokenizer's ids, so the export has no "
                "tokenizer.json; read it with weighted-mtp",
                model_dir,
            )
        for name, text in (derived or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
    return [*files, *folder.iterdir()], {**named, **fields}


def _ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    padding = None if tokenizer.pad_id == tokenizer.eos_id else tokenizer.pad_id
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": padding,
    }
