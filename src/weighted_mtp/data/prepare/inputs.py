"""What is prepared: local files or a stream of the hub, both as tasks."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.data.prepare.files import SourceFile, Unit, cut, find_files, split_of
from weighted_mtp.data.prepare.hub import BLOCK, PREFIX, HubData, blocks, open_hub
from weighted_mtp.data.prepare.source import Source
from weighted_mtp.data.prepare.work import Task

_log = get_logger(__name__)
_MUCH = 1 << 30


class Input(Protocol):
    """Where records come from.

    Attributes:
        name: as a person gave it.
        total: units in all, as far as is known.
    """

    name: str

    def identity(self) -> list[dict[str, Any]]:
        """What must be the same for parts to be taken over."""
        ...

    def plan(self) -> dict[str, Any]:
        """What is found by reading the whole source once; goes into the manifest."""
        ...

    def total(self, plan: Mapping[str, Any]) -> int:
        """How many units there are, as far as is known."""
        ...

    def tasks(self, plan: Mapping[str, Any], finished: Container[str]) -> Iterator[Task]:
        """The units that are not finished."""
        ...

    def check_unchanged(self) -> None:
        """Raise `UserError` if the source is not what it was at the start."""
        ...

    def versions(self, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What was read: files with their size and SHA-256, or a commit."""
        ...


class FileInput:
    """Files on this machine."""

    def __init__(self, source: Source, path: Path, out: Path | None, split: str | None) -> None:
        self.name = str(path)
        self._files = find_files(path, out, split)
        for file in self._files:
            if file.split is None and source.default_split is None and not source.finds_split:
                raise UserError(
                    f"{file.path}: its name tells no split (train, validation, test); add --split"
                )

    def identity(self) -> list[dict[str, Any]]:
        return [asdict(file) for file in self._files]

    def plan(self) -> dict[str, Any]:
        size = sum(file.size for file in self._files)
        if size >= _MUCH:
            _log.info("looking through %d files, %.1f GB", len(self._files), size / 1e9)
        with ThreadPoolExecutor(4) as threads:  # hashing waits for the disk
            found = list(threads.map(cut, self._files))
        units = [
            asdict(Unit(f"{number:06d}", file.path, file.form, file.split, *place))
            for number, (file, place) in enumerate(_places(self._files, found))
        ]
        return {"units": units, "digests": [digest for digest, _ in found]}

    def total(self, plan: Mapping[str, Any]) -> int:
        return len(plan["units"])

    def tasks(self, plan: Mapping[str, Any], finished: Container[str]) -> Iterator[Task]:
        units = (Unit(**values) for values in plan["units"])
        return (Task(unit) for unit in units if unit.name not in finished)

    def check_unchanged(self) -> None:
        for file in self._files:
            try:
                status = Path(file.path).stat()
            except OSError as error:
                raise UserError(f"{file.path}: vanished while it was read") from error
            if (status.st_size, status.st_mtime_ns) != (file.size, file.changed_ns):
                raise UserError(f"{file.path}: changed while it was read; start again")

    def versions(self, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {"path": file.path, "size": file.size, "sha256": digest}
            for file, digest in zip(self._files, plan["digests"], strict=True)
        ]


class HubInput:
    """A data set of the hub."""

    def __init__(
        self, source: Source, name: str, revision: str | None, split: str | None, columns: Any
    ) -> None:
        self.name = name
        self._data: HubData = open_hub(name, revision, columns)
        self._splits = {
            there: split or split_of(there) or source.default_split for there in self._data.splits
        }
        for there, ours in self._splits.items():
            if ours is None and not source.finds_split:
                raise UserError(f"{name}: the split {there!r} is not known; add --split")

    def identity(self) -> list[dict[str, Any]]:
        return [{"path": self.name, "revision": self._data.revision}]

    def plan(self) -> dict[str, Any]:
        return {}

    def total(self, plan: Mapping[str, Any]) -> int:
        return sum(-(-size // BLOCK) for size in self._data.sizes.values())

    def tasks(self, plan: Mapping[str, Any], finished: Container[str]) -> Iterator[Task]:
        return blocks(self._data, self.name, self._splits, finished)

    def check_unchanged(self) -> None:
        """A commit does not change."""

    def versions(self, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.identity()


def open_input(
    source: Source,
    path: str | None,
    out: Path | None,
    split: str | None,
    revision: str | None,
    renamed: Mapping[str, str],
) -> Input:
    """Files, or a stream of the hub.

    Raises:
        UserError: there is no such source.
    """
    if path is None:
        if source.bundled is None:
            raise UserError("--source is missing: a file, a folder or hub:OWNER/NAME")
        return FileInput(source, source.bundled(), out, split)
    if path.startswith(PREFIX):
        columns = source.columns and [renamed.get(name, name) for name in source.columns]
        return HubInput(source, path, revision, split, columns)
    if revision is not None:
        raise UserError("--revision is for hub:OWNER/NAME; local files have none")
    return FileInput(source, Path(path), out, split)


def _places(
    files: list[SourceFile], found: list[tuple[str, list[tuple[int, int, int]]]]
) -> Iterator[tuple[SourceFile, tuple[int, int, int]]]:
    for file, (_, places) in zip(files, found, strict=True):
        for place in places:
            yield file, place
