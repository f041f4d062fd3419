"""The cost of decoding over a whole evaluation, for result files and for people."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from weighted_mtp.decoding import Report


@dataclass
class DecodingFigures:
    """Counts over many calls of decoding.

    Attributes:
        k: most tokens that a forward pass may decide for a text; 1 without drafts.
        texts: number of texts written.
        seconds: of decoding with the prompts' prefill, without loading the model.
        report: the calls' reports, summed.
    """

    k: int
    texts: int = 0
    seconds: float = 0.0
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.report = Report(self.k)

    def add(self, report: Report, texts: int, seconds: float) -> None:
        """Add one call."""
        total = self.report
        self.texts += texts
        self.seconds += seconds
        total.tokens += report.tokens
        total.forwards += report.forwards
        total.steps += report.steps
        total.nodes += report.nodes
        total.rereads += report.rereads
        total.ties = report.ties
        total.histogram = _sum(total.histogram, report.histogram)
        total.tested = _sum(total.tested, report.tested)
        total.accepted = _sum(total.accepted, report.accepted)

    @property
    def tokens_per_second(self) -> float:
        """NaN before the first text."""
        return self.report.tokens / self.seconds if self.seconds else math.nan

    def record(self) -> dict[str, Any]:
        """Return the figures for a result file; what was not measured is null."""
        report = self.report
        nodes = {"nodes_per_pass": _rounded(report.nodes_per_pass)} if report.nodes else {}
        return {
            "texts": self.texts,
            "tokens": report.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": _rounded(self.tokens_per_second),
            "k": self.k,
            "tokens_per_forward": _rounded(report.tokens_per_forward),
            **nodes,
            "acceptance": [_rounded(share) for share in report.acceptance],
            "histogram": report.histogram,
            "forwards": report.forwards,
            "ties": report.ties,
            "rereads": report.rereads,
        }


def table(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, figure, meaning) of everything in a `DecodingFigures.record`."""
    rate, gain = record["tokens_per_second"], record["tokens_per_forward"]
    texts = f"in {record['texts']:,} programs"
    lines = [("tokens/s", _shown(rate), f"tokens decoded per second by whole batches, {texts}")]
    lines.append(
        (
            "per forward",
            _shown(gain),
            f"tokens that a text gains per forward pass, at most {record['k']}",
        )
    )
    if record.get("nodes_per_pass") is not None:
        nodes = _shown(record["nodes_per_pass"])
        lines.append(("nodes", nodes, "tokens that a forward pass reads, drafts included"))
    lines += [
        (
            f"head {head}",
            "–" if share is None else f"{share:.1%}",
            "of its verified drafts were kept",
        )
        for head, share in enumerate(record["acceptance"], 2)
    ]
    return lines


def line(record: dict[str, Any]) -> str:
    """Return the same on one line, for the end of a command."""
    parts = [
        f"{record['tokens']:,} tokens in {record['seconds']:.1f} s",
        f"{_shown(record['tokens_per_second'])} tokens/s",
        f"{_shown(record['tokens_per_forward'])} tokens per forward (at most {record['k']})",
    ]
    if record.get("nodes_per_pass") is not None:
        parts.append(f"{_shown(record['nodes_per_pass'])} nodes per pass")
    heads = [
        f"head {head} {'–' if share is None else f'{share:.0%}'}"
        for head, share in enumerate(record["acceptance"], 2)
    ]
    return ", ".join(parts) + (f"; drafts kept: {', '.join(heads)}" if heads else "")


def _sum(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
