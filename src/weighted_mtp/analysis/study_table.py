"""A study in words and tables, from its results.json. Accuracies are in percent, differences in
percentage points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weighted_mtp.analysis.experiment_table import (
    ALPHA,
    Results,
    equals,
    markdown,
    p_value,
    percent,
    points,
)

SIGNS = {1: "more", -1: "less", 0: "not published"}
FOUND = {
    "same": "the same",
    "opposite": "**the opposite**",
    "undecided": "undecided",
    None: "–",
}


def study_arm_table(results: Results) -> str:
    """The arms as Markdown, with every accuracy that is not in the picture's lines."""
    measures = [name for name in results["plan"]["measures"] if name not in results["points"]]
    header = ["arm", "what", *measures, "parameters", "target tokens", "CPU s"]
    rows = [header]
    for name, arm in results["arms"].items():
        row = [f"`{name}`", results["plan"]["arms"][name]["about"]]
        row += [percent(arm["accuracy"][measure]) for measure in measures]
        row += [f"{arm['parameters'] / 1e6:.2f} M", f"{arm['tokens'] / 1e6:.1f} M"]
        rows.append([*row, f"{arm['seconds']:.0f}"])
    return markdown(rows)


def line_table(results: Results) -> str:
    """What the picture's lines show, as Markdown; "" without lines."""
    if not results["lines"]:
        return ""
    rows = [["", *results["points"]]]
    for name, line in results["lines"].items():
        rows.append([name, *map(percent, line)])
    return markdown([[*row, *["–"] * (len(rows[0]) - len(row))] for row in rows])


def claim_table(results: Results) -> str:
    """The contrast and the other comparisons, beside what was published."""
    rows = [["what", "arms", "measure", "difference", "p", "published", "sign here"]]
    for claim in (results["contrast"], *results["comparisons"]):
        contrast = claim is results["contrast"]
        bold = "**" if contrast else ""
        p = p_value(claim["difference"]["p"] if contrast else claim["p_holm"])
        rows.append(
            [
                f"{bold}{claim['shows']}{bold}",
                f"`{claim['arm']}` − `{claim['other']}`",
                claim["measure"],
                f"{bold}{points(claim['difference'])}{bold}",
                f"{bold}{p}{bold}",
                published(claim),
                FOUND[claim["sign_found"]],
            ]
        )
    return markdown(rows)


def published(claim: Mapping[str, Any]) -> str:
    """What was published about a comparison."""
    return f"{SIGNS[claim['sign']]} ({claim['published']})" if claim["sign"] else SIGNS[0]


def study_outcome(results: Results) -> str:
    """What the contrast says, whichever way it went."""
    claim = results["contrast"]
    test, arm, other = claim["difference"], claim["arm"], claim["other"]
    said = (
        f"{points(test)} points of {claim['measure']} (95 % t-interval, n = {test['n']}, "
        f"p {equals(test['p'])})"
    )
    if test["p"] is None:
        return f"Difference `{arm}` − `{other}`: {said}. One seed tests nothing."
    if test["p"] >= ALPHA:
        return f"**No difference shown** between `{arm}` and `{other}`: {said}."
    verdict = f"`{arm}` is **{'better' if test['mean'] > 0 else 'worse'}** than `{other}`"
    if claim["sign"]:
        verdict += f", {FOUND[claim['sign_found']].strip('*')} sign as published"
        verdict = verdict.replace("the opposite sign as", "the opposite of the sign")
    return f"{verdict}: {said}."
