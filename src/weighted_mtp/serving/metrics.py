"""Figures of a server, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

from weighted_mtp.decoding import Report

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # seconds
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts read.",
    "texts": "Texts written to their end.",
    "cancelled": "Texts given up because the client went away.",
    "timeouts": "Texts given up because their time was over.",
    "failures": "Texts lost to an error of the server.",
}
_HISTOGRAMS = {
    "queue_seconds": "Time of a text in the queue.",
    "first_token_seconds": "Time from the request to the first token of a text.",
    "text_seconds": "Time from the request to the end of a text.",
}


class Metrics:
    """Counts since the start; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets = {name: [0] * (len(_BOUNDS) + 1) for name in _HISTOGRAMS}
        self._sums = dict.fromkeys(_HISTOGRAMS, 0.0)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name] += by

    def count_request(self, path: str, status: int) -> None:
        """Count a request by the answer's HTTP status."""
        with self._lock:
            self._requests[path, status] += 1

    def observe(self, name: str, seconds: float) -> None:
        """Add a time to a histogram."""
        with self._lock:
            self._buckets[name][bisect_left(_BOUNDS, seconds)] += 1
            self._sums[name] += seconds

    def text(self, report: Report, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All figures.

        Args:
            report: of the decoder.
            gauges: what holds now: name → meaning and value.
        """
        with self._lock:
            lines = [*self._own(), *_of(report)]
        for name, (meaning, value) in gauges.items():
            lines += _head(name, "gauge", meaning)
            lines.append(f"weighted_mtp_{name} {value:.10g}")
        return "\n".join(lines) + "\n"

    def _own(self) -> Iterator[str]:
        yield from _head("requests_total", "counter", "HTTP requests by path and status.")
        for (path, status), count in sorted(self._requests.items()):
            yield f'weighted_mtp_requests_total{{path="{path}",status="{status}"}} {count}'
        for name, meaning in _COUNTERS.items():
            yield from _counter(f"{name}_total", meaning, self._counts[name])
        for name, meaning in _HISTOGRAMS.items():
            yield from _head(name, "histogram", meaning)
            total = 0
            for bound, count in zip((*_BOUNDS, "+Inf"), self._buckets[name], strict=True):
                total += count
                yield f'weighted_mtp_{name}_bucket{{le="{bound}"}} {total}'
            yield f"weighted_mtp_{name}_sum {self._sums[name]:.6f}"
            yield f"weighted_mtp_{name}_count {total}"


def _of(report: Report) -> Iterator[str]:
    yield from _counter("generated_tokens_total", "Tokens of texts.", report.tokens)
    yield from _counter(
        "forward_passes_total", "Forward passes, those over prompts included.", report.forwards
    )
    yield from _counter(
        "row_steps_total", "Rows that took part in a pass after their prompts.", report.steps
    )
    decided = sum(count * (i + 1) for i, count in enumerate(report.histogram))
    yield from _counter("row_tokens_total", "Tokens decided by these.", decided)
    yield from _counter(
        "rereads_total", "Near-ties settled by reading a whole text.", report.rereads
    )
    if report.steps:
        yield from _head(
            "tokens_per_forward",
            "gauge",
            "Mean tokens that a row gained by a pass since the start.",
        )
        yield f"weighted_mtp_tokens_per_forward {report.tokens_per_forward:.6f}"
    for name, meaning, counts in (
        ("drafts_tested_total", "Drafts judged, by head.", report.tested),
        ("drafts_accepted_total", "Drafts that were right, by head.", report.accepted),
    ):
        yield from _head(name, "counter", meaning)
        for head, count in enumerate(counts, 2):
            yield f'weighted_mtp_{name}{{head="{head}"}} {count}'
    yield from _head("acceptance", "gauge", "Share of right drafts since the start, by head.")
    for head, share in enumerate(report.acceptance, 2):
        if share == share:  # judged at all
            yield f'weighted_mtp_acceptance{{head="{head}"}} {share:.6f}'


def _counter(name: str, meaning: str, value: int) -> Iterator[str]:
    yield from _head(name, "counter", meaning)
    yield f"weighted_mtp_{name} {value}"


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP weighted_mtp_{name} {meaning}", f"# TYPE weighted_mtp_{name} {kind}"]
