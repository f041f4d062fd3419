"""The `data` section of a recipe and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from weighted_mtp.core.config.sampling import SamplingConfig
from weighted_mtp.core.config.section import NonNegativeInt, PositiveInt, Section, Seed
from weighted_mtp.core.config.text import TextConfig


class MicroConfig(Section):
    """Embedded micro tasks to generate when `data.source` is `micro`.

    Attributes:
        families: problem families by label; null uses all up to `max_difficulty`.
        max_constant: largest constant that may occur in a problem; null sets no limit.
        marked_names: end each function name in a random suffix that the model must copy from the
            instruction.
        max_difficulty: hardest problems to generate, from 1 to 11.
        n_problems: training problems to generate.
        n_validation: held-out problems to generate.
        correct_per_problem: correct solutions of each problem.
        incorrect_per_problem: incorrect solutions of each problem.
        seed: seed of the generator.
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
    """Training and validation data.

    Attributes:
        source: embedded micro tasks, JSONL rows, or running text.
        train: JSONL file of training rows.
        validation: JSONL file of held-out rows; null trains without validation.
        cache_dir: directory where prepared rows and tokens are cached between runs; null uses
            the default cache directory.
        template: prompt template put around instruction and input; `chat` is the tokenizer's own
            chat template, `raw` puts nothing around them.
        max_length: maximum length of a row, or of a window of text, in tokens.
        joint: tokenize prompt and response as one text instead of separately.
        packing: concatenate rows up to `max_length` with attention kept within each row;
            `training.micro_batch_size` then counts packed rows. The loss does not change.
        workers: background processes per rank that build batches; 0 builds them in the training
            process.
        processes: processes that convert and tokenize the data before training; null uses one per
            CPU core where that is faster.
        pad_to_multiple: pad batches to a multiple of this many tokens.
        states: directory of stored trunk states of the training rows, from `weighted-mtp prepare
            states`; the trunk then reads validation rows only. For `training.adapt` heads.
    """

    source: Literal["micro", "jsonl", "text"] = "jsonl"
    train: Path | None = None
    validation: Path | None = None
    micro: MicroConfig = MicroConfig()
    text: TextConfig = TextConfig()
    cache_dir: Path | None = None
    sampling: SamplingConfig = SamplingConfig()
    template: Literal["alpaca", "short", "raw", "chat"] = "alpaca"
    max_length: Annotated[int, Field(gt=1)] = 2048
    joint: bool = False
    packing: bool = False
    workers: NonNegativeInt = 0
    processes: PositiveInt | None = None
    pad_to_multiple: PositiveInt = 8
    states: Path | None = None

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
        no_rows = ("train", "validation", "sampling", "joint", "states")
        for key in no_rows if self.source == "text" else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"data.{key} has no effect with data.source text; take it away")
        return self
