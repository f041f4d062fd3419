"""Shared by all parts of the HTML report: escaped text, numbers, colors, the style sheet.

Colors work on light and dark screens and for color-blind readers: no meaning depends on red versus
green, lines also differ by their dashes and verdicts by their sign.
"""

from __future__ import annotations

import math
from html import escape

LEVELS = 10  # steps of the heat map on either side of weight 1

# For each theme: background and text of code, and the two ends of the heat map.
THEMES = {
    "light": {"code": "#f7f7f5", "ink": "#16181d", "below": "#74b0e6", "above": "#f39a3d"},
    "dark": {"code": "#16181c", "ink": "#f1f1ee", "below": "#1f62a3", "above": "#a34f00"},
}

# Control characters become their symbols; bidirectional controls and surrogates become U+FFFD.
_VISIBLE: dict[int, int] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys(
        [
            *range(0x80, 0xA0),
            *(0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
            *(*range(0xD800, 0xE000), 0xFFFE, 0xFFFF),
        ],
        0xFFFD,
    ),
}


def visible(value: str) -> str:
    """Return text that can be displayed: newlines unified, control characters made visible."""
    return value.replace("\r\n", "\n").translate(_VISIBLE)


def text(value: str) -> str:
    """Escape text for use between tags and inside a quoted attribute."""
    return escape(visible(value), quote=True)


def figure(value: float, sign: bool = False) -> str:
    """Format a number in a few characters; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if 100 <= size < 1e6:
        digits = ".1f" if size < 1000 else ".0f"
    else:
        digits = ".3f" if size == 0 or 0.001 <= size < 100 else ".2g"
    return f"{value:{'+' if sign else ''}{digits}}".replace("-", "−")


# --- the heat map of weights ---------------------------------------------------------------------


def weight_level(weight: float, bound: float) -> int | None:
    """Return the step of the heat map, −LEVELS … LEVELS: 0 at weight 1, logarithmic.

    Args:
        bound: weight, above 1, of the last step; 1/bound is that of the first.

    Returns:
        None for NaN.
    """
    if math.isnan(weight):
        return None
    if weight <= 0:
        return -LEVELS
    share = math.log(weight) / math.log(bound)
    return round(LEVELS * max(-1.0, min(1.0, share)))


def level_weight(level: int, bound: float) -> float:
    """Return the weight in the middle of a step."""
    return math.pow(bound, level / LEVELS)


def level_class(level: int | None) -> str:
    """Return the style-sheet class of a step: `b1` … below 1, `a1` … above, `w0` at 1, `nan`."""
    if level is None:
        return "nan"
    return f"a{level}" if level > 0 else f"b{-level}" if level < 0 else "w0"


def heat_colour(theme: str, level: int) -> str:
    """Return the background of a step as `#rrggbb`, stronger the further from 0."""
    colours = THEMES[theme]
    ground, end = colours["code"], colours["above" if level > 0 else "below"]
    share = 0.12 + 0.88 * abs(level) / LEVELS if level else 0.0
    mixed = [
        round(int(ground[i : i + 2], 16) * (1 - share) + int(end[i : i + 2], 16) * share)
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


# --- the style sheet -----------------------------------------------------------------------------

COLOURS = {
    "light": {
        "--page": "#fbfaf7",
        "--card": "#ffffff",
        "--ink": "#1d2026",
        "--dim": "#5b606b",
        "--edge": "#dcdad3",
        "--link": "#0b5cad",
        "--good": "#00795a",
        "--bad": "#93357d",
        "--c0": "#0069b4",
        "--c1": "#c24f00",
        "--c2": "#007d5c",
        "--c3": "#8f3f83",
    },
    "dark": {
        "--page": "#111317",
        "--card": "#1b1e23",
        "--ink": "#eceae4",
        "--dim": "#a9adb6",
        "--edge": "#353941",
        "--link": "#7cb8f5",
        "--good": "#35c797",
        "--bad": "#e08bcb",
        "--c0": "#62b0f0",
        "--c1": "#f58a42",
        "--c2": "#3cc79a",
        "--c3": "#d98ccb",
    },
}
"""Variables of the style sheet; charts are drawn with the light ones and then refer to them."""

_RULES = """
*{box-sizing:border-box}
body{margin:0 0 40px;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:1120px;margin:0 auto;padding:0 16px}
h1{font-size:1.7rem;line-height:1.2;margin:1.6rem 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.4rem 0 .6rem;border-bottom:1px solid var(--edge)}
h3{font-size:1.05rem;margin:0 0 .5rem;overflow-wrap:anywhere}
h4{font-size:1rem;margin:0 0 .4rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;padding:0;margin:0}
a{color:var(--link)}
p,figcaption,dd,li{overflow-wrap:anywhere}
.lead,figcaption,.empty,small{color:var(--dim)}
figcaption{font-size:.88rem;margin-top:.5rem}
figure{margin:0}
dl{margin:0}
dt{font-weight:600}
dd{margin:0 0 .5rem}
.charts,.cards,.two{display:grid;gap:16px;align-items:start;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.two{margin-top:12px}
.chart,.card,.pair{background:var(--card);border:1px solid var(--edge);border-radius:8px;
 padding:14px;min-width:0}
.pair{margin-bottom:20px}
.pair .chart{border:0;padding:0;max-width:640px}
.program{min-width:0}
.task{white-space:pre-wrap;margin:.2rem 0 .8rem}
.plot{display:block;width:100%;max-width:600px;height:auto;overflow:visible}
.plot path{stroke-linejoin:round}
.key{width:28px;height:8px;vertical-align:middle}
.key path{fill:none;stroke-width:2}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;list-style:none;padding:0;
 margin:.4rem 0 0;font-size:.9rem}
