"""The `data.text` section of a recipe: which text to pretrain on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from weighted_mtp.core.config.section import Fraction, Section


class TextConfig(Section):
    """Running text, read as packed windows when `data.source` is `text`.

    Attributes:
        path: directory or file; `python-stdlib` is the standard library of the running Python.
        validation_path: directory or file of held-out text; null holds out
            `validation_fraction` of the documents of `path`.
        key: field of JSONL lines, or column of Parquet and Arrow files, that contains the text.
        suffixes: suffixes of the files read from a directory; null reads all supported ones.
        separator: line that separates the documents of a text file; null makes a file one document.
        validation_fraction: fraction of documents held out, chosen by a hash of their content.
    """

    path: Literal["python-stdlib"] | Path = "python-stdlib"
    validation_path: Path | None = None
    key: str = "text"
    suffixes: tuple[str, ...] | None = None
    separator: str | None = None
    validation_fraction: Fraction = 0.02

    @model_validator(mode="after")
    def _readable(self) -> TextConfig:
        for suffix in self.suffixes or ():
            if not suffix.startswith(".") or suffix == ".":
                raise ValueError(f"data.text.suffixes: {suffix!r} should look like '.py'")
        if self.suffixes == ():
            raise ValueError("data.text.suffixes is empty: give some, or null for all known")
        if self.separator is not None and (not self.separator or "\n" in self.separator):
            raise ValueError("data.text.separator is one line of at least one character, or null")
        return self
