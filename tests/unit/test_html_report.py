"""The HTML report: one safe, self-contained page, whatever the figures and texts in it hold."""

import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from weighted_mtp.analysis.charts import MAX_POINTS, Curve, line_chart, save_png, smooth, thin
from weighted_mtp.analysis.html_parts import heat_bound, pair_html, token_spans
from weighted_mtp.analysis.html_report import ProgramCard, Report, Table, render, write
from weighted_mtp.analysis.html_style import (
    COLOURS,
    LEVELS,
    THEMES,
    figure,
    heat_colour,
    level_class,
    style_sheet,
    text,
    weight_level,
)
from weighted_mtp.core.types import TokenTrace

NAN, INF = math.nan, math.inf
EVIL = """<script>alert("x")</script> & 'it' </pre></style> ]]> \x00\x1b\u202e"""
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced and keeps what the tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.code: list[str] = []  # text of each <code>
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "code":
            self.code.append("")

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> outside an SVG"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "code" in self.open:
            self.code[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def trace(source="def f(x):\n    return x\n", is_correct=True, **changes) -> TokenTrace:
    pieces = (*re.findall(r"\w+|\s+|\S", source), "")
    n = len(pieces)
    given = {
        "title": "identity",
        "instruction": "Return x.",
        "pieces": pieces,
        "values": (*(0.5 + 0.4 * i / n for i in range(n - 1)), NAN),
        "start_value": 0.5,
        "td_errors": (0.02,) * n,
        "weights": tuple(math.exp(math.sin(i)) for i in range(n)),
        "is_correct": is_correct,
    }
    return TokenTrace(**{**given, **changes})


def full_report(words: str = "loss") -> Report:
    curve = Curve(
        words,
        "step",
        words,
        {words: ([1, 2, 3], [3.0, NAN, 1.0]), "b": ([], [])},
        log_y=True,
        caption=words,
    )
    pair = (
        trace(title=words, instruction=words, pieces=(words,) * 3, **of_length(3)),
        trace(words, is_correct=False),
    )
    return Report(
        title=words,
        summary=[(words, "0.5", words)],
        facts=[(words, words)],
        curves=[curve],
        pairs=[pair],
        tables=[Table(words, ("family", words), [(words, "12 %")], words)],
        programs=[ProgramCard(words, words, words, True), ProgramCard("", "", "failed", False)],
        notes=[words],
        settings=words,
    )


def of_length(n: int) -> dict[str, tuple[float, ...]]:
    return {"values": (0.5,) * n, "td_errors": (0.0,) * n, "weights": (2.0,) * n}


# --- the page ------------------------------------------------------------------------------------


def test_page_is_well_formed_and_shows_every_part():
    page = Page(render(full_report()))
    assert len(page.all("h1")) == 1
    shown = [a["id"] for a in page.all("section") if "id" in a]
    assert shown == ["summary", "run", "curves", "pairs", "tables", "programs", "notes", "settings"]
    assert [a["href"] for a in page.all("a")] == [f"#{key}" for key in shown]
    assert "1 of the 2 programs shown passed" in page.text


def test_page_stands_alone():
    html = render(full_report(EVIL))
    page = Page(html)
    used = {tag for tag, _ in page.tags}
    assert not used & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action", "xlink:href"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?:", html)
    policy = next(a for a in page.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in (policy["content"] or "")


def test_texts_are_shown_and_never_read_as_markup():
    page = Page(render(full_report(EVIL)))
    shown = EVIL.replace("\x00", "␀").replace("\x1b", "␛").replace("\u202e", "\ufffd")
    assert page.text.count(shown) > 10
    assert shown in page.code  # the program card, character for character
    assert any(a.get("aria-label", "").startswith(shown) for a in page.all("svg"))


def test_empty_parts_are_left_out():
    page = Page(render(Report("nothing")))
    assert page.all("section") == page.all("nav") == []
    assert "Nothing to report yet." in page.text
    one = Page(render(Report("one", notes=["a note"])))
    assert [a["id"] for a in one.all("section")] == ["notes"]


def test_empty_things_inside_parts():
    nothing = trace(pieces=(), values=(), td_errors=(), weights=())
    report = Report(
        "",
        curves=[Curve("", "", "", {}), Curve("", "", "", {"a": ([], [])})],
        pairs=[(nothing, nothing)],
        tables=[Table("", (), []), Table("", ("a",), [])],
        programs=[ProgramCard("", "", "", False)],
    )
    assert Page(render(report)).text.count("Nothing to draw yet.") == 2


def test_write_replaces_the_file_in_one_move(tmp_path):
    path = tmp_path / "new" / "report.html"
    write(Report("first"), path)
    write(Report("second \ud800 é"), path)  # a lone surrogate cannot be stored
    page = path.read_text(encoding="utf-8")
    assert "<title>second \ufffd é</title>" in page
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_failed_write_keeps_the_old_page(tmp_path):
    path = tmp_path / "report.html"
    write(Report("first"), path)
    with pytest.raises(AttributeError):
        write(Report(None), path)
    assert "first" in path.read_text(encoding="utf-8")


# --- texts and figures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('<a href="x">', "&lt;a href=&quot;x&quot;&gt;"),
        ("it's", "it&#x27;s"),
        ("a\r\nb\rc\td", "a\nb␍c\td"),
        ("\x85\u2066\ufffe", "\ufffd" * 3),
        ("naïve 数 🎉", "naïve 数 🎉"),
    ],
)
def test_text(given, expected):
    assert text(given) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "0.500"),
        (-0.25, "−0.250"),
        (123.45, "123.5"),
        (12345.0, "12345"),
        (1.2e7, "1.2e+07"),
        (-1e-5, "−1e−05"),
        (0.0, "0.000"),
        (NAN, "–"),
        (INF, "∞"),
        (-INF, "−∞"),
    ],
)
def test_figure(value, expected):
    assert figure(value) == expected


