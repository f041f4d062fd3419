"""A file of JSON lines that a kill leaves whole but for its last line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from weighted_mtp.core.input_files import read_regular


class LineFile:
    """Lines that are on disk as soon as they are written; what a kill cut short is overwritten.

    Nothing is opened for writing before the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._kept = 0

    @property
    def is_open(self) -> bool:
        """Whether a line was written."""
        return self._file is not None

    @property
    def is_empty(self) -> bool:
        """Whether no line is kept that was read."""
        return not self._kept

    def read(self) -> Iterator[bytes]:
        """Yield the lines up to the first that has no end. Those that a caller has asked to follow
        are kept, the others overwritten."""
        for line in read_regular(self.path).splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return  # cut short by a kill
            yield line
            self._kept += len(line)

    def discard(self) -> None:
        """Keep none of the lines that were read."""
        self._kept = 0

    def append(self, value: Any) -> None:
        """Write a value on a line of its own.

        Raises:
            OSError: it cannot be written.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)  # closing has nothing left to write
            self._file.truncate(self._kept)
        left = memoryview((json.dumps(value) + "\n").encode("ascii"))
        while left:  # an unbuffered file may accept only a part at a time
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file, if a line was written."""
        if self._file is not None:
            self._file.close()
