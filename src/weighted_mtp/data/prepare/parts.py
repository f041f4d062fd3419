"""Finished units on disk, so that a command that was killed resumes where it stopped.

`DIR/.parts` holds `manifest.json` (what is prepared, from what, in which units), and for every unit
`NAME.SPLIT.rows`, `.problems` and `.codes`, `NAME.rejected`, and last `NAME.done`, which counts
them and says how long each is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import InvalidTextError, read_json
from weighted_mtp.data.prepare.work import Job, Tally, Task, convert_unit

FORMAT = "weighted-mtp prepare v1"
FOLDER, SUMMARY, REJECTED = ".parts", "summary.json", "rejected.jsonl"
_MANIFEST = "manifest.json"


class Workspace:
    """The parts of one output folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / FOLDER

    def manifest(self) -> dict[str, Any] | None:
        """What is being prepared here; None if nothing is."""
        try:
            found = read_json(self.folder / _MANIFEST)
        except (OSError, UserError, InvalidTextError):
            return None
        is_ours = isinstance(found, dict) and found.get("format") == FORMAT
        return found if is_ours and {"identity", "plan"} <= found.keys() else None

    def begin(self, identity: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Start over: record what is prepared and delete the parts of anything else."""
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()
        write_whole(
            self.folder / _MANIFEST,
            json.dumps({"format": FORMAT, "identity": identity, "plan": plan}),
        )

    def finished(self, name: str) -> bool:
        """Whether a unit's part is complete."""
        done = self.done(name)
        if done is None:
            return False
        sizes = {path: self.folder / path for path in done["sizes"]}
        return all(p.is_file() and p.stat().st_size == done["sizes"][n] for n, p in sizes.items())

    def done(self, name: str) -> dict[str, Any] | None:
        """What a unit's last file says."""
        try:
            found = read_json(self.folder / f"{name}.done")
        except (OSError, UserError, InvalidTextError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("sizes"), dict) else None

    def finished_names(self) -> list[str]:
        """Of units, in the order of their names."""
        names = sorted(path.stem for path in self.folder.glob("*.done"))
        return [name for name in names if self.finished(name)]

    def tallies(self, name: str) -> dict[str, Tally]:
        """Counts of a finished unit, by split."""
        done = self.done(name)
        assert done is not None
        return {split: Tally.from_json(counts) for split, counts in done["tallies"].items()}

    def part(self, name: str, kind: str, split: str) -> Path:
        """A file of a unit: its `rows`, `codes` or `problems`."""
        return self.folder / f"{name}.{split}.{kind}"

    def remove(self) -> None:
        """All parts, once the result is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process prepares here at a time; an attempt that came to nothing leaves nothing.

        Raises:
            UserError: another one does, or the folder cannot be made.
        """
        made = [p for p in (self.out, *self.out.parents) if not p.exists()]  # innermost first
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise UserError(f"{self.out}: another process is preparing this folder") from error
        except (OSError, NotImplementedError) as error:
            raise unwritable(self.out, error) from error
        try:
            yield
        finally:
            if self.manifest() is None:
                self.remove()
                for path in made:
                    with suppress(OSError):
                        path.rmdir()
            lock.release()


def write_part(job: Job, folder: str, task: Task) -> tuple[int, int]:
    """Convert a unit and write its part; (rows written, records rejected).

    Raises:
        UserError: the source cannot be read, or the part cannot be written.
    """
    workspace, name = Workspace(Path(folder)), task.unit.name
    tallies: dict[str, Tally] = {}
    codes: dict[str, list[int]] = {}
    with _Files(workspace) as files:
        for converted in convert_unit(job, task):
            split = converted.split
            tallies.setdefault(split, Tally()).add(converted)
            if converted.rejection is not None:
                files.write(f"{name}.rejected", converted.rejection.line())
                continue
            files.write(f"{name}.{split}.problems", converted.problem)
            for row in converted.rows:
                files.write(f"{name}.{split}.rows", row)
            codes.setdefault(split, []).extend(converted.codes)
        for split, numbers in codes.items():
            files.write_bytes(f"{name}.{split}.codes", np.array(numbers, "<u8").tobytes())
        sizes = files.close()
    done = {"sizes": sizes, "tallies": {split: t.to_json() for split, t in tallies.items()}}
    write_whole(workspace.folder / f"{name}.done", json.dumps(done))
    return sum(map(len, codes.values())), sum(tally.rejected for tally in tallies.values())


class _Files:
    """Files of a part, opened when something is written."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._open: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def write(self, name: str, text: str) -> None:
        if text:
            self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        try:
            if name not in self._open:
                file = (self._workspace.folder / name).open("wb")
                self._open[name] = self._stack.enter_context(file)
            self._open[name].write(data)
        except OSError as error:
            raise unwritable(self._workspace.out, error) from error

    def close(self) -> dict[str, int]:
        """Bytes of each file."""
        try:
            sizes = {name: file.tell() for name, file in self._open.items()}
            self._stack.close()
        except OSError as error:
            raise unwritable(self._workspace.out, error) from error
        return sizes

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # told already, or after a failure of another kind
            self._stack.close()


def write_whole(path: Path, text: str) -> None:
    """A small file, there whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise unwritable(path.parent, error) from error


def unwritable(folder: Path, error: Exception) -> UserError:
    """The mistake of an output folder: full, or not ours."""
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"{folder}: cannot be written ({reason}); make room or choose another --out. The same "
        "command resumes where it stopped"
    )