def test_figure_with_sign():
    assert (figure(0.1, sign=True), figure(-0.1, sign=True)) == ("+0.100", "−0.100")


# --- charts --------------------------------------------------------------------------------------


def numbers(html: str) -> list[list[tuple[float, float]]]:
    """Points of every line of the plot: grid, axes, keys and what is faint left out."""
    plot = html.split("</svg>")[0]
    series = (
        r'<path d="([^"]+)"[^>]*?style="fill: none;[^"]*stroke: var\(--(?:c\d|good|bad)\)[^"]*"/>'
    )
    found = []
    for path in re.finditer(series, plot):
        if "stroke-opacity" not in path[0]:
            for part in path[1].split("M")[1:]:
                found.append([tuple(map(float, p.split())) for p in part.split("L")])
    return found


def markers(html: str) -> list[tuple[float, float]]:
    """Places of the dots of all series; ticks have the colour of the axes."""
    uses = re.findall(r'<use href="#\w+" x="([^"]+)" y="([^"]+)" style="([^"]+)"', html)
    return [(float(x), float(y)) for x, y, style in uses if re.search(r"--(c\d|good|bad)", style)]


def test_a_long_series_is_thinned_and_keeps_its_spikes():
    ys = [1.0 + 0.001 * (i % 7) for i in range(1000)]
    ys[123], ys[777] = 9.0, -9.0
    points = thin(list(zip(range(1000), ys, strict=True)))
    assert 200 < len(points) <= MAX_POINTS
    assert {(0, ys[0]), (999, ys[999]), (123, 9.0), (777, -9.0)} <= set(points)
    assert all(a[0] < b[0] for a, b in pairwise(points))
    (line,) = numbers(line_chart(Curve("t", "x", "y", {"a": (range(1000), ys)})))
    assert len(line) <= len(points)
    assert max(y for _, y in line) - min(y for _, y in line) > 100  # both spikes


