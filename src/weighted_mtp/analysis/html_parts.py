"""Parts of the HTML report: tables, program cards, and programs token by token."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weighted_mtp.analysis.charts import Curve, line_chart
from weighted_mtp.analysis.html_style import (
    LEVELS,
    figure,
    level_class,
    level_weight,
    text,
    visible,
    weight_level,
)
from weighted_mtp.core.types import TokenTrace

STRONGEST = 10  # tokens listed below a program
_NUMBER = re.compile(r"[+\-−±]?[\d.,\s]*\d\s?(%|[a-zA-Z]{1,2})?|[–-]?")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column labels the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{self.title!r}: a row of {len(row)} under {len(self.header)}")


@dataclass(frozen=True)
class ProgramCard:
    """A generated program and the verdict of its tests."""

    instruction: str
    source: str
    verdict: str
    passed: bool


def table_html(table: Table) -> str:
    """Return heading and table; numeric columns are right-aligned, wide tables scroll."""
    columns = range(len(table.header))
    numeric = [all(_NUMBER.fullmatch(row[i].strip()) for row in table.rows) for i in columns]
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in table.header)
    body = "".join(f"<tr>{_row(row, numeric)}</tr>" for row in table.rows)
    caption = f"<caption>{text(table.caption)}</caption>" if table.caption else ""
    title = f"<h3>{text(table.title)}</h3>" if table.title else ""
    return (
        f'{title}<div class="scroll" tabindex="0" role="group" aria-label="table"><table>{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def card_html(card: ProgramCard) -> str:
    """Return one program with its task and verdict."""
    return (
        f'<article class="card"><h3>Task</h3><p class="task">{text(card.instruction)}</p>'
        f'<p class="verdict {_sense(card.passed)}">{_sign(card.passed)} {text(card.verdict)}</p>'
        f'<pre tabindex="0"><code>{text(card.source)}</code></pre></article>'
    )


# --- programs, token by token --------------------------------------------------------------------


def heat_bound(traces: Iterable[TokenTrace]) -> float:
    """Return the end of the color scale of all programs: the weight (or its inverse) furthest from
    1, but at least 1.5, so that noise stays pale, and at most 10."""
    factors = [
        max(w, 1 / w) for trace in traces for w in trace.weights if 1e-100 < w < 1e100 and w != 1
    ]
    return min(10.0, max([1.5, *factors]))


def pair_html(pair: tuple[TokenTrace, TokenTrace], bound: float) -> str:
    """Return the value curves of two programs of one problem, and their code colored by weight."""
    titles = list(dict.fromkeys(trace.title for trace in pair))
    tasks = dict.fromkeys(trace.instruction for trace in pair)
    names = [f"{_word(trace.is_correct)} program" for trace in pair]
    if names[0] == names[1]:
        names = [f"{name} {i}" for i, name in enumerate(names, 1)]
    instructions = "".join(f'<p class="task">{text(task)}</p>' for task in tasks if task)
    programs = "".join(
        _program(trace, name, bound) for trace, name in zip(pair, names, strict=True)
    )
    return (
        f'<section class="pair"><h3>{text(" / ".join(titles))}</h3>{instructions}'
        f"{_value_chart(pair, names)}{_scale(bound)}"
        f'<div class="two">{programs}</div></section>'
    )


def token_spans(trace: TokenTrace, bound: float) -> str:
    """Return the program with a `<span>` per token: the color is its weight, the title the rest."""
    spans = []
    for i, piece in enumerate(trace.pieces):
        css = level_class(weight_level(trace.weights[i], bound))
        spans.append(f'<span class="{css}" title="{text(_tooltip(trace, i))}">')
        if piece:
            spans.append(text(piece).replace("\n", '<i class="mark" data-mark="↵"></i>\n'))
        else:
            spans.append(f'<i class="mark">{_without_text(trace, i)}</i>')
        spans.append("</span>")
    return "".join(spans)


def _value_chart(pair: tuple[TokenTrace, TokenTrace], names: Sequence[str]) -> str:
    series = {}
    for trace, name in zip(pair, names, strict=True):
        n = max(1, len(trace.values))
        values = [trace.start_value, *trace.values]
        while values and math.isnan(values[-1]):  # there is none after EOS
            values.pop()
        series[name] = ([100 * i / n for i in range(len(values))], values)
    curve = Curve(
        title="Value along the two programs, token by token",
        x_label="share of the response written (%)",
        y_label="value",
        series=series,
        caption="After every token the critic estimates whether the program will be correct (1) or "
        "incorrect (0); the line falls where it sees a program go wrong.",
        x_range=(0, 100),
        y_range=(0, 1),
        colours=[f"--{_sense(trace.is_correct)}" for trace in pair],
    )
    return line_chart(curve, heading="h4")


def _scale(bound: float) -> str:
    """Return the legend of the heat map."""
    steps = "".join(
        f'<span class="{level_class(level)}" title="weight {figure(level_weight(level, bound))}">'
        "</span>"
        for level in range(-LEVELS, LEVELS + 1, 2)
    )
    low, high = (f"{level_weight(level, bound):.2g}" for level in (-LEVELS, LEVELS))
    return (
        f'<p class="scale"><span>Color of a token: its weight,</span> <span>{low} or less</span> '
        f'<span class="steps">{steps}</span> <span>{high} or more</span> '
        "<small>Blue: below 1, learned less; no color: 1; orange: learned more.</small></p>"
    )


def _program(trace: TokenTrace, name: str, bound: float) -> str:
    known = [w for w in trace.weights if math.isfinite(w)]
    mean = sum(known) / len(known) if known else math.nan
    label = f"{name[0].upper()}{name[1:]}: each token's color is its weight"
    return (
        f'<figure class="program"><h4 class="{_sense(trace.is_correct)}">'
        f"{_sign(trace.is_correct)} {text(name[0].upper() + name[1:])}</h4>"
        f'<pre class="heat" tabindex="0" role="group" aria-label="{text(label)}">'
        f"<code>{token_spans(trace, bound)}</code></pre>"
        f"{_strongest(trace, bound)}"
        f"<figcaption>{len(trace.pieces)} tokens, mean weight {figure(mean)}. Hover over "
        "a token for its value, TD error and weight; ↵ marks a line end.</figcaption></figure>"
    )


def _strongest(trace: TokenTrace, bound: float) -> str:
    """Return the tokens with weights furthest from 1, for readers who cannot hover."""

    def distance(i: int) -> float:
        weight = trace.weights[i]
        return abs(math.log(weight)) if weight > 0 else math.inf

    known = [i for i, w in enumerate(trace.weights) if not math.isnan(w) and w != 1]
    chosen = sorted(sorted(known, key=distance, reverse=True)[:STRONGEST])
    if not chosen:
        return ""
    rows = "".join(
        f'<tr><td class="number">{i + 1}</td><td><code>{_in_context(trace, i)}</code></td>'
        f'<td class="number">{figure(_before(trace, i))} → {figure(trace.values[i])}</td>'
        f'<td class="number">{figure(trace.td_errors[i], sign=True)}</td>'
        f'<td class="number {level_class(weight_level(trace.weights[i], bound))}">'
        f"{figure(trace.weights[i])}</td></tr>"
        for i in chosen
    )
    columns = ("place", "token, underlined", "value before → after", "TD error", "weight")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    return (
        "<details><summary>The tokens whose weight is furthest from 1</summary>"
        '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _in_context(trace: TokenTrace, i: int, reach: int = 12) -> str:
    """Return a token with the text around it, on one line."""

    def flat(value: str) -> str:
        return text(value).replace("\n", "↵")

    before = "".join(trace.pieces[max(0, i - reach) : i])[-reach:]
    after = "".join(trace.pieces[i + 1 : i + 1 + reach])[:reach]
    token = flat(trace.pieces[i]) or _without_text(trace, i)
    return f"{flat(before)}<mark>{token}</mark>{flat(after)}"


def _tooltip(trace: TokenTrace, i: int) -> str:
    piece = trace.pieces[i]
    token = repr(visible(piece)) if piece else _without_text(trace, i)
    if "\ufffd" in piece:
        token += " (part of a character)"
    return (
        f"{token} · value {figure(trace.values[i])} · TD error {figure(trace.td_errors[i], True)}"
        f" · weight {figure(trace.weights[i])}"
    )


def _without_text(trace: TokenTrace, i: int) -> str:
    return "⏎ end" if i == len(trace.pieces) - 1 else "∅"


def _before(trace: TokenTrace, i: int) -> float:
    return trace.values[i - 1] if i else trace.start_value


def _row(row: Sequence[str], numeric: Sequence[bool]) -> str:
    cells = []
    for i, cell in enumerate(row):
        if i == 0:
            cells.append(f'<th scope="row">{text(cell)}</th>')
        else:
            css = ' class="number"' if numeric[i] else ""
            cells.append(f"<td{css}>{text(cell)}</td>")
    return "".join(cells)


def _word(right: bool) -> str:
    return "correct" if right else "incorrect"


def _sense(right: bool) -> str:
    return "good" if right else "bad"


def _sign(right: bool) -> str:
    return "✓" if right else "✗"
