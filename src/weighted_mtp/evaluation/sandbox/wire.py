"""Messages between the processes of a program and of its tests: JSON, preceded by its length."""

from __future__ import annotations

import os
from json import dumps, loads
from typing import Any

MAX_MESSAGE = 64 << 20
_HEADER = 4
_read, _write = os.read, os.write
FORGED = "an answer that is not the sandbox's own"


class GoneError(BaseException):
    """The other side ended, or sent an invalid message. No test can catch it by `Exception`."""


class Line:
    """One end of the connection between two processes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            GoneError: the other side has ended.
        """
        data = dumps(message).encode("ascii")
        view = memoryview(len(data).to_bytes(_HEADER, "big") + data)
        try:
            while view:
                view = view[_write(self._descriptor, view) :]
        except OSError as error:
            raise GoneError("the line is cut") from error

    def receive(self) -> dict[str, Any]:
        """Wait for one message.

        Raises:
            GoneError: the other side has ended, or this is not a message.
        """
        size = int.from_bytes(self._take(_HEADER), "big")
        if size > MAX_MESSAGE:
            raise GoneError(FORGED)
        data = self._take(size)
        try:
            message: dict[str, Any] = loads(data)
            if type(message) is not dict:
                raise ValueError("no message")
        except (ValueError, RecursionError) as error:
            raise GoneError(FORGED) from error
        return message

    def _take(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = _read(self._descriptor, min(size, 1 << 20))
            except OSError as error:
                raise GoneError("the line is cut") from error
            if not part:
                raise GoneError("")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