@pytest.mark.parametrize("n", [0, 1, 2, 299, 300, 301, 302, 600, 5000])
def test_thinning_holds_its_limit(n):
    points = [(float(i), float(i * i % 17)) for i in range(n)]
    kept = thin(points)
    assert len(kept) <= MAX_POINTS
    assert kept == points[:0] or (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == points or n > MAX_POINTS


def test_a_long_gap_survives_thinning():
    points = [(float(i), NAN if 400 <= i < 600 else 1.0) for i in range(1000)]
    kept = thin(points)
    assert any(math.isnan(y) for _, y in kept)
    assert not any(400 <= x < 600 for x, y in kept if not math.isnan(y))


def test_a_gap_does_not_end_a_smoothed_line():
    ys = [y for _, y in smooth([(1, 1.0), (2, NAN), (3, 2.0)])]
    assert math.isnan(ys[1])
    assert [ys[0], ys[2]] == pytest.approx([1.0, 1.1])


def test_a_long_smoothed_series_is_drawn_over_its_points():
    ys = [float(i % 2) for i in range(100)]
    html = line_chart(Curve("t", "x", "y", {"a": (range(100), ys)}, smooth=True))
    (line,) = numbers(html)
    assert html.count("stroke-opacity: 0.3") == 1
    assert "moving averages" in html
    swing = max(y for _, y in line[40:]) - min(y for _, y in line[40:])
    whole = line_chart(Curve("t", "x", "y", {"a": (range(100), ys)}))
    assert 0 < swing < 0.2 * (max(y for _, y in numbers(whole)[0]) - min(y for _, y in line))


def test_values_that_cannot_be_drawn_are_gaps():
    ys = [1.0, 2.0, NAN, 3.0, INF, 4.0, 5.0, -INF]
    html = line_chart(Curve("t", "x", "y", {"a": (range(8), ys)}))
    assert [len(line) for line in numbers(html) if len(line) > 1] == [2, 2]
    assert len(markers(html)) == 5  # few points: each has its dot
    assert "Not shown, because not finite: 3." in html
    assert "last 5.000" in html
    assert "nan" not in html
    Page(html)


def test_a_point_between_two_gaps_of_a_long_series_has_a_dot():
    ys = [NAN if i in (49, 51) else 1.0 for i in range(100)]
    assert len(markers(line_chart(Curve("t", "x", "y", {"a": (range(100), ys)})))) == 1


def test_a_single_validation_is_a_point_with_its_label():
    series = {"head 1": ([20], [0.5]), "head 2": ([20], [0.501]), "head 3": ([20], [NAN])}
    page = Page(html := line_chart(Curve("t", "step", "y", series)))
    assert len(markers(html)) == 2
    assert "head 1: 0.500" in page.text
    assert "head 2: 0.501" in page.text
    places = {
        name: float(y)
        for y, name in re.findall(r"translate\([\d.]+ ([\d.]+)\)[^>]*>(head \d): ", html)
    } or {name: float(y) for y, name in re.findall(r'y="([\d.]+)"[^>]*>(head \d): ', html)}
    assert abs(places["head 1"] - places["head 2"]) >= 10  # labels do not overlap
    longer = {"a": ([1, 2], [0.5, 0.6]), "b": ([2], [0.7])}
    assert "b: 0.700" in Page(line_chart(Curve("t", "step", "y", longer))).text


def test_a_log_axis_leaves_out_what_has_no_logarithm():
    data = (range(4), [1.0, 0.0, -1.0, 100.0])
    html = line_chart(Curve("t", "x", "y", {"a": data}, log_y=True))
    assert len(markers(html)) == 2
    assert "not finite and positive: 2." in html
    assert "Logarithmic" in html


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "ys",
    [
        [0.5],
        [0.0, 0.0],
        [1.0, 1.0 + 1e-15],
        [1e99, -1e99],
        [1e300, 1.0],
        [1e-200, 1e-90, 1e90],
        [5e-324, 1.0],
        [3.1, 3.2, 3.15],
        [1e8, 1e8 + 10],
        [NAN, INF],
    ],
)
def test_any_values_give_a_picture_within_its_frame(ys, log_y):
    curve = Curve("t", "x", "y", {"a": (range(len(ys)), ys)}, log_y=log_y)
    html = line_chart(curve)
    Page(html)
    assert "nan" not in html
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)" role', html)
    drawn = [y for y in ys if abs(y) < 1e100 and (not log_y or y > 1e-100)]
    assert len(markers(html)) == len(drawn)
    for x, y in markers(html):
        assert 0 <= x <= float(box[1])
        assert 0 <= y <= float(box[2])


