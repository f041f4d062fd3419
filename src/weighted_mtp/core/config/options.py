"""All recipe options with type, default and meaning, read from the sections."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from weighted_mtp.core.config.section import Section
from weighted_mtp.core.yaml_text import parse_yaml

ANY_NAME = "*"
"""Stands in a key for a name or a number chosen by the user, such as that of a bin."""


@dataclass(frozen=True)
class Option:
    """An option of a recipe.

    Attributes:
        key: dotted, such as `training.steps`.
        type: in words. choices: of an enumerated value, else empty.
        default: plain data; None also if `required`.
        optional_section: the innermost section around it that is absent by default, "" for none.
    """

    key: str
    type: str
    choices: tuple[str, ...]
    required: bool
    default: Any
    meaning: str
    optional_section: str


@cache
def recipe_options() -> tuple[Option, ...]:
    """Return every option of a recipe, in the order of the sections."""
    from weighted_mtp.core.config.recipe import Recipe  # which imports this module for suggestions

    return tuple(_options(Recipe, "", ""))


def section_titles() -> dict[str, str]:
    """Return the first sentence about each section, by its key."""
    return {key: about for key, (_, about) in sections().items()}


@cache
def shipped_settings() -> dict[str, dict[str, Any]]:
    """Return by whom each option is set, and to what: shipped recipes, presets, and presets for a
    pipeline, as `micro (critic)`. Placeholders (null) are left out."""
    from weighted_mtp.core.config.shipped import RECIPES, available

    found: dict[str, dict[str, Any]] = {option.key: {} for option in recipe_options()}

    def note(value: Any, key: str, name: str) -> None:
        if key in found:
            found[key] |= {name: value} if value is not None else {}
        elif isinstance(value, dict):
            for part, below in value.items():
                note(below, f"{key}.{part}" if key else part, name)

    for folder in (RECIPES, RECIPES / "presets"):
        for name in available(folder):
            content = parse_yaml((folder / f"{name}.yaml").read_bytes())
            special = content.pop("pipelines", {})
            note(content, "", name)
            for pipeline, part in special.items():
                note(part, "", f"{name} ({pipeline})")
    return found


# --- reading the sections ------------------------------------------------------------------------


@cache
def sections() -> dict[str, tuple[type[Section], str]]:
    """Every section by its key ("" for the recipe itself), with what it is about."""
    from weighted_mtp.core.config.recipe import Recipe

    found: dict[str, tuple[type[Section], str]] = {}

    def visit(section: type[Section], key: str) -> None:
        about = inspect.getdoc(section) or ""
        found[key] = section, " ".join(about.partition("\n\n")[0].split())
        for name, field in section.model_fields.items():
            for below, several in _nested(field.annotation):
                visit(below, ".".join(filter(None, (key, name, several))))

    visit(Recipe, "")
    return found


def _options(section: type[Section], prefix: str, optional: str) -> Iterator[Option]:
    meanings = _meanings(section)
    for name, field in section.model_fields.items():
        key, nested = prefix + name, list(_nested(field.annotation))
        if not nested:
            choices = tuple(map(str, _choices(field.annotation)))
            required = field.is_required()
            default = plain(field.get_default(call_default_factory=True))
            if required:
                default = None
            kind, about = _type(field.annotation, field.metadata), meanings.get(name, "")
            yield Option(key, kind, choices, required, default, about, optional)
        for below, several in nested:
            absent = key if field.default is None or several else optional
            yield from _options(below, ".".join(filter(None, (key, several))) + ".", absent)


def _meanings(section: type[Section]) -> dict[str, str]:
    """What the `Attributes:` of the docstring say of each field."""
    _, _, attributes = (inspect.getdoc(section) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", attributes, re.MULTILINE)
    return {name: _sentence(" ".join(text.split())) for name, text in entries}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1].isascii() else text  # λ stays λ


def plain(value: Any) -> Any:
    """Return a value as JSON and YAML have it."""
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _nested(annotation: Any, several: str = "") -> Iterator[tuple[type[Section], str]]:
    """The sections in `Section | None`, `dict[str, Section]`, …, and `*` if they are several."""
    origin = get_origin(annotation)  # of `list[str]`, which Python 3.10 takes for a class
    if origin is None and inspect.isclass(annotation) and issubclass(annotation, Section):
        yield annotation, several
    if origin in (dict, tuple, list):
        several = ANY_NAME
    for part in get_args(annotation):
        yield from _nested(part, several)


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words: `integer > 0`, `path or null`, `list of one of tensorboard, mlflow, …`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], [*inner[1:], *metadata])
    if origin is Literal:
        several = "one of " if len(inner) > 1 else ""
        return several + ", ".join(map(str, inner))
    if origin is dict:
        return f"mapping of names to {_type(inner[1])}"
    if origin in (tuple, list):
        if inner[-1] is Ellipsis or origin is list:
            return f"list of {_plural(_type(inner[0]))}"
        return f"list of {len(inner)} {_plural(_type(inner[0]))}"
    if inner:  # a union
        return " or ".join(_type(part, metadata) for part in inner)
    names = {int: "integer", float: "number", bool: "true or false", str: "string", Path: "path"}
    word = "null" if annotation is NoneType else names.get(annotation, str(annotation))
    return word + (_bounds(metadata) if annotation in (int, float) else "")


def _plural(kind: str) -> str:
    return re.sub(r"^(number|integer|string|path)", r"\1s", kind)


def _bounds(metadata: Sequence[Any]) -> str:
    """` > 0 and ≤ 1`; limits that only guard against overflow are left out."""
    signs = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
    found: dict[str, str] = {}
    for mark in metadata:
        for part in mark.metadata if isinstance(mark, FieldInfo) else [mark]:
            for kind, sign in signs.items():
                if isinstance(part, kind):
                    value = getattr(part, kind.__name__.lower())
                    if value < 2**31:
                        found["low" if kind in (Ge, Gt) else "high"] = f" {sign} {value:g}"
    return " and".join(found[side] for side in ("low", "high") if side in found)
