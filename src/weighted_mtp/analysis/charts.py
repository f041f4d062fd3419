"""Line charts: inline SVG in the colors of the report's style sheet, or panels of a PNG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from weighted_mtp.analysis.html_style import COLOURS, figure, text, visible
from weighted_mtp.core.terminal import printable

MAX_POINTS = 300
FEW_POINTS = 25
"""A shorter series has a marker at each point, and is not smoothed."""
LIGHT = COLOURS["light"]
DASHES = ("none", "7 4", "2 3")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: selectable, and in the font of the page
    "svg.hashsalt": "weighted-mtp",
    "text.parse_math": False,  # a `$` in a name is not a formula
    "text.color": LIGHT["--dim"],
    "axes.labelcolor": LIGHT["--dim"],
    "axes.edgecolor": LIGHT["--dim"],
    "xtick.color": LIGHT["--dim"],
    "ytick.color": LIGHT["--dim"],
    "grid.color": LIGHT["--edge"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line chart.

    Attributes:
        series: name to (x values, y values); a y that is not finite is a gap in the line.
        log_y: logarithmic y axis; a y that is not positive is then a gap too.
        caption: one sentence on how to read it.
        smooth: draw a moving average over the points of a long series.
        x_range: limits of the x axis; empty to fit the data.
        y_range: limits of the y axis; empty to fit the data.
        colours: names in the style sheet, such as `--good`, one for each series.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_y: bool = False
    caption: str = ""
    smooth: bool = False
    x_range: tuple[float, ...] = ()
    y_range: tuple[float, ...] = ()
    colours: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, (xs, ys) in self.series.items():
            if len(xs) != len(ys):
                raise ValueError(f"series {name!r}: {len(xs)} x values, {len(ys)} y values")

    def style(self, number: int) -> tuple[str, str]:
        """Return color (its name in the style sheet) and dashes of a series."""
        if self.colours:
            return self.colours[number], DASHES[number % len(DASHES)]
        return f"--c{number % 4}", DASHES[number // 4 % len(DASHES)]

    def points(self, name: str) -> list[Point]:
        """Return the points of a series; a y that cannot be drawn becomes NaN."""
        lowest = 1e-100 if self.log_y else -1e100
        return [
            (float(x), float(y) if abs(y) < 1e100 and y > lowest else math.nan)
            for x, y in zip(*self.series[name], strict=True)
            if abs(x) < 1e100  # differences of larger numbers overflow; false for NaN
        ]


def line_chart(curve: Curve, heading: str = "h3") -> str:
    """Return a `<figure>`: heading, SVG, legend with the last value of each series, caption.

    Args:
        heading: tag of the title.
    """
    drawn = {name: curve.points(name) for name in curve.series}
    count = sum(not math.isnan(y) for points in drawn.values() for _, y in points)
    missing = sum(len(ys) for _, ys in curve.series.values()) - count
    picture = _svg(curve) if count else '<p class="empty">Nothing to draw yet.</p>'
    return (
        f'<figure class="chart"><{heading}>{text(curve.title)}</{heading}>{picture}'
        f"{_legend(curve, drawn)}<figcaption>{text(_caption(curve, missing))}</figcaption></figure>"
    )


def save_png(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Draw charts side by side into a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _styled():
        sheet = Figure(figsize=(5 * len(curves), 4), layout="constrained")
        sheet.suptitle(printable(title), fontsize=11)
        for axes, curve in zip(
            sheet.subplots(1, len(curves), squeeze=False)[0], curves, strict=True
        ):
            _draw(axes, curve)
            axes.set_title(curve.title, fontsize=9)
            if any(len(ys) > 1 for _, ys in curve.series.values()):  # else points have labels
                axes.legend(fontsize=8, frameon=False)
        sheet.savefig(path, dpi=130)


@contextmanager
def _styled() -> Iterator[None]:
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a browser has other fonts
        yield


def _svg(curve: Curve) -> str:
    buffer = io.StringIO()
    with _styled():
        sheet = Figure(figsize=(4.5, 2.9), layout="constrained")
        _draw(sheet.add_subplot(), curve)
        sheet.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->",
        "",
        buffer.getvalue(),
        flags=re.DOTALL,
    )
    box = re.search(r'viewBox="([^"]+)"', svg)
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inner = inner.replace("xlink:href", "href")
    inner = re.sub(r' id="(?![pm][0-9a-f]{10}")[^"]*"', "", inner)  # the same in every chart
    inner = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", inner)
    for name, colour in LIGHT.items():
        inner = inner.replace(colour, f"var({name})")
    label = f"{curve.title}: {curve.y_label} by {curve.x_label}"
    return (
        f'<svg class="plot" viewBox="{box[1] if box else ""}" role="img" '
        f'aria-label="{text(label)}">{inner}</svg>'
    )


def _draw(axes: Any, curve: Curve) -> None:
    axes.set(xlabel=visible(curve.x_label), ylabel=visible(curve.y_label))
    if curve.log_y:
        axes.set_yscale("log")
    few = max((len(ys) for _, ys in curve.series.values()), default=0) <= FEW_POINTS
    single: list[tuple[Point, str, str]] = []
    for number, name in enumerate(curve.series):
        points, (colour, dashes) = curve.points(name), curve.style(number)
        known = [point for point in points if not math.isnan(point[1])]
        line = {"color": LIGHT[colour], "lw": 1.6}
        if dashes != "none":
            line["linestyle"] = (0, [float(length) / 1.6 for length in dashes.split()])
        if curve.smooth and len(points) > FEW_POINTS:
            axes.plot(*_columns(thin(points)), **line | {"alpha": 0.3, "lw": 1})
            points = smooth(points)
        points = thin(points)
        marked = range(len(points)) if few else _alone(points)
        axes.plot(
            *_columns(points), label=visible(name), marker="o", ms=4, markevery=list(marked), **line
        )
        if len(known) == 1:
            single.append((known[0], f"{visible(name)}: {figure(known[0][1])}", LIGHT[colour]))
    _set_axes(axes, curve)
    _label(axes, single, alone=len(single) == len(curve.series))


def _set_axes(axes: Any, curve: Curve) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if curve.x_range:
        axes.set_xlim(*curve.x_range)
    if curve.y_range:
        axes.set_ylim(*curve.y_range)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if curve.log_y:
        low, high = axes.get_ylim()
        decades = math.log10(high / low)
        powers = LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=8)
        axes.yaxis.set_major_locator(MaxNLocator(5) if decades < 1 else powers)
        axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)


def _label(axes: Any, single: Sequence[tuple[Point, str, str]], alone: bool) -> None:
    """Write name and value beside the only point of a series, one label above the other."""
    if single and alone:  # leave room on the right
        step = single[0][0][0]
        axes.set_xlim(step - 1, step + 4)
        axes.set_xticks([step])
    lowest = -math.inf
    for (x, y), label, colour in sorted(single):
        height = axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi
        lowest = max(height, lowest + 11)
        axes.annotate(
            label,
            (x, y),
            (8, lowest - height - 3),
            textcoords="offset points",
            color=colour,
            annotation_clip=False,
        )


# --- points --------------------------------------------------------------------------------------


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Return at most `limit` points, with the lowest and the highest of each interval.

    The first and the last point stay. A gap shorter than an interval is bridged.
    """
    if len(points) <= limit:
        return list(points)
    inner, count = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for i in range(count):
        chunk = inner[i * len(inner) // count : (i + 1) * len(inner) // count]
        known = [point for point in chunk if not math.isnan(point[1])]
        ends = {f(known, key=lambda point: point[1]) for f in (min, max)} if known else chunk[:1]
        kept += sorted(ends)
    return [*kept, points[-1]]


def smooth(points: Sequence[Point], keep: float = 0.9) -> list[Point]:
    """Return the exponential moving average; NaN is a gap and does not change the average."""
    found: list[Point] = []
    last = math.nan
    for x, y in points:
        if not math.isnan(y):
            last = y if math.isnan(last) else keep * last + (1 - keep) * y
        found.append((x, math.nan if math.isnan(y) else last))
    return found


def _alone(points: Sequence[Point]) -> list[int]:
    """Indices of the points between two gaps, which no line would show."""
    gaps = [True, *(math.isnan(y) for _, y in points), True]
    return [i for i in range(len(points)) if gaps[i] and gaps[i + 2] and not gaps[i + 1]]


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


# --- words ---------------------------------------------------------------------------------------


def _legend(curve: Curve, drawn: Mapping[str, Sequence[Point]]) -> str:
    items = []
    for number, (name, points) in enumerate(drawn.items()):
        colour, dashes = curve.style(number)
        last = next((y for _, y in reversed(points) if not math.isnan(y)), None)
        ending = "no values" if last is None else f"last {figure(last)}"
        items.append(
            '<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4H28" '
            f'style="stroke:var({colour});stroke-dasharray:{dashes}"/></svg> {text(name)} '
            f"<small>{ending}</small></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _caption(curve: Curve, missing: int) -> str:
    caption = curve.caption or f"Each line shows {curve.y_label} by {curve.x_label}."
    if curve.smooth and any(len(ys) > FEW_POINTS for _, ys in curve.series.values()):
        caption += " Strong lines are moving averages."
    if curve.log_y:
        caption += " Logarithmic scale: equal distances are equal factors."
    if missing:
        kind = "finite and positive" if curve.log_y else "finite"
        caption += f" Not shown, because not {kind}: {missing}."
    return caption