.good{color:var(--good)}
.bad{color:var(--bad)}
.verdict{font-weight:600}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.93rem;background:var(--card)}
caption{text-align:left;color:var(--dim);font-size:.88rem;padding-bottom:.4rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .7rem;border:1px solid var(--edge)}
td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre,td code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;tab-size:4}
pre{margin:0;padding:10px;overflow-x:auto;font-size:.85rem;line-height:1.6;
 background:var(--code);color:var(--code-ink);border:1px solid var(--edge);border-radius:6px}
pre code{font:inherit}
td code{white-space:pre-wrap}
td mark{background:none;color:inherit;font-weight:700;text-decoration:underline}
.heat span,.scale span,td[class]{-webkit-print-color-adjust:exact;print-color-adjust:exact}
.heat span{padding:2px 0}
.heat span:hover{outline:1px solid currentColor}
.heat .nan{text-decoration:underline dotted}
.mark{opacity:.65;font-style:normal}
.mark::before{content:attr(data-mark)}
.scale{display:flex;flex-wrap:wrap;align-items:center;gap:.2rem .6rem;font-size:.88rem;
 margin:.8rem 0 0}
.scale .steps{display:inline-flex;border:1px solid var(--edge)}
.scale .steps span{width:16px;height:16px}
details{margin:.6rem 0}
summary{cursor:pointer}
@media(max-width:520px){th,td{padding:.3rem .45rem}}
"""


def style_sheet() -> str:
    """Return the whole style sheet of the report."""
    return f"{_theme('light')}@media(prefers-color-scheme:dark){{\n{_theme('dark')}}}{_RULES}"


def _theme(name: str) -> str:
    colours = THEMES[name]
    variables = ";".join(f"{key}:{colour}" for key, colour in COLOURS[name].items())
    own = f"--code:{colours['code']};--code-ink:{colours['ink']};color-scheme:{name}"
    heat = "".join(
        f".{level_class(level)}{{background:{heat_colour(name, level)};color:{colours['ink']}}}\n"
        for level in range(-LEVELS, LEVELS + 1)
        if level
    )
    return f":root{{{variables};{own}}}\n{heat}"
