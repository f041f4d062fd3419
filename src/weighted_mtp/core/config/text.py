"""The `data.text` section of a recipe: which text to pretrain on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from weighted_mtp.core.config.section import Fraction, Section


class TextConfig(Section):
    """Running text, read as packed windows (data/tokens/corpus.py, data/tokens/windows.py).

    Attributes:
        path: a folder, a file, or `python-stdlib`: the running Python's own standard library.
        validation_path: text held out; without it, `validation_fraction` of the documents of `path`
            is, chosen by a hash of what is in them.
        key: the text field of JSONL lines, the text column of Parquet and Arrow files.
        suffixes: of the files read from a folder; None takes all that are known.
        separator: the line between two documents of a text file; None makes a file one document.
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
