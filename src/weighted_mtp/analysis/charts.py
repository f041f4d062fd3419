"""Line charts as inline SVG: no script, no image file, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from weighted_mtp.analysis.html_style import SERIES_STYLES, figure, text

MAX_POINTS = 300
FEW_POINTS = 25  # a series this short also shows a dot at each point
WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 28, 46

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line chart.

    Attributes:
        series: name to (x values, y values); a y that is not finite is a gap in the line.
        log_y: logarithmic y axis; a y that is not positive is then a gap too.
        caption: one sentence on how to read it.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_y: bool = False
    caption: str = ""

    def __post_init__(self) -> None:
        for name, (xs, ys) in self.series.items():
            if len(xs) != len(ys):
                raise ValueError(f"series {name!r}: {len(xs)} x values, {len(ys)} y values")


@dataclass(frozen=True)
class Axis:
    """From data to pixels: `low` is drawn at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values within the axis, each with its label."""
        if self.log:
            found = _log_ticks(self.low, self.high)
            if len(found) >= 3:
                return [(value, f"{value:g}") for value in found]
        step, found = _linear_ticks(self.low, self.high)
        return [(value, _tick_label(value, step)) for value in found]


def line_chart(
    curve: Curve,
    styles: Sequence[str] = (),
    x_range: Sequence[float] = (),
    y_range: Sequence[float] = (),
    heading: str = "h3",
) -> str:
    """A `<figure>`: heading, SVG, legend with the last value of each series, caption.

    Args:
        styles: style-sheet class of each series (default: `s0`, `s1`, …).
        x_range: values that the x axis must show.
        y_range: values that the y axis must show.
        heading: tag of the title, by its depth in the page.
    """
    drawn = {name: drawable(*data, log_y=curve.log_y) for name, data in curve.series.items()}
    classes = [styles[i] if i < len(styles) else f"s{i % SERIES_STYLES}" for i in range(len(drawn))]
    shown = [point for points in drawn.values() for point in points if not math.isnan(point[1])]
    missing = sum(len(ys) for _, ys in curve.series.values()) - len(shown)
    if shown:
        picture = _svg(curve, drawn, classes, shown, x_range, y_range)
    else:
        picture = '<p class="empty">Nothing to draw yet.</p>'
    return (
        f'<figure class="chart"><{heading}>{text(curve.title)}</{heading}>{picture}'
        f"{_legend(drawn, classes)}<figcaption>{text(_caption(curve, missing))}</figcaption>"
        "</figure>"
    )


def drawable(xs: Sequence[float], ys: Sequence[float], *, log_y: bool) -> list[Point]:
    """Points of a series; a y that cannot be drawn becomes NaN, a point without x is dropped."""
    points = []
    for x, y in zip(xs, ys, strict=True):
        if _moderate(x):
            good = _moderate(y) and (not log_y or y > 1e-100)
            points.append((float(x), float(y) if good else math.nan))
    return points


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points, spikes kept: the lowest and the highest of each stretch.

    The first and the last point stay. A gap shorter than a stretch is bridged.
    """
    if len(points) <= limit:
        return list(points)
    inner, stretches = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for i in range(stretches):
        chunk = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        places = [k for k, point in enumerate(chunk) if not math.isnan(point[1])]
        if not places:
            kept.append(chunk[0])
            continue
        low = min(places, key=lambda k: chunk[k][1])
        high = max(places, key=lambda k: chunk[k][1])
        kept += [chunk[k] for k in sorted({low, high})]
    return [*kept, points[-1]]


# --- drawing -------------------------------------------------------------------------------------


def _svg(
    curve: Curve,
    drawn: Mapping[str, list[Point]],
    classes: Sequence[str],
    shown: Sequence[Point],
    x_range: Sequence[float],
    y_range: Sequence[float],
) -> str:
    across = _span([x for x, _ in shown], x_range, margin=0.0, log=False)
    upwards = _span([y for _, y in shown], y_range, margin=0.04, log=curve.log_y)
    x_axis = Axis(*across, LEFT, WIDTH - RIGHT)
    y_axis = Axis(*upwards, HEIGHT - BOTTOM, TOP, curve.log_y)
    lines = "".join(
        f'<g class="{escape(css)}">{_line(thin(points), x_axis, y_axis)}</g>'
        for css, points in zip(classes, drawn.values(), strict=True)
    )
    label = f"{curve.title}: {curve.y_label} by {curve.x_label}"
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(label)}">'
        f"{_frame(x_axis, y_axis)}"
        f'<text x="0" y="14">{text(curve.y_label)}</text>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{text(curve.x_label)}</text>{lines}</svg>"
    )


