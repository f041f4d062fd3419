"""The `data` section of a recipe and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from weighted_mtp.core.config.sampling import SamplingConfig
from weighted_mtp.core.config.section import NonNegativeInt, PositiveInt, Section, Seed
from weighted_mtp.core.config.text import TextConfig


class MicroConfig(Section):
    """Which embedded problems to generate (micro_tasks/).

    Attributes:
        families: their labels; None takes all of at most `max_difficulty`.
        max_constant: only problems whose numbers are no larger.
        marked_names: function names end in a random mark that must be copied from the instruction.
    """

    families: tuple[str, ...] | None = None
    max_constant: PositiveInt | None = None
    marked_names: bool = True
    max_difficulty: Annotated[int, Field(ge=1, le=11)] = 11
    n_problems: PositiveInt = 4000
    n_validation: PositiveInt = 200
    correct_per_problem: PositiveInt = 1
    incorrect_per_problem: NonNegativeInt = 0
    seed: Seed = 0


class DataConfig(Section):
    """What to train and validate on.

    Attributes:
        cache_dir: where prepared rows and tokens are kept between runs (core/cache.py).
        max_length: tokens of a row, or of a window of text.
        template: how rows become text; `chat` is the chat template of the tokenizer.
        joint: tokenise prompt and response as one text, see `AlpacaCollator`.
        packing: put several rows into one of `max_length`, none seeing another;
            `training.micro_batch_size` then counts packed rows. The loss is the same.
        workers: processes that make batches ahead of the training.
        processes: that convert and tokenise, once; None takes one a core where that pays.
        pad_to_multiple: batches are padded to a multiple of so many positions.
    """

    source: Literal["micro", "jsonl", "text"] = "jsonl"
    train: Path | None = None
    validation: Path | None = None
    micro: MicroConfig = MicroConfig()
    text: TextConfig = TextConfig()
    cache_dir: Path | None = None
    sampling: SamplingConfig = SamplingConfig()
    template: Literal["alpaca", "short", "chat"] = "alpaca"
    max_length: Annotated[int, Field(gt=1)] = 2048
    joint: bool = False
    packing: bool = False
    workers: NonNegativeInt = 0
    processes: PositiveInt | None = None
    pad_to_multiple: PositiveInt = 8

    @model_validator(mode="after")
    def _has_files(self) -> DataConfig:
        if self.source == "jsonl" and self.train is None:
            raise ValueError(
                "data.source jsonl needs data.train: --set data.train=FILE.jsonl, or --preset micro"
            )
        if self.source == "text" and not self.packing:
            raise ValueError("data.source text is read in packed windows: set data.packing=true")
        if self.template == "chat" and self.joint:
            raise ValueError("data.joint has no effect with data.template chat; take it away")
        for key in ("train", "validation", "sampling", "joint") if self.source == "text" else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"data.{key} has no effect with data.source text; take it away")
        return self
