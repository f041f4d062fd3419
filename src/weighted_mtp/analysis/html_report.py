"""A self-contained HTML page about a run: no scripts, no network access."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weighted_mtp.analysis.charts import Curve, line_chart
from weighted_mtp.analysis.html_parts import (
    ProgramCard,
    Table,
    card_html,
    heat_bound,
    pair_html,
    table_html,
)
from weighted_mtp.analysis.html_style import style_sheet, text
from weighted_mtp.core.types import TokenTrace

__all__ = ["Curve", "ProgramCard", "Report", "Table", "TokenTrace", "render", "write"]

# Makes the browser itself block scripts and network access, whatever a program contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_EMPTY = '<p class="empty">Nothing to report yet.</p>'
_WORDS = (
    ("Token", "What the model writes at once: a word, a part of a word, or a single byte."),
    (
        "Value",
        "A second output of the model, the critic, estimates after each token how likely the "
        "finished program is to be correct: 1 is certainly correct, 0 certainly incorrect.",
    ),
    (
        "TD error",
        "How much one token changed that estimate; for the last token, the outcome (1 or 0) "
        "minus the estimate. TD stands for temporal difference.",
    ),
    (
        "Weight",
        "How strongly the model learns this token: 1 is the same as in plain training, above 1 "
        "more, below 1 less.",
    ),
)


@dataclass(frozen=True)
class Report:
    """Contents of the page; empty parts are left out.

    Attributes:
        summary: (name, value, meaning in one sentence).
        facts: (name, value) of how the run was made: date, duration, device, version, …
        curves: line charts, such as losses.
        pairs: a correct and an incorrect program of the same problem.
        tables: such as pass@1 by family.
        programs: some generated programs with their verdicts.
        settings: the recipe as YAML, folded away.
    """

    title: str
    summary: Sequence[tuple[str, str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    curves: Sequence[Curve] = ()
    pairs: Sequence[tuple[TokenTrace, TokenTrace]] = ()
    tables: Sequence[Table] = ()
    programs: Sequence[ProgramCard] = ()
    notes: Sequence[str] = ()
    settings: str = ""


def render(report: Report) -> str:
    """Return the whole page."""
    sections = [
        (key, title, body)
        for key, title, body in (
            ("summary", "Summary", _summary(report)),
            ("run", "This run", _facts(report)),
            ("curves", "Training curves", _curves(report)),
            ("pairs", "Correct and incorrect programs, token by token", _pairs(report)),
            ("tables", "Results in detail", "".join(table_html(table) for table in report.tables)),
            ("programs", "Generated programs", _programs(report)),
            ("notes", "Notes", _notes(report)),
            ("settings", "Settings", _settings(report)),
        )
        if body
    ]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(sections) > 1 else ""
    main = "\n".join(
        f'<section id="{key}"><h2>{title}</h2>\n{body}</section>' for key, title, body in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{text(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(report.title)}</title>\n<style>{style_sheet()}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(report.title)}</h1>{contents}</header>\n"
        f"<main>\n{main or _EMPTY}\n</main>\n"
        "</body>\n</html>\n"
    )


def write(report: Report, path: Path) -> None:
    """Render into a file, replaced atomically: no reader sees half a page."""
    page = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    partial.replace(path)


def _summary(report: Report) -> str:
    if not report.summary:
        return ""
    return table_html(Table("", ("figure", "value", "meaning"), report.summary))


def _facts(report: Report) -> str:
    return table_html(Table("", ("property", "value"), report.facts)) if report.facts else ""


def _curves(report: Report) -> str:
    charts = "".join(line_chart(curve) for curve in report.curves)
    return f'<div class="charts">{charts}</div>' if charts else ""


def _pairs(report: Report) -> str:
    if not report.pairs:
        return ""
    words = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in _WORDS)
    bound = heat_bound(trace for pair in report.pairs for trace in pair)
    pairs = "".join(pair_html(pair, bound) for pair in report.pairs)
    return f"<details open><summary>Words used here</summary><dl>{words}</dl></details>{pairs}"


def _programs(report: Report) -> str:
    if not report.programs:
        return ""
    passed = sum(card.passed for card in report.programs)
    cards = "".join(card_html(card) for card in report.programs)
    return (
        f'<p class="lead">{passed} of the {len(report.programs)} programs shown passed.</p>'
        f'<div class="cards">{cards}</div>'
    )


def _notes(report: Report) -> str:
    items = "".join(f"<li>{text(note)}</li>" for note in report.notes)
    return f"<ul>{items}</ul>" if items else ""


def _settings(report: Report) -> str:
    if not report.settings.strip():
        return ""
    return (
        "<details><summary>The recipe of this run (YAML)</summary>"
        f'<pre tabindex="0"><code>{text(report.settings)}</code></pre></details>'
    )
