"""What every section of a recipe is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from weighted_mtp.core.errors import did_you_mean
from weighted_mtp.core.urls import REMEDY, holds_credentials

Fraction = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]


def remote_url(url: str) -> str:
    """A URL that names a directory and holds no password, without a slash at its end.

    Raises:
        ValueError: it is none. The message does not repeat it.
    """
    if holds_credentials(url) or "?" in url or "#" in url:
        raise ValueError(
            "training.remote holds a password or a key, which would be kept in config.yaml; "
            + REMEDY
        )
    protocol, separator, path = url.partition("://")
    if not (protocol and separator and path.strip("/")):
        raise ValueError(
            "training.remote is no URL of a directory; write it as s3://BUCKET/NAME, "
            "gs://BUCKET/NAME or file:///FOLDER"
        )
    return url.rstrip("/")


RemoteURL = Annotated[str, AfterValidator(remote_url)]


_S = TypeVar("_S", bound="Section")


class Section(BaseModel):
    """Part of a recipe. Rejects unknown keys and is immutable once validated."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _right_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true for 1, "5" for 5 and "yes" for true; here each is a mistake."""
        field = cls.model_fields[str(info.field_name)]
        if any(isinstance(mark, BeforeValidator) for mark in field.metadata):
            return value  # it converts other kinds on purpose
        kinds = _scalar_kinds(field.annotation)
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, str) and "\0" in part:
                raise PydanticCustomError("nul", "Input should not contain a NUL character")
            if isinstance(part, bool) and bool not in kinds and kinds & {int, float}:
                raise PydanticCustomError("number", "Input should be a number")
            if isinstance(part, str) and not kinds - {int, float, bool, type(None)}:
                raise PydanticCustomError("text", "Input should be a number, true or false")
            if isinstance(part, (int, float)) and not isinstance(part, bool) and kinds == {bool}:
                raise PydanticCustomError("boolean", "Input should be true or false")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _suggest(cls: type[_S], values: Any, handler: ModelWrapValidatorHandler[_S]) -> _S:
        """Add the nearest key or choice to pydantic's own message about an unknown one."""
        try:
            return handler(values)
        except ValidationError as error:
            problems = error.errors()
            if not any(problem["type"] in _GUESSED for problem in problems):
                raise
            details = [_with_suggestion(cls, problem) for problem in problems]
            raise ValidationError.from_exception_data(error.title, details) from None

    @model_validator(mode="before")
    @classmethod
    def _no_empty_path(cls, values: Any) -> Any:
        """`Path("")` is the current directory, which nobody means by an empty setting."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if value == "" and field is not None and Path in get_args(field.annotation):
                message = f"{name} is empty; give a path, or null for none"
                raise PydanticCustomError("empty_path", "{message}", {"message": message})
        return values


_GUESSED = ("extra_forbidden", "literal_error")


def _with_suggestion(section: type[Section], problem: Mapping[str, Any]) -> InitErrorDetails:
    """Rebuild an error of `section`, with a suggestion where there is one to make."""
    from weighted_mtp.core.config.suggestions import suggest_key  # imports all sections

    kind, message = problem["type"], problem["msg"]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        kind, message = "choice", message + did_you_mean(str(problem["input"]), choices)
    elif kind == "extra_forbidden":
        kind = "unknown_key"
        message = "unknown key" + suggest_key((str(problem["loc"][-1]),), section)
    context = {"message": message}
    custom = PydanticCustomError(kind, "{message}", context)
    return InitErrorDetails(type=custom, loc=problem["loc"], input=problem["input"])


def _scalar_kinds(annotation: Any) -> set[Any]:
    """The types of single values in `int | None`, `tuple[float, ...]`, `Literal["a"]`, …"""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    if get_origin(annotation) is Annotated:
        return _scalar_kinds(get_args(annotation)[0])
    inner = [part for part in get_args(annotation) if part is not ...]
    return set().union(*map(_scalar_kinds, inner)) if inner else {annotation}