def test_points_without_x_are_dropped():
    assert Curve("", "", "", {"a": ([NAN, 1], [5.0, 6.0])}).points("a") == [(1.0, 6.0)]


def test_axes_have_round_numbers_and_no_formulas():
    ys = [0.001 * 10**i for i in range(5)]
    page = Page(line_chart(Curve("t", "$x$", "y", {"a": (range(5), ys)}, log_y=True)))
    assert all(label in page.text for label in ("0.001", "0.1", "10", "$x$"))
    assert "mathdefault" not in page.text
    assert "mathdefault" not in Page(line_chart(Curve("t", "x", "y", {"a": (range(5), ys)}))).text


def test_up_is_more_on_both_kinds_of_axis():
    for log_y in (False, True):
        curve = Curve("t", "x", "y", {"a": ([0, 1, 2], [1.0, 10.0, 100.0])}, log_y=log_y)
        (line,) = numbers(line_chart(curve))
        assert line[0][1] > line[1][1] > line[2][1]
        assert log_y == (abs(2 * line[1][1] - line[0][1] - line[2][1]) < 0.3)


def test_a_series_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="'a': 2 x values, 1 y values"):
        Curve("t", "x", "y", {"a": ([1, 2], [1.0])})


def test_many_series_stay_apart():
    html = line_chart(Curve("t", "x", "y", {str(i): ([0, 1], [0.0, i]) for i in range(12)}))
    assert len(set(re.findall(r'style="(stroke:var[^"]+)"', html))) == 12
    drawn = re.findall(
        r"fill: none; stroke(?:-dasharray: [^;]+; stroke-dashoffset: 0; stroke)?: "
        r"var\(--c\d\)",
        html,
    )
    assert len(set(drawn)) == 12


def test_charts_take_their_colours_from_the_style_sheet():
    html = line_chart(Curve("t", "x", "y", {"a": (range(3), [1.0, 2.0, 3.0])}))
    left = set(re.findall(r"#[0-9a-f]{6}", html))
    assert not left & set(COLOURS["light"].values())  # light and dark pages have their own
    assert {"var(--dim)", "var(--edge)", "var(--c0)"} <= set(re.findall(r"var\(--\w+\)", html))
    assert COLOURS["light"].keys() == COLOURS["dark"].keys()
    assert len(set(COLOURS["light"].values())) == len(COLOURS["light"])  # each stands for one name


def test_a_page_repeats_no_id():
    curve = Curve("t", "x", "y", {"a": (range(3), [1.0, 2.0, 3.0])})
    page = Page(render(Report("r", curves=[curve, Curve("u", "x", "y", {"a": ([1], [2.0])})])))
    ids = [a["id"] for _, a in page.tags if "id" in a and not re.fullmatch(r"[pm]\w{10}", a["id"])]
    assert len(ids) == len(set(ids))


def test_a_png_has_a_panel_for_each_chart(tmp_path):
    curve = Curve("$t$", "x", "y", {"$a_{": (range(3), [1.0, NAN, 3.0])}, log_y=True)
    save_png([curve, curve], tmp_path / "new" / "loss.png", "run \x1b $x$")
    assert (tmp_path / "new" / "loss.png").read_bytes().startswith(b"\x89PNG")


# --- weights as colours --------------------------------------------------------------------------


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_step_of_a_weight_is_monotone_and_symmetric():
    weights = [0.0, *(10 ** (i / 50) for i in range(-100, 101)), INF]
    levels = [weight_level(w, 3.0) for w in weights]
    assert levels == sorted(levels)
    assert set(levels) == set(range(-LEVELS, LEVELS + 1))
    assert weight_level(1.0, 3.0) == 0
    assert weight_level(2.0, 3.0) == -weight_level(0.5, 3.0)
    assert weight_level(NAN, 3.0) is None
    assert len({level_class(level) for level in [*levels, None]}) == 2 * LEVELS + 2