def _frame(x_axis: Axis, y_axis: Axis) -> str:
    """Gridlines with their labels, and the two axes."""
    left, right, bottom, top = x_axis.start, x_axis.end, y_axis.start, y_axis.end
    parts = []
    for value, label in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(
            f'<path class="grid" d="M{left:g} {y:.1f}H{right:g}"/>'
            f'<text x="{left - 7:g}" y="{y + 4.5:.1f}" text-anchor="end">{text(label)}</text>'
        )
    for value, label in x_axis.ticks():
        x = x_axis.place(value)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {bottom:g}V{top:g}"/>'
            f'<text x="{x:.1f}" y="{bottom + 18:g}" text-anchor="middle">{text(label)}</text>'
        )
    parts.append(f'<path class="axis" d="M{left:g} {top:g}V{bottom:g}H{right:g}"/>')
    return "".join(parts)


def _line(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    """A polyline for each run of points without a gap; a dot where a point stands alone."""
    runs: list[list[str]] = [[]]
    for x, y in points:
        if math.isnan(y):
            runs.append([])
        else:
            runs[-1].append(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}")
    dots = len(points) <= FEW_POINTS
    parts = []
    for run in runs:
        if len(run) > 1:
            parts.append(f'<polyline points="{" ".join(run)}"/>')
        if dots or len(run) == 1:
            parts += ['<circle cx="{}" cy="{}" r="3"/>'.format(*p.split(",")) for p in run]
    return "".join(parts)


def _legend(drawn: Mapping[str, list[Point]], classes: Sequence[str]) -> str:
    items = []
    for (name, points), css in zip(drawn.items(), classes, strict=True):
        last = next((y for _, y in reversed(points) if not math.isnan(y)), None)
        ending = "no values" if last is None else f"last {figure(last)}"
        items.append(
            f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true"><g class="{escape(css)}">'
            f'<polyline points="0,4 28,4"/></g></svg> {text(name)} <small>{ending}</small></li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _caption(curve: Curve, missing: int) -> str:
    caption = curve.caption or f"Each line shows {curve.y_label} by {curve.x_label}."
    if curve.log_y:
        caption += " The vertical axis is logarithmic: equal heights are equal factors."
    if missing:
        kind = "finite and positive" if curve.log_y else "finite"
        caption += f" Left out, as not {kind}: {missing}."
    return caption


# --- axes ----------------------------------------------------------------------------------------


def _moderate(value: float) -> bool:
    """Finite, and far from where differences overflow."""
    return abs(value) < 1e100  # False for NaN


def _span(
    values: Iterable[float], include: Sequence[float], *, margin: float, log: bool
) -> tuple[float, float]:
    """The ends of an axis: never equal, with a margin beyond the data."""
    scaled = [math.log10(v) for v in values] if log else list(values)
    low, high = min(scaled), max(scaled)
    flat = high - low <= 1e-6 * (1.0 if log else max(abs(low), abs(high)))
    if flat and not include:
        room = 0.1 if log else (abs(high) * 0.1 or 0.5)
    else:
        room = (high - low) * margin
    low, high = low - room, high + room
    if include and not log:
        bottom, top = min(include), max(include)
        low = bottom if low + room >= bottom else low
        high = top if high - room <= top else high
    return (10**low, 10**high) if log else (low, high)


def _linear_ticks(low: float, high: float, aim: int = 5) -> tuple[float, list[float]]:
    """The step (1, 2 or 5 times a power of ten) and its multiples in the range."""
    raw = (high - low) / aim
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return step, [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in the range, and their 2 and 5 folds where it is short."""
    decades = math.log10(high / low)
    every = max(1, math.ceil(decades / 6))
    steps = (1, 2, 5) if decades < 2.5 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    exponents = [e for e in range(first, last + 1) if e % every == 0]
    return [m * 10.0**e for e in exponents for m in steps if low <= m * 10.0**e <= high]


def _tick_label(value: float, step: float) -> str:
    size = max(abs(value), step)
    if value == 0:
        return "0"
    if size >= 1e9 or size < 1e-3:
        return f"{value:.3g}"
    if step >= 1e6:
        return f"{value / 1e6:g}M"
    if step >= 1e3:
        return f"{value / 1e3:g}k"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}"
