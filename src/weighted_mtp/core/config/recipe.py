"""Recipes: typed, strict, merged from a recipe, a preset and `--set` overrides.

    recipe (the objective, settings for 7B)  <  preset (another scale)  <  --set section.key=value

A preset may contain a mapping `pipelines`: the entry of the recipe's pipeline overrides the rest.

Unknown keys are rejected with the nearest known one. The resolved recipe is saved with every run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
from weighted_mtp.core.config.shipped import RECIPES, available
from weighted_mtp.core.config.suggestions import suggest_key
from weighted_mtp.core.errors import UserError, did_you_mean, refuse_credentials
from weighted_mtp.core.input_files import InvalidTextError, read_regular, shown_value
from weighted_mtp.core.yaml_text import parse_yaml

_FORMER = {"objective": {"rho1": {"reference_heads": "next"}}}
"""What versions without such a key did, where it differs from today's default."""


class Recipe(Section):
    """A training run: everything it depends on.

    Attributes:
        pipeline: which training to run; it decides which objectives are possible.
    """

    pipeline: PipelineName
    objective: ObjectiveConfig
    model: ModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    critic_stage: CriticStage | None = None
    reference_stage: ReferenceStage | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_stage_for_a_named_reference(cls, values: Any) -> Any:
        """A preset may bring the stage; a named reference replaces it."""
        try:
            rho1 = values["objective"]["rho1"]
            named = rho1.get("reference") or rho1.get("reference_model")
        except (KeyError, TypeError, AttributeError):
            return values
        return {**values, "reference_stage": None} if named else values

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
        if self.reference_stage is not None and self.pipeline != "rho1":
            raise ValueError(f"reference_stage does not go with the {self.pipeline} pipeline")
        return self

    @model_validator(mode="after")
    def _states_stay_true(self) -> Recipe:
        if self.data.states is None:
            return self
        if self.training.adapt != "heads":
            raise ValueError(
                f"data.states holds what a frozen trunk computes, and training.adapt "
                f"{self.training.adapt} trains the trunk; set training.adapt=heads, or take "
                "data.states away"
            )
        if self.model.path is None:
            raise ValueError(
                "data.states were made by a model that is stored; set model.path to it"
            )
        if self.critic_stage is not None or self.reference_stage is not None:
            raise ValueError(
                "data.states does not go with two stages; train the first one in a command of its "
                "own, or take data.states away"
            )
        return self

    @model_validator(mode="after")
    def _has_rows_to_count(self) -> Recipe:
        if self.data.source == "text" and self.objective.distil.vocabulary is not None:
            raise ValueError(
                "objective.distil.vocabulary counts the tokens of rows, and data.source text has "
                "none; set it to null"
            )
        return self

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `load_recipe_file` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


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
    """Read a resolved recipe from a run directory. It names every key, so one that is missing did
    not exist in the version that wrote it: `_FORMER` has what that version did.

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
    path, known = Path(name), available(folder)
    hint = did_you_mean(path.stem if path.suffix in (".yaml", ".yml") else name, known)
    if path.suffix in (".yaml", ".yml"):
        if hint and not path.exists():
            raise UserError(f"{path}: cannot be read (No such file or directory){hint}")
        return path
    raise UserError(
        f"no {what} {name!r}{hint}; shipped ones: {', '.join(known)}; or give a .yaml file"
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
    """Return `key=value` as `--set` takes it; a path such as `a #1` is quoted for YAML."""
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
    if problem["type"] == "unknown_key":
        if above:  # the options of an objective
            near = did_you_mean(place[-1], list(section.model_fields))
            return f"unknown key {key}{near}"
        return "; ".join(
            f"unknown key {'.'.join(each)}{suggest_key(each)}"
            for each in _leaves(place, problem["input"])
        )
    if problem["type"] == "missing":
        return f"missing key {key}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "empty_path":
        return f"{key}.{message}"
    if not key or problem["type"] == "value_error":
        return message
    return f"{key}: {message}, got {shown_value(problem['input'])}"


def _leaves(place: list[str], value: Any) -> list[list[str]]:
    """Keys of the settings below an unknown section; its own key if it has many or none."""
    if not isinstance(value, Mapping):
        return [place]
    found = [leaf for name, below in value.items() for leaf in _leaves([*place, str(name)], below)]
    return found if 0 < len(found) <= 5 else [place]