@pytest.mark.parametrize("theme", THEMES)
def test_colours_grow_with_the_weight_and_text_stays_readable(theme):
    ground, ink = THEMES[theme]["code"], THEMES[theme]["ink"]
    for side in (1, -1):
        colours = [heat_colour(theme, side * level) for level in range(LEVELS + 1)]
        assert colours[0] == ground
        distance = [contrast(ground, colour) for colour in colours]
        assert all(a < b for a, b in pairwise(distance))
        assert min(contrast(ink, colour) for colour in colours) >= 4.5
    blue, orange = (heat_colour(theme, level) for level in (-LEVELS, LEVELS))
    assert int(blue[5:], 16) > int(blue[1:3], 16)
    assert int(orange[1:3], 16) > int(orange[5:], 16)


def test_the_style_sheet_knows_every_class():
    css = style_sheet()
    for level in range(-LEVELS, LEVELS + 1):
        assert level == 0 or css.count(f".{level_class(level)}{{") == 2  # light and dark
    assert css.count("{") == css.count("}")
    used = set(re.findall(r"var\((--[\w-]+)\)", css))
    assert all(css.count(f"{name}:") == 2 for name in used)


@pytest.mark.parametrize(
    ("weights", "bound"),
    [((1.0,), 1.5), ((1.1, 0.2), 5.0), ((4.0,), 4.0), ((100.0, INF, NAN, 0.0), 10.0), ((), 1.5)],
)
def test_the_scale_fits_the_weights(weights, bound):
    n = len(weights)
    given = trace(pieces=("a",) * n, **{**of_length(n), "weights": weights})
    assert heat_bound([given]) == pytest.approx(bound)


# --- programs, token by token --------------------------------------------------------------------


def test_a_program_keeps_its_lines_and_spaces():
    source = "def f(x):\n\n    if x < 1 and x > -1:\n\treturn 'a&b'\n"
    page = Page(f"<code>{token_spans(trace(source), 2.0)}</code>")
    assert page.code == [source + "⏎ end"]
    titles = [a["title"] for a in page.all("span")]
    assert titles[0] == "'def' · value 0.500 · TD error +0.020 · weight 1.000"
    assert titles[-1].startswith("⏎ end · value –")
    assert "'\\n\\n    '" in "".join(titles)
    assert next(a["class"] for a in page.all("span")) == "w0"


def test_cut_characters_and_odd_figures():
    given = trace(
        pieces=("x", "\ufffd", "\ufffd", "", "数", "\r", ""),
        values=(NAN, INF, -INF, 0.5, 2.0, -1.0, 0.0),
        td_errors=(NAN,) * 7,
        weights=(NAN, INF, 0.0, -1.0, 1.0, 5.0, 0.1),
    )
    html = pair_html((given, given), heat_bound([given]))
    page = Page(html)
    assert page.code[0] == "x\ufffd\ufffd∅数␍⏎ end"
    spans = [a for a in page.all("span") if " · value" in (a.get("title") or "")]
    assert [a["class"] for a in spans[:7]] == ["nan", "a10", "b10", "b10", "w0", "a7", "b10"]
    assert "(part of a character)" in spans[1]["title"]
    assert "correct program 1" in page.text
    assert "correct program 2" in page.text


def test_a_pair_draws_both_values_over_the_share_of_the_response():
    right = trace("a b", values=(0.75, 1.0, 1.0, NAN))
    wrong = trace("a b c d", is_correct=False, values=(0.5,) * 8)
    html = pair_html((right, wrong), 2.0)
    drawn = markers(html.split("</svg>")[0])
    assert len(drawn) == 4 + 9  # the start and the values: nothing after EOS
    assert drawn[0] == drawn[4]  # both start at 0.5
    assert len({y for _, y in drawn[4:]}) == 1
    assert "Not shown" not in html
    page = Page(html)
    assert "Correct program" in page.text
    assert "Incorrect program" in page.text
    assert page.text.count("Return x.") == 1
