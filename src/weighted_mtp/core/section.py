"""What every section of a recipe is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from weighted_mtp.core.urls import REMEDY, holds_credentials

Fraction = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


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


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_empty_path(cls, values: Any) -> Any:
        """`Path("")` is the current directory, which nobody means by an empty setting."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if value == "" and field is not None and Path in get_args(field.annotation):
                raise ValueError(f"{name} is empty; give a path, or null for none")
        return values
