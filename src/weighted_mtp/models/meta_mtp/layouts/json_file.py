"""JSON files whose fields are checked as they are read, so that errors name file and key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import InvalidTextError, read_json, shown_value

T = TypeVar("T")
N = TypeVar("N", int, float)
LARGEST = 2**31
"""No size in a configuration is as large."""
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


@dataclass(frozen=True)
class JsonFile:
    """The object in a JSON file (or one nested in it, then `prefix` says where)."""

    path: Path
    fields: dict[str, Any]
    prefix: str = ""

    @classmethod
    def read(cls, path: Path) -> JsonFile:
        """Read a file.

        Raises:
            UserError: it is missing, no JSON (the line is named), or holds no object.
        """
        try:
            fields = read_json(path)
        except InvalidTextError as error:
            raise UserError(f"{path}: {error}; copy it again") from error
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; copy the checkpoint again") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        if not isinstance(fields, dict):
            raise UserError(f"{path}: holds no JSON object but a {type(fields).__name__}")
        return cls(path, fields)

    @overload
    def get(self, key: str, kind: type[T]) -> T: ...
    @overload
    def get(self, key: str, kind: type[T], default: T) -> T: ...

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The field `key`, which must be of this kind; `default` (if any) where it is absent.

        Raises:
            UserError: the field is of another kind, or absent and without default.
        """
        if key not in self.fields and default is not None:
            return default
        value = self.optional(key, kind)
        if value is None:
            raise self.error(key, f"is missing; it must be {_NAMES.get(kind, kind.__name__)}")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """The field `key`, None where it is absent or null.

        Raises:
            UserError: the field is of another kind.
        """
        value = self.fields.get(key)
        if value is None:
            return None
        accepted: Any = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            named = _NAMES.get(kind, kind.__name__)
            raise self.error(key, f"must be {named}, not {shown_value(value)}")
        try:
            converted: Any = float(value) if kind is float else value
        except OverflowError as error:
            raise self.error(key, "is too large") from error
        result: T = converted
        return result

    def count(self, key: str, default: int | None = None) -> int:
        """The whole number above 0 in the field `key`; `default` (if any) where absent or null.

        Raises:
            UserError: it is not such a number, or absent and without default.
        """
        return self._positive(key, int, default)

    def positive(self, key: str, default: float | None = None) -> float:
        """The finite number above 0 in the field `key`; otherwise as `count`."""
        return self._positive(key, float, default)

    def _positive(self, key: str, kind: type[N], default: N | None) -> N:
        value = self.optional(key, kind)
        if value is None and default is not None:
            return default
        value = self.get(key, kind)
        if value <= 0:
            raise self.error(key, f"must be above 0, not {shown_value(value)}")
        if kind is int and value >= LARGEST:
            raise self.error(key, f"must be below {LARGEST}, not {shown_value(value)}")
        return value

    def nested(self, key: str) -> JsonFile | None:
        """The object in the field `key`, None where it is absent or null."""
        fields = self.optional(key, dict)
        return None if fields is None else JsonFile(self.path, fields, f"{self.prefix}{key}.")

    def error(self, key: str, problem: str) -> UserError:
        """An error that names this file and this key."""
        return UserError(f"{self.path}: {self.prefix}{key} {problem}")


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write an object, indented, in the order given."""
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
