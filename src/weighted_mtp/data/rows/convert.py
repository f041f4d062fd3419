"""From a JSONL file of any size to Arrow tables, a stretch of lines at a time.

The file is read once from end to end, which hashes it and cuts it into stretches of whole lines.
Each becomes one Arrow file, large files on all cores: this module is also the program that the
worker processes run. They are started afresh, neither forked (threads) nor by multiprocessing
(which runs the user's script again), and end when their standard input does.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.processes import available_cores
from weighted_mtp.core.progress import Progress
from weighted_mtp.core.types import Row
from weighted_mtp.data.datasets import MAX_LINE, no_rows, parse_row, read_lines, unreadable
from weighted_mtp.data.rows.columns import COLUMNS, to_table

SPAN_BYTES = 64 << 20
"""Length of a stretch, and so of the text in an Arrow file."""
MUCH = 256 << 20
"""Bytes from which on several processes pay."""
_SHOWN = 64 << 20
"""Bytes from which on progress is shown."""
_BATCH_ROWS, _BATCH_BYTES = 10_000, 16 << 20
"""Of a record batch. Opening a table reads the head of each, so they should not be small."""


@dataclass(frozen=True)
class Span:
    """Whole lines of a file.

    Attributes:
        start, size: in bytes.
        first: number of the first line.
    """

    path: str
    start: int
    size: int
    first: int


@dataclass(frozen=True)
class Converted:
    """What a conversion made: SHA-256 of the source, its rows, and the Arrow files in order."""

    digest: str
    rows: int
    files: tuple[str, ...]


def convert(path: Path, folder: Path, workers: int | None = None) -> Converted:
    """Write the rows of a JSONL file as `rows-00000.arrow`, … into an empty folder.

    Args:
        workers: processes; None takes one, or one a core for a file of at least `MUCH` bytes. The
            files do not depend on it.

    Raises:
        UserError: the file cannot be read, has no rows, or a line is malformed: the first of the
            malformed ones is named.
        OSError: the folder cannot be written.
    """
    try:
        length = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    count = workers or (1 if length < MUCH else min(available_cores(), 8))
    digest, rows, files = hashlib.sha256(), 0, []
    label = f"preparing {path.name}, MiB"
    with Progress(length >> 20, label, enabled=length >= _SHOWN) as progress, _Pool(count) as pool:
        for span, name, written in _in_order(pool, _spans(path, digest), folder):
            rows += written
            files += [name] if written else []
            end = span.start + span.size
            progress.update((end >> 20) - (span.start >> 20), f"{rows:,} rows")
    if not rows:
        raise no_rows(path)
    return Converted(digest.hexdigest(), rows, tuple(files))


def convert_span(span: Span, out: Path) -> int:
    """Write one stretch as an Arrow file, unless it has no rows; returns how many.

    Raises:
        UserError: it cannot be read, or a line is malformed.
        OSError: it cannot be written.
    """
    from datasets import Features, Value  # a second to import
    from datasets.arrow_writer import ArrowWriter

    features = Features({name: Value(kind) for name, kind in COLUMNS.items()})
    rows = 0
    with out.open("wb") as file:
        writer = ArrowWriter(features=features, stream=file)
        for batch in _batches(span):
            rows += len(batch)
            writer.write_table(to_table(batch, features.arrow_schema), len(batch))
        writer.finalize(close_stream=False)
    if not rows:
        out.unlink()
    return rows


def _batches(span: Span) -> Iterator[list[Row]]:
    path, batch, size = Path(span.path), [], 0
    try:
        with path.open("rb") as file:
            file.seek(span.start)
            for number, line in read_lines(file, path, span.first, span.size):
                batch.append(parse_row(line, f"{path}, line {number}", number))
                size += len(line)
                if len(batch) == _BATCH_ROWS or size >= _BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
    except OSError as error:
        raise unreadable(path, error) from error
    if batch:
        yield batch


def _spans(path: Path, digest: Any) -> Iterator[Span]:
    """Cut a file at line ends, and hash it on the way."""
    start, first = 0, 1
    try:
        with path.open("rb") as file:
            while True:
                size, lines, block = 0, 0, b""
                for block in _blocks(file):
                    digest.update(block)
                    size += len(block)
                    lines += block.count(b"\n")
                if size:
                    yield Span(str(path), start, size, first)
                if not block.endswith(b"\n"):  # the end, or a line too long to be read
                    return
                start, first = start + size, first + lines
    except OSError as error:
        raise unreadable(path, error) from error


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """About `SPAN_BYTES`, up to the end of a line (or into one that is too long)."""
    size = 0
    while size < SPAN_BYTES and (block := file.read(min(SPAN_BYTES, 1 << 20))):
        size += len(block)
        yield block
    if size and not block.endswith(b"\n"):
        yield file.readline(MAX_LINE + 1)


def _in_order(pool: _Pool, spans: Iterator[Span], folder: Path) -> Iterator[tuple[Span, str, int]]:
    """Every span with its file's name and rows, as they stand in the source; only a few are on
    their way at a time."""
    waiting: deque[tuple[Span, str, Future[int]]] = deque()
    for number, span in enumerate(spans):
        name = f"rows-{number:05d}.arrow"
        waiting.append((span, name, pool.submit(span, folder / name)))
        if len(waiting) > 2 * pool.workers:
            span, name, future = waiting.popleft()
            yield span, name, future.result()
    for span, name, future in waiting:
        yield span, name, future.result()


class _Pool:
    """Converts spans in this process (one worker) or in as many others."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._threads = ThreadPoolExecutor(workers)
        self._processes = [_start() for _ in range(workers if workers > 1 else 0)]
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def submit(self, span: Span, out: Path) -> Future[int]:
        if self._processes:
            return self._threads.submit(self._elsewhere, span, out)
        return self._threads.submit(convert_span, span, out)

    def _elsewhere(self, span: Span, out: Path) -> int:
        process = self._idle.get()
        try:
            return _ask(process, span, out)
        finally:
            self._idle.put(process)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._threads.shutdown(cancel_futures=True)


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)


def _ask(process: subprocess.Popen[str], span: Span, out: Path) -> int:
    """One line there, one line back."""
    job = json.dumps({"span": asdict(span), "out": str(out)})
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job + "\n")
        process.stdin.flush()
        reply = json.loads(process.stdout.readline())
    except (BrokenPipeError, ValueError) as error:
        raise UserError(
            f"{span.path}: a process that read it died, perhaps because it ran out of memory; try "
            "again"
        ) from error
    if "wrong" in reply:
        raise UserError(reply["wrong"])
    if "error" in reply:
        raise OSError(*reply["error"])
    return int(reply["rows"])


def _serve() -> None:
    """Be a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends us
    for line in sys.stdin:
        job = json.loads(line)
        try:
            reply: dict[str, Any] = {"rows": convert_span(Span(**job["span"]), Path(job["out"]))}
        except UserError as error:
            reply = {"wrong": str(error)}
        except OSError as error:
            reply = {"error": [error.errno, error.strerror]}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
