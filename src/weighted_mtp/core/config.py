"""Recipes: typed, strict, merged from a recipe, a preset and `--set` overrides.

    recipe (the objective, settings for 7B)  <  preset (another scale)  <  --set section.key=value

Unknown keys are refused with the nearest known one. The resolved recipe is saved with every run.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from weighted_mtp.core.errors import UserError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class Architecture(Section):
    """Shape of a model trained from scratch (the fields of `ModelArgs`; the vocabulary is the
    tokenizer's)."""

    dim: PositiveInt
    n_layers: PositiveInt
    n_heads: PositiveInt
    n_kv_heads: int | None = None
    n_future_tokens: PositiveInt = 4
    multiple_of: PositiveInt = 256
    ffn_dim_multiplier: PositiveFloat | None = None
    norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10000.0
    max_seq_len: PositiveInt = 2048
    tie_embeddings: bool = False


class ModelConfig(Section):
    """Where the weights come from: a checkpoint, or random ones of a given shape."""

    path: Path | None = None
    architecture: Architecture | None = None
    init_std: PositiveFloat = 0.02

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.architecture is None):
            raise ValueError(
                "give one of model.path (a checkpoint) and model.architecture (from scratch): "
                "--set model.path=DIR, or --preset micro"
            )
        return self


class TokenizerConfig(Section):
    """`auto` takes the tokenizer stored in the checkpoint; the others name one."""

    kind: Literal["auto", "bytes", "sentencepiece", "huggingface"] = "auto"
    path: Path | None = None


class MicroConfig(Section):
    """Which embedded problems to generate (data/micro_tasks)."""

    max_difficulty: Annotated[int, Field(ge=1, le=11)] = 11
    n_problems: PositiveInt = 4000
    n_validation: PositiveInt = 200
    correct_per_problem: PositiveInt = 1
    seed: Seed = 0


class DataConfig(Section):
    """What to train and validate on."""

    source: Literal["micro", "jsonl"] = "jsonl"
    train: Path | None = None
    validation: Path | None = None
    micro: MicroConfig = MicroConfig()
    template: Literal["alpaca", "short"] = "alpaca"
    max_length: Annotated[int, Field(gt=1)] = 2048
    pad_to_multiple: PositiveInt = 8

    @model_validator(mode="after")
    def _has_files(self) -> DataConfig:
        if self.source == "jsonl" and self.train is None:
            raise ValueError(
                "data.source jsonl needs data.train: --set data.train=FILE.jsonl, or --preset micro"
            )
        return self


class ObjectiveConfig(Section):
    """What is optimised.

    Attributes:
        heads: how many heads are trained; None means all the model has.
        head_weights: c_k of each head in the loss; None means 1/n each.
    """

    name: Literal["baseline", "ntp"]
    heads: PositiveInt | None = None
    head_weights: tuple[float, ...] | None = None


class TrainingConfig(Section):
    """The loop. Batch sizes count rows; `batch_size` is one optimizer step over all ranks."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-5
    final_learning_rate: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.03
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat = 1.0
    loss_chunk_rows: PositiveInt | None = None
    validate_every: PositiveInt = 100
    save_every: PositiveInt = 500
    keep_last: PositiveInt = 2
    log_every: PositiveInt = 1


class RuntimeConfig(Section):
    """Where it runs."""

    device: str = "auto"
    parallel: Literal["none", "ddp"] = "ddp"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    seed: Seed = 0
    threads: PositiveInt | None = None


class Recipe(Section):
    """Everything a training run depends on."""

    pipeline: Literal["baseline", "ntp"]
    objective: ObjectiveConfig
    model: ModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _cuts_evenly(self) -> Recipe:
        batch, micro = self.training.batch_size, self.training.micro_batch_size
        if batch % micro:
            raise ValueError(
                f"training.batch_size ({batch}) must be a multiple of training.micro_batch_size "
                f"({micro})"
            )
        return self

    def to_yaml(self) -> str:
        """The recipe as text that `load_recipe_file` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def available(folder: Path = RECIPES) -> list[str]:
    """Names of the shipped recipes (or, given `RECIPES / "presets"`, presets)."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_recipe(recipe: str, preset: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Merge a recipe (a shipped name or a YAML file), a preset and `section.key=value` overrides.

    Raises:
        UserError: no such recipe or preset, bad YAML, an unknown key or a value out of range.
    """
    merged = _read_yaml(_find(recipe, RECIPES, "recipe"))
    if preset is not None:
        merged = _merge(merged, _read_yaml(_find(preset, RECIPES / "presets", "preset")))
    where = f"recipe {recipe}" + (f" with preset {preset}" if preset else "")
    return _validate(_override(merged, overrides), where)


def load_recipe_file(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a resolved recipe, as a run directory keeps it.

    Raises:
        UserError: as for `load_recipe`.
    """
    return _validate(_override(_read_yaml(path), overrides), str(path))


def _find(name: str, folder: Path, what: str) -> Path:
    if name in available(folder):
        return folder / f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    raise UserError(
        f"no {what} {name!r}; shipped ones: {', '.join(available(folder))}; or give a .yaml file"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a recipe is a mapping of sections, this is {type(content).__name__}"
        )
    return content


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]  # both maps
    return merged


def _override(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UserError(f"--set {override!r}: write it as section.key=value")
        try:
            value: Any = _scalar(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {override!r}: the value is not valid YAML") from error
        for key in reversed(path.split(".")):
            value = {key: value}
        config = _merge(config, value)
    return config


def _scalar(text: str) -> Any:
    """A YAML value, with `1e-3` read as the number a person means (YAML 1.1 reads a string)."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _validate(config: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(config)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise UserError(f"{where}: " + "; ".join(lines)) from error


def _explain(problem: Mapping[str, Any]) -> str:
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], _keys_at(place[:-1]), n=1)
        return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
    if problem["type"] == "missing":
        return f"missing key {key}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not key or problem["type"] == "value_error":
        return message
    return f"{key}: {message}, got {problem['input']!r}"


def _keys_at(place: Sequence[str]) -> list[str]:
    section: Any = Recipe
    for part in place:
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(section.model_fields)
