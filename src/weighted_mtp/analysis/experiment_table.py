"""An experiment in words and tables, from its results.json.

Losses are in nats per token, lower is better; shares of the headroom and pass@1 in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Results = Mapping[str, Any]
ALPHA = 0.05


def arm_table(results: Results) -> str:
    """The arms as Markdown, the lowest loss first."""
    arms = results["plan"]["arms"]
    header = ["arm", "trained on", "held-out loss", f"− `{results['start']}`, by seed"]
    header += ["share of headroom", "all heads"]
    written = any("pass_at_1" in figures for figures in results["arms"].values())
    header += ["pass@1"] if written else []
    header += ["right preferred", "target tokens", "CPU s"]
    rows = [header]
    for name, figures in ranked(results):
        about = arms[name]["about"] if name in arms else "no further training"
        row = [f"`{name}`", about, _loss(figures["loss"])]
        same = name == results["start"] or "difference" not in figures
        row.append("–" if same else signed(figures["difference"]))
        row.append(share(figures.get("headroom")))
        row.append(f"{figures['all_heads']['mean']:.4f}")
        row += [percent(figures["pass_at_1"])] if written else []
        preferred = figures["right_preferred"]
        row.append("–" if preferred is None else f"{100 * preferred:.1f} %")
        row += [f"{figures['tokens'] / 1000:,.1f} k", f"{figures['seconds']:.0f}"]
        rows.append(row)
    return markdown(rows)


def comparison_table(results: Results) -> str:
    """The contrast and the other comparisons as Markdown."""
    written = "pass_at_1" in results["contrast"]
    header = ["what it shows", "arms", "difference of loss", "seeds × programs", "p"]
    rows = [header + (["pass@1"] if written else [])]
    for each in (results["contrast"], *results["comparisons"]):
        contrast = each is results["contrast"]
        bold = "**" if contrast else ""
        p = p_value(each["loss"]["p"] if contrast else each["p_holm"])
        row = [
            f"{bold}{each['shows']}{bold}",
            f"`{each['arm']}` − `{each['other']}`",
            f"{bold}{signed(each['loss'])}{bold}",
            signed(each["crossed_bootstrap"]),
            f"{bold}{p}{bold}",
        ]
        rows.append(row + ([points(each["pass_at_1"])] if written else []))
    return markdown(rows)


def outcome(results: Results) -> str:
    """What the contrast says, whichever way it went."""
    contrast = results["contrast"]
    test, arm, other = contrast["loss"], contrast["arm"], contrast["other"]
    said = (
        f"{signed(test)} nats per token (95 % t-interval, n = {test['n']}, p {equals(test['p'])})"
    )
    if test["p"] is None:
        return f"Difference `{arm}` − `{other}`: {said}. One seed tests nothing."
    if test["p"] >= ALPHA:
        return (
            f"**No difference shown** between `{arm}` and `{other}`: {said}. What is not excluded "
            "is what the interval covers."
        )
    better = test["mean"] < 0
    verdict = f"`{arm}` is **{'better' if better else 'worse'}** than `{other}`"
    return f"{verdict}: {said}. {_agreement(contrast)}"


def _agreement(contrast: Mapping[str, Any]) -> str:
    sign = contrast["loss"]["mean"] < 0
    same = sum((x < 0) == sign for x in contrast["loss_by_seed"])
    return f"{same} of {len(contrast['loss_by_seed'])} seeds have that sign."


def ranked(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and figures of every arm, the lowest loss first."""
    return sorted(results["arms"].items(), key=lambda item: item[1]["loss"]["mean"])


def seeds_told(results: Results) -> str:
    """`4 seeds`; says so if more were planned."""
    seeds, planned = len(results["seeds"]), len(results["plan"]["final_seeds"])
    ended_early = seeds + len(results.get("excluded", ())) < planned
    return f"{seeds} seeds" + (f" ({planned} were planned)" if ended_early else "")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its header."""
    header, *rest = rows
    lines = [header, ["---"] * len(header), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _loss(test: Mapping[str, Any]) -> str:
    if test["low"] is None:
        return f"{test['mean']:.4f}"
    return f"{test['mean']:.4f} [{test['low']:.4f}, {test['high']:.4f}]"


def signed(interval: Mapping[str, Any], scale: float = 1.0, digits: int = 4) -> str:
    """`−0.0123 [−0.0150, −0.0096]`; without bounds where there are none."""
    values = [interval[key] for key in ("mean", "low", "high")]
    words = ["" if x is None else f"{scale * x:+.{digits}f}".replace("-", "−") for x in values]
    return f"{words[0]} [{words[1]}, {words[2]}]" if words[1] else words[0]


def points(interval: Mapping[str, Any]) -> str:
    """A difference of shares in percentage points."""
    return signed(interval, 100, 1)


def percent(test: Mapping[str, Any]) -> str:
    """A share in percent, with its interval, which ends at 0 and 100 %."""
    if test["low"] is None:
        return f"{100 * test['mean']:.1f} %"
    low, high = max(test["low"], 0.0), min(test["high"], 1.0)
    return f"{100 * test['mean']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def share(headroom: Mapping[str, Any] | None) -> str:
    """A share of the headroom; a dash where there is none."""
    if headroom is None or headroom["share"] is None:
        return "–"
    if headroom["low"] is None:
        return f"{100 * headroom['share']:.0f} %"
    bounds = f"{100 * headroom['low']:.0f}, {100 * headroom['high']:.0f}"
    return f"{100 * headroom['share']:.0f} % [{bounds}]"


def p_value(p: float | None) -> str:
    """A p-value for a table."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def equals(p: float | None) -> str:
    """A p-value in a sentence, after the letter p."""
    words = p_value(p)
    return words if words.startswith("<") else f"= {words}"


def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers of a Markdown file, at its end if there are none yet."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = f"{begin}\n{text.strip()}\n{end}"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin in old and end in old:
        head, _, rest = old.partition(begin)
        new = head + block + rest.partition(end)[2]
    else:
        new = (old.rstrip() + "\n\n" if old.strip() else "") + block + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(new, encoding="utf-8")
    partial.replace(path)
