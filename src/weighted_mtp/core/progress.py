"""Progress of long work: a bar on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

from weighted_mtp.core.logging import note

LINE_EVERY_SECONDS = 10.0
_NO_ETA = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """Counts to `total`; shows a rate, an ETA and whatever figures the caller adds.

    Args:
        total: units of work in all.
        label: what is counted.
        done: units finished earlier (a resumed run).
        enabled: False on every rank but the first.
        together: units that are worked on at a time. Until as many are done there is no ETA: the
            first of them took as long as all.
    """

    def __init__(
        self, total: int, label: str, done: int = 0, enabled: bool = True, together: int = 1
    ) -> None:
        self.total, self.label, self.done, self.enabled = total, label, done, enabled
        self._known = done + min(together, total - done)
        self._bar: tqdm[NoReturn] | None = None
        self._start, self._first, self._last_line = time.monotonic(), done, 0.0
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=label, initial=done, dynamic_ncols=True)
            if self._known > done + 1:
                self._bar.bar_format = _NO_ETA

    def update(self, units: int = 1, figures: str = "") -> None:
        """Report `units` more, with the newest figures ("loss 0.52 · 31k tok/s")."""
        self.done += units
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            if self.done >= self._known:
                self._bar.bar_format = None
            self._bar.update(units)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_SECONDS or self.done >= self.total:
            self._last_line = now
            self.note(f"{self.label} {self.done}/{self.total}  {figures}  ETA {self._eta(now)}")

    def note(self, line: str) -> None:
        """Print a line without disturbing the bar, and keep it in the run's log file."""
        if self.enabled:
            note(line)
            tqdm.write(line, file=sys.stderr) if self._bar is not None else _plain(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _eta(self, now: float) -> str:
        if self.done < self._known:
            return "–"
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        seconds = int((self.total - self.done) / rate) if rate > 0 else 0
        return f"{seconds // 60}:{seconds % 60:02d}"


def _plain(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
