"""Ctrl-C and SIGTERM as a wish to stop after the current step, not as an exception inside it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from weighted_mtp.runtime import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While active, the first signal only sets a flag; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def agreed(self) -> bool:
        """True on every rank as soon as one of them was asked to stop. It is asked on the CPU,
        where a process that ended shows as an exception between two steps."""
        return distributed.any_rank(self.wanted, torch.device("cpu"))

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and distributed.is_lost(error):
            return  # torchrun ends those that are left, and must not be faster than their last word
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
