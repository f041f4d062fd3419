"""Copies of a run's checkpoints in a remote directory, made during training.

URL/config.yaml  metrics.jsonl
URL/checkpoints/step-00000300/           as in the run directory
    COMPLETE                             written last: {"files": {NAME: bytes, …}}

Files that are not in the list of COMPLETE do not belong to the checkpoint.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from weighted_mtp.core.errors import in_brief
from weighted_mtp.core.files import command_line
from weighted_mtp.core.input_files import parse_json
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import MARKER, complete_checkpoints, is_sharded
from weighted_mtp.pipelines.checkpoint_utils import (
    checkpoint_path,
    checkpoint_step,
    drop_old,
    saved_state,
)
from weighted_mtp.pipelines.checkpointing.remote_directory import Remote, RemoteError, check_name
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.main_process import on_main

log = get_logger(__name__)

MB = 1_000_000


class Copies:
    """Brings the checkpoints of a run to `training.remote`, one at a time and in the background.

    Only the main process of a run that has a remote does anything. Those of its checkpoints that
    are still to be copied are `pinned`: they must not be deleted here.

    Args:
        keep_last: as many of the newest are kept there, the best ones besides.
        url: of the remote directory; None: there is none.
    """

    def __init__(self, run_dir: Path, keep_last: int, url: str | None) -> None:
        self.run_dir, self.keep_last, self.url = run_dir, keep_last, url
        self._remote = None
        if url is not None and distributed.is_main_process():
            self._remote = Remote(url)
        self._lock = threading.Lock()
        self._waiting: list[_Copy] = []
        self._current: _Copy | None = None
        self._worker: threading.Thread | None = None
        self._best: set[int] = set()
        self._there: dict[int, dict[str, int]] = {}  # complete there, by this process's doing
        self._warned = False

    @property
    def pinned(self) -> set[int]:
        """Steps of the checkpoints that are being copied or wait for it."""
        with self._lock:
            copies = [*self._waiting, *([self._current] if self._current else [])]
        return {copy.step for copy in copies}

    def offer(self, checkpoint: Path, best: Collection[int]) -> None:
        """Copy a checkpoint that has just been completed, in its turn. One that still waits is left
        out, unless it is one of the best.

        Args:
            best: steps of the best checkpoints so far.
        """
        if self._remote is None:
            return
        copy = _Copy(checkpoint_step(checkpoint))
        with self._lock:
            self._best = set(best)
            self._waiting = [*(c for c in self._waiting if c.step in self._best), copy]
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, daemon=True)
                self._worker.start()

    def settle(self, best: Collection[int]) -> str | None:
        """Wait until the newest checkpoint and the best ones are there, and metrics.jsonl as it is
        now; every process calls this.

        Returns:
            On the main process: what to tell of those that did not arrive, None if all did.
        """
        if self.url is None:
            return None
        failed: list[str] = []
        on_main(lambda: failed.extend(self._settle(best)), self._say)
        if not failed:
            return None
        again = command_line("weighted-mtp", "train", "--resume", "--output-dir", self.run_dir)
        return (
            f"{self.run_dir}: all is saved there, but {failed[0]}; put that right, then {again} "
            "copies what is missing"
        )

    def _settle(self, best: Collection[int]) -> list[str]:
        worker = self._worker
        if worker is not None:
            self._say()
            worker.join()
        self._best = set(best)
        failed = []
        saved = complete_checkpoints(self.run_dir)
        for checkpoint in saved:
            step = checkpoint_step(checkpoint)
            if checkpoint == saved[-1] or step in self._best:
                with self._lock:
                    self._current = _Copy(step)
                if (error := self._bring(self._current, again=True)) is not None:
                    failed.append(error)
        with self._lock:
            self._current = None
        drop_old(self.run_dir, self.keep_last, self._best)
        try:
            self._bring_records()
        except RemoteError as error:
            failed.append(f"{error} has not been written")
        return failed

    def _work(self) -> None:
        while True:
            with self._lock:
                self._current = self._waiting.pop(0) if self._waiting else None
                if self._current is None:
                    self._worker = None
                    return
            self._bring(self._current)

    def _bring(self, copy: _Copy, again: bool = False) -> str | None:
        """Copy one checkpoint and delete those that it replaces; what went wrong, if it is not
        there now."""
        try:
            self._upload(copy, again)
        except Exception as error:  # also of files here that cannot be read
            reason = str(error) if isinstance(error, RemoteError) else in_brief(error)
            self._warn(
                f"{self.url} does not take the checkpoint of step {copy.step} ({reason}); it is "
                f"safe in {self.run_dir}, and the next one is tried too"
            )
            return f"step {copy.step} is not in {self.url} ({reason})"
        self._warned = False
        try:
            self._thin_out(copy.step)
        except RemoteError as error:
            self._warn(f"{self.url}: old checkpoints cannot be deleted ({error}), so they stay")
        return None

    def _warn(self, line: str) -> None:
        """Once, until something succeeds again."""
        if not self._warned:
            log.warning("%s", line)
        self._warned = True

    def _upload(self, copy: _Copy, again: bool) -> None:
        """Copy the files of a checkpoint.

        Args:
            again: those that are there may be left as they are.
        """
        remote, folder = self._reach(), stored_folder(copy.step)
        root = checkpoint_path(self.run_dir, copy.step)
        copy.files = _files(root)
        there = self._there.get(copy.step, {}) if again else {}
        if again and not there:
            there = stored_files(remote, copy.step) or {}
        if there == copy.files:
            return
        if not there.items() <= copy.files.items():
            there = {}
        if not there:
            remote.remove(f"{folder}/{MARKER}")
        self._bring_records()
        for name, size in copy.files.items():
            if name not in there:
                remote.put(root / name, f"{folder}/{name}")
            copy.sent += size
        remote.write(f"{folder}/{MARKER}", json.dumps({"files": copy.files}).encode())
        self._there[copy.step] = dict(copy.files)
        log.debug("step %d is in %s", copy.step, self.url)

    def _thin_out(self, newest: int) -> None:
        """Delete what is not to be kept there, half copied checkpoints among it."""
        remote = self._reach()
        found, complete = stored_steps(remote)
        kept = {*complete[-self.keep_last :], *self._best}
        for step in found:
            if step != newest and (step not in kept or step not in complete):
                remote.remove(f"{stored_folder(step)}/{MARKER}")
                remote.remove(stored_folder(step))
                self._there.pop(step, None)

    def _bring_records(self) -> None:
        """The metrics so far. They are read whole: they grow while they are sent."""
        metrics = self.run_dir / "metrics.jsonl"
        if metrics.exists():
            self._reach().write("metrics.jsonl", metrics.read_bytes())

    def _reach(self) -> Remote:
        assert self._remote is not None  # or nothing would have been offered
        return self._remote

    def _say(self) -> None:
        copy = self._current
        if copy is not None:
            total = sum(copy.files.values())
            log.info(
                "waiting for the copy of step %d in %s: %d of %d MB; Ctrl-C leaves it (all is safe "
                "in %s)",
                *(copy.step, self.url, copy.sent // MB, -(-total // MB), self.run_dir),
            )


class _Copy:
    """A checkpoint on its way.

    Attributes:
        files: bytes, by name.
        sent: bytes that have arrived.
    """

    def __init__(self, step: int) -> None:
        self.step, self.sent = step, 0
        self.files: dict[str, int] = {}


def _files(checkpoint: Path) -> dict[str, int]:
    """All but the marker, and but a model that is being written: bytes, by name.

    Raises:
        OSError: what another node has written does not show up in time.
    """
    expected = {f"rng-{rank}.pt" for rank in range(saved_state(checkpoint)["world_size"])}
    if is_sharded(checkpoint):
        from weighted_mtp.runtime import shards  # slow to import, and rarely needed

        expected |= {f"shards/{name}" for name in shards.stored_files(checkpoint / "shards")}
    deadline = time.monotonic() + distributed.FILE_LAG
    while True:
        found = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
        sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in found}
        files = {n: s for n, s in sizes.items() if n != MARKER and ".partial-" not in n}
        if not (lacking := expected - files.keys()):
            return files
        if time.monotonic() > deadline:
            raise OSError(f"{checkpoint / min(lacking)} is not there")
        time.sleep(0.5)


def stored_folder(step: int) -> str:
    """Name of a checkpoint in a remote directory: the same as in a run."""
    return checkpoint_path(Path(), step).as_posix()


def stored_steps(remote: Remote) -> tuple[list[int], list[int]]:
    """Steps of which there is anything in a remote directory, and those complete, in order.

    Raises:
        RemoteError: it cannot be listed.
    """
    names = [name.split("/") for name in remote.files("checkpoints")]
    found = {name[0] for name in names if len(name) > 1 and name[0].startswith("step-")}
    complete = {name[0] for name in names if name[1:] == [MARKER]} & found
    return _numbers(found), _numbers(complete)


def _numbers(folders: Iterable[str]) -> list[int]:
    digits = (folder.removeprefix("step-") for folder in folders)
    return sorted(int(number) for number in digits if number.isdecimal())


def stored_files(remote: Remote, step: int) -> dict[str, int] | None:
    """The files of a complete checkpoint there; None if it is not complete.

    An empty marker, as in a run directory that was copied by hand, stands for all that is there.

    Raises:
        RemoteError: it cannot be read, or a name leads out of the checkpoint.
    """
    folder = stored_folder(step)
    content = remote.read(f"{folder}/{MARKER}")
    if content is None:
        return None
    if not content.strip():
        return {name: n for name, n in remote.files(folder).items() if name != MARKER}
    try:
        listed: Mapping[str, Any] = parse_json(content)["files"]
        files = {str(name): int(size) for name, size in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None  # cut: where a file appears before it is whole
    for name in files:
        check_name(name)
    return files
