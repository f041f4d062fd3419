"""What every section of a recipe is made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def remote_url(url: str) -> str:
    """A URL that names a directory and holds no password, without a slash at its end.

    Raises:
        ValueError: it is none. The message does not repeat it.
    """
    if re.search(r"://[^/@]*:(?!\d+/)[^@]*@", url) or "?" in url:
        raise ValueError(
            "training.remote holds a password or a key, which would be kept in config.yaml; leave "
            "it out and give credentials as the storage's own tools take them (for S3 "
            "AWS_ACCESS_KEY_ID or AWS_PROFILE, for GCS GOOGLE_APPLICATION_CREDENTIALS)"
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
