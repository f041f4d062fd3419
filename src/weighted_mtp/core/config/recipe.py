"""Recipes: typed, strict, merged from a recipe, a preset and `--set` overrides.

    recipe (the objective, settings for 7B)  <  preset (another scale)  <  --set section.key=value

A preset may have a mapping `pipelines`: the entry of the recipe's pipeline is merged last.

Unknown keys are refused with the nearest known one. The resolved recipe is saved with every run.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError, model_validator

from weighted_mtp.core.config.data import DataConfig
from weighted_mtp.core.config.runtime import RuntimeConfig
from weighted_mtp.core.config.section import Section
from weighted_mtp.core.config.sections import (
    CriticStage,
    ModelConfig,
    ObjectiveConfig,
    PipelineName,
    ReferenceStage,
    TokenizerConfig,
    TrainingConfig,
)
from weighted_mtp.core.errors import UserError, refuse_credentials
from weighted_mtp.core.input_files import InvalidTextError, parse_yaml, read_regular, shown_value

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
_FORMER = {"objective": {"rho1": {"reference_heads": "next"}}}
"""What versions without these keys did, where it differs from today's default."""


class Recipe(Section):
    """Everything a training run depends on."""

    pipeline: PipelineName
    objective: ObjectiveConfig
    model: ModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    critic_stage: CriticStage | None = None
    reference_stage: ReferenceStage | None = None

    @model_validator(mode="after")
    def _cuts_evenly(self) -> Recipe:
        batch, micro = self.training.batch_size, self.training.micro_batch_size
        if self.data.packing:  # a micro-batch counts packed rows, and holds pairs whole
            micro = 2 if self.objective.value.loss == "pairwise" else 1
        if batch % micro:
            raise ValueError(
                f"training.batch_size ({batch}) must be a multiple of training.micro_batch_size "
                f"({micro})"
            )
        if self.objective.value.loss == "pairwise" and (batch % 2 or micro % 2):
            raise ValueError(
                f"training.batch_size ({batch}) and training.micro_batch_size ({micro}) must be "
                "even: objective.value.loss pairwise takes rows in pairs"
            )
        return self

    @model_validator(mode="after")
    def _belongs_together(self) -> Recipe:
        if self.data.source == "text" and self.pipeline not in ("baseline", "ntp"):
            raise ValueError(
                f"data.source text has no correct and incorrect rows, nor stored losses: it does "
                f"not go with the {self.pipeline} pipeline, but with baseline and ntp"
            )
        if self.critic_stage is not None and self.pipeline != "verifiable":
            raise ValueError(f"critic_stage does not go with the {self.pipeline} pipeline")
        if self.reference_stage is not None:
            if self.pipeline != "rho1":
                raise ValueError(f"reference_stage does not go with the {self.pipeline} pipeline")
            rho1 = self.objective.rho1
            if rho1.reference is not None or rho1.reference_model is not None:
                raise ValueError(
                    "reference_stage trains the reference: leave out objective.rho1.reference and "
                    "objective.rho1.reference_model, or set reference_stage=null"
                )
        return self

    def to_yaml(self) -> str:
        """The recipe as text that `load_recipe_file` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def available(folder: Path = RECIPES) -> list[str]:
    """List the names of the shipped recipes (or of presets, given `RECIPES / "presets"`)."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_recipe(
    recipe: str | Path | Recipe, preset: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Merge a recipe, a preset and `section.key=value` overrides.

    Example:
        >>> load_recipe("baseline", "micro", ["training.steps=100"]).training.steps
        100

    Args:
        recipe: a shipped name, a YAML file, or a recipe to change.

    Raises:
        UserError: no such recipe or preset, bad YAML, an unknown key or a value out of range.
    """
    name = str(recipe.pipeline if isinstance(recipe, Recipe) else recipe)
    if isinstance(recipe, Recipe):
        merged = recipe.model_dump(mode="json")
    else:
        merged = _read_yaml(_find(name, RECIPES, "recipe"))
    if preset is not None:
        scale = _read_yaml(_find(preset, RECIPES / "presets", "preset"))
        special = scale.pop("pipelines", None) or {}
        merged = _merge(merged, scale)
        merged = _merge(merged, special.get(merged.get("pipeline"), None) or {})
    where = f"recipe {name}" + (f" with preset {preset}" if preset else "")
    return _validate(_override(merged, overrides), where)


def load_recipe_file(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the resolved recipe of a run directory. It has every key, so a missing one did not exist
    when the run was saved, and gets its value from `_FORMER` or the default.

    Raises:
        UserError: as for `load_recipe`.
    """
    saved = _read_yaml(path)
    objective = saved.get("objective")
    if isinstance(objective, Mapping) and "rho1" in objective:  # else it is not a resolved one
        saved = _merge(_FORMER, saved)
    return _validate(_override(saved, overrides), str(path))


