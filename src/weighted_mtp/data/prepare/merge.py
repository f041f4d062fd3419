"""Parts put together: one file a split, without rows that other parts have too."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import InvalidTextError, parse_json
from weighted_mtp.data.prepare.parts import REJECTED, Workspace, unwritable
from weighted_mtp.data.prepare.work import Tally

Codes: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]
Verdict: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
KEEP, DUPLICATE, CONTRADICTORY = 0, 1, 2
_REASONS = {DUPLICATE: "duplicate", CONTRADICTORY: "contradictory"}
_ORDER = ("train", "validation", "test")
_ONE = np.uint64(1)


def judge(codes: Codes) -> Verdict:
    """`[rows]` what becomes of each: the first of equal rows stays, rows that are both right and
    wrong go.

    Args:
        codes: `[rows]` see `work.row_code`.
    """
    _, first, group = np.unique(codes >> _ONE, return_index=True, return_inverse=True)
    right = np.bincount(group, weights=(codes & _ONE).astype(np.float64))
    both = (right > 0) & (right < np.bincount(group))
    verdict = np.full(len(codes), DUPLICATE, np.uint8)
    verdict[first] = KEEP
    verdict[both[group]] = CONTRADICTORY
    return verdict


def shared_with_train(codes: dict[str, Codes]) -> dict[str, int]:
    """Distinct rows of each split that also stand in `train`, which they should not."""
    train = codes.get("train", np.zeros(0, np.uint64)) >> _ONE
    return {
        split: int(np.isin(np.unique(own >> _ONE), train).sum())
        for split, own in codes.items()
        if split != "train"
    }


class Merge:
    """Writes all splits of finished units beside their places; `publish` moves them there.

    Attributes:
        tallies: counts of each split.
        shared: see `shared_with_train`.
        names: of the files.
    """

    def __init__(self, workspace: Workspace, units: Sequence[str]) -> None:
        self._workspace, self._units = workspace, units
        found: dict[str, Tally] = {}
        for unit in units:
            for split, tally in workspace.tallies(unit).items():
                found.setdefault(split, Tally()).merge(tally)
        known = [split for split in _ORDER if split in found]
        self.tallies = {split: found[split] for split in (*known, *sorted(set(found) - {*known}))}
        self.shared: dict[str, int] = {}
        self.names: list[str] = []

    def write(self) -> None:
        """Write every file as `NAME.partial`.

        Raises:
            UserError: one cannot be written.
        """
        try:
            codes = {split: self._codes(split) for split in self.tallies}
            self.shared = shared_with_train(codes)
            for split, tally in self.tallies.items():
                verdict = judge(codes[split])
                if np.any(verdict == KEEP):
                    with self._new(f"{split}.jsonl") as out:
                        self._append_rows(split, verdict, out)
                else:
                    self._append_rows(split, verdict, None)
                if tally.problems:
                    with self._new(f"problems.{split}.jsonl") as out:
                        tally.problems = self._append_problems(split, out)
            with self._new(REJECTED) as out:
                for unit in self._units:
                    self._copy(self._workspace.folder / f"{unit}.rejected", out)
        except OSError as error:
            raise unwritable(self._workspace.out, error) from error

    def publish(self) -> None:
        """Move the files to their places.

        Raises:
            UserError: one cannot be moved.
        """
        try:
            for name in self.names:
                self._partial(name).replace(self._workspace.out / name)
        except OSError as error:
            raise unwritable(self._workspace.out, error) from error

    def discard(self) -> None:
        """Remove what is not in its place."""
        for name in self.names:
            with suppress(OSError):
                self._partial(name).unlink(missing_ok=True)

    def _append_rows(self, split: str, verdict: Verdict, out: BinaryIO | None) -> None:
        start = 0
        for unit in self._units:
            path = self._workspace.part(unit, "rows", split)
            if not path.exists():
                continue
            count = self._workspace.part(unit, "codes", split).stat().st_size // 8
            part, start = verdict[start : start + count], start + count
            if out is not None and not part.any():
                self._copy(path, out)
                continue
            with path.open("rb") as file:
                for line, decision in zip(file, part.tolist(), strict=True):
                    if decision != KEEP:
                        self.tallies[split].drop(_record(line, path), _REASONS[decision])
                    elif out is not None:
                        out.write(line)

    def _append_problems(self, split: str, out: BinaryIO) -> int:
        """Of problems with one name the first; how many."""
        seen: set[str] = set()
        for unit in self._units:
            path = self._workspace.part(unit, "problems", split)
            if not path.exists():
                continue
            with path.open("rb") as file:
                for line in file:
                    task_id = _record(line, path)["task_id"]
                    if task_id not in seen:
                        out.write(line)
                    seen.add(task_id)
        return len(seen)

    def _codes(self, split: str) -> Codes:
        paths = [self._workspace.part(unit, "codes", split) for unit in self._units]
        parts = [np.fromfile(path, "<u8") for path in paths if path.exists()]
        joined: Codes = np.concatenate([np.zeros(0, np.uint64), *parts]).astype(np.uint64)
        return joined

    def _new(self, name: str) -> BinaryIO:
        self.names.append(name)
        return self._partial(name).open("wb")

    def _partial(self, name: str) -> Path:
        return self._workspace.out / f"{name}.partial"

    @staticmethod
    def _copy(path: Path, out: BinaryIO) -> None:
        if path.exists():
            with path.open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)


def _record(line: bytes, path: Path) -> Any:
    try:
        return parse_json(line)
    except InvalidTextError as error:
        raise UserError(
            f"{path}: damaged since it was written ({error}); start again with --overwrite"
        ) from error