def with_overrides(recipe: Recipe, overrides: Sequence[str], where: str) -> Recipe:
    """Change settings of a recipe.

    Args:
        where: names the recipe in messages.

    Raises:
        UserError: as for `load_recipe`.
    """
    if not overrides:
        return recipe
    return _validate(_override(recipe.model_dump(mode="json"), overrides), where)


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
        content = parse_yaml(read_regular(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except InvalidTextError as error:
        raise UserError(f"{path}: not a valid recipe: {error}") from error
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
            refuse_credentials(override, "--set")
            raise UserError(f"--set {override!r}: write it as section.key=value")
        try:
            value: Any = parse_yaml(text)
        except InvalidTextError as error:
            refuse_credentials(override, "--set")
            shown = override if len(override) <= 120 else override[:120] + "…"
            raise UserError(f"--set {shown!r}: the value is not valid YAML ({error})") from error
        for key in reversed(path.split(".")):
            value = {key: value}
        config = _merge(config, value)
    return config


def setting(key: str, value: object) -> str:
    """Write `key=value` for `--set`: a path such as `a #1` is quoted for YAML."""
    text = str(value)
    try:
        same = parse_yaml(text) == text
    except InvalidTextError:
        same = False
    return f"{key}={text if same else json.dumps(text)}"


def _refuse_credentials(value: Any, key: str) -> None:
    """Raise `UserError` for a URL with credentials in any setting: recipes are saved."""
    if isinstance(value, str):
        refuse_credentials(value, key)
    elif isinstance(value, Mapping):
        for name, below in value.items():
            refuse_credentials(str(name), f"a key of {key or 'the recipe'}")
            _refuse_credentials(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for below in value:
            _refuse_credentials(below, key)


def _validate(config: dict[str, Any], where: str) -> Recipe:
    _refuse_credentials(config, "")
    return validate_section(Recipe, config, where)


AnySection = TypeVar("AnySection", bound=Section)


def validate_section(
    section: type[AnySection], values: Mapping[str, Any], where: str, key: str = ""
) -> AnySection:
    """Validate the values of a section, which stands at `key` of a recipe ("": it is the recipe).

    Raises:
        UserError: unknown keys or bad values; `where` begins the message, which names all of them.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem, section, key) for problem in error.errors()]
        raise UserError(f"{where}: " + "; ".join(lines)) from error


def _explain(problem: Mapping[str, Any], section: type[Section], above: str) -> str:
    place = [str(part) for part in problem["loc"]]
    key = ".".join([above, *place] if above else place)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], _keys_at(section, place[:-1]), n=1)
        return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
    if problem["type"] == "missing":
        return f"missing key {key}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "empty_path":
        return f"{key}.{message}"
    if not key or problem["type"] == "value_error":
        return message
    return f"{key}: {message}, got {shown_value(problem['input'])}"


def _keys_at(section: Any, place: Sequence[str]) -> list[str]:
    """Keys of the section at a place below another; names in a mapping and numbers in a list are
    skipped."""
    for part in place:
        field = section.model_fields.get(part)
        section = section if field is None else _section_in(field.annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> Any:
    """The section in `Section | None`, `dict[str, Section]`, …; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
