"""The HTML report of a run: figures, facts, charts, tables and programs from its records."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from weighted_mtp.analysis.charts import Curve
from weighted_mtp.analysis.html_parts import ProgramCard, Table
from weighted_mtp.analysis.html_report import Report
from weighted_mtp.analysis.html_style import figure
from weighted_mtp.core.run_records import (
    Records,
    RunRecords,
    curve,
    head_figures,
    heads_curve,
    last,
    number,
)
from weighted_mtp.core.types import TokenTrace

MISSING = "not recorded"
KINDS = {
    "test": "new problems of the kinds it was trained on",
    "compositions": "two known operations in a combination it never saw",
}
OTHER = "a benchmark it was evaluated on"
_HEAD_K = "Head k predicts the token k positions ahead."


def run_report(
    run: RunRecords,
    pass_rates: Mapping[str, str],
    pairs: Sequence[tuple[TokenTrace, TokenTrace]] = (),
    notes: Sequence[str] = (),
    programs: int = 6,
) -> Report:
    """Compose the report.

    Args:
        pass_rates: pass@1 of each evaluated split or benchmark, with its interval.
        programs: generated programs to show.
    """
    return Report(
        title=f"Run {run.name}",
        summary=summarise(run.stages, pass_rates),
        facts=facts(run.stages),
        curves=curves(run.stages),
        pairs=pairs,
        tables=[
            *heads(last(run.stages["main"], "validation")),
            *(families(split, found) for split, found in run.attempts.items() if found),
        ],
        programs=[card(attempt) for attempt in pick(run.attempts["test"], programs)],
        settings=run.settings,
        notes=notes,
    )


def summarise(
    stages: Mapping[str, Records], pass_rates: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Return (figure, value, meaning) of the results."""
    lines = [
        (f"pass@1, {split}", rate, f"programs that pass their tests: {KINDS.get(split, OTHER)}")
        for split, rate in pass_rates.items()
    ]
    held_out = last(stages["main"], "validation")
    accuracy, loss = head_figures(held_out, "head_accuracy"), head_figures(held_out, "head_loss")
    if accuracy and loss:
        nats = f"{_decimals(loss[0], 3)} nats"
        lines.append(("next-token accuracy", _percent(accuracy[0]), "on held-out correct programs"))
        lines.append(("next-token loss", nats, "cross-entropy per token on the same programs"))
    acceptance = head_figures(held_out, "head_acceptance")
    if len(acceptance) > 1:
        gained = f"{_decimals(held_out.get('tokens_per_forward'))} of {len(acceptance)}"
        meaning = "greedy speculative decoding of such text, with drafts of all heads"
        lines.append(("tokens per forward pass", gained, meaning))
    if "right_preferred" in held_out:
        meaning = "pairs of one problem in which the correct program is the more likely one"
        lines.append(("correct preferred", _percent(held_out["right_preferred"]), meaning))
    judged = last(stages["critic"], "validation") if "critic" in stages else held_out
    for at, words in (("50", "half a program"), ("100", "a whole program")):
        if f"auc_at_{at}" in judged:
            meaning = f"how well the critic ranks correct above incorrect after {words}"
            lines.append((f"critic AUC at {at} %", _decimals(judged[f"auc_at_{at}"]), meaning))
    for group in ("correct", "incorrect"):
        means = [_mean(stats) for stats in curve(stages["main"], "train", f"weight_{group}")[1]]
        if means:  # the last batch may have had no such program
            known = [mean for mean in means if not math.isnan(mean)]
            weight = _decimals(known[-1] if known else math.nan)
            meaning = f"mean weight of the tokens of {group} programs (1: plain training)"
            lines.append((f"token weight, {group}", weight, meaning))
    return lines


def facts(stages: Mapping[str, Records]) -> list[tuple[str, str]]:
    """Return (property, value) of how the run was made; old runs recorded fewer."""
    records = [record for stage in reversed([*stages.values()]) for record in stage]
    run = next((r for r in records if r["kind"] == "run"), dict[str, Any]())
    seconds = sum(_duration(stage) for stage in stages.values())
    rates = [number(r.get("tokens_per_second")) for r in records if r["kind"] == "train"]
    rates = sorted(rate for rate in rates if rate > 0)
    peaks = [number(r.get("peak_bytes")) for r in records if r["kind"] == "memory"]
    peaks = [peak for peak in peaks if peak > 0]
    where = "on the device" if any("reserved_bytes" in r for r in records) else "of the process"
    processes = number(run.get("processes"))
    device = _text(run.get("device"))
    return [
        ("started", _text(run.get("started")).replace("T", " ").replace("+00:00", " UTC")),
        ("duration", _time(seconds) if seconds > 0 else MISSING),
        ("throughput", f"{rates[len(rates) // 2]:,.0f} tokens/s (median)" if rates else MISSING),
        ("peak memory", f"{max(peaks) / 2**30:.2f} GiB {where}" if peaks else MISSING),
        ("device", f"{device} × {processes:.0f}" if processes > 1 else device),
        ("weighted-mtp", _text(run.get("version"))),
        ("commit", _text(run.get("commit"))),
        ("PyTorch", _text(run.get("torch"))),
    ]


def curves(stages: Mapping[str, Records]) -> list[Curve]:
    """Return the charts of each stage, those without data left out."""
    charts = []
    for stage, records in stages.items():
        suffix = "" if len(stages) == 1 else f", {stage} stage"

        def figures(
            names: Mapping[str, str], kind: str, records: Records = records
        ) -> dict[str, tuple[list[int], list[float]]]:
            found = {name: curve(records, kind, key) for key, name in names.items()}
            return {
                name: (steps, [_mean(v) if isinstance(v, dict) else number(v) for v in values])
                for name, (steps, values) in found.items()
                if steps
            }

        auc = {f"auc_at_{at}": f"after {at} % of the program" for at in (25, 50, 75, 100)}
        weights = {f"weight_{group}": f"{group} programs" for group in ("correct", "incorrect")}
        rate = {"learning_rate": "learning rate"}
        norm, speed = {"grad_norm": "gradient norm"}, {"tokens_per_second": "tokens/s"}
        made = (
            ("Training loss", "nats per token", heads_curve(records, "train", "head_loss"),
             f"{_HEAD_K} Lower is better.", True, True),
            ("Held-out loss", "nats per token", heads_curve(records, "validation", "head_loss"),
             f"{_HEAD_K} Lower is better.", True, False),
            ("Held-out accuracy", "accuracy", heads_curve(records, "validation", "head_accuracy"),
             f"{_HEAD_K} Higher is better.", False, False),
            ("Critic on held-out problems", "AUC", figures(auc, "validation"),
             "How well the critic ranks correct above incorrect programs: 0.5 is chance.",
             False, False),
            ("Mean token weight", "weight", figures(weights, "train"),
             "Above 1, tokens count more than in plain training, below 1 less.", False, True),
            ("Learning rate", "learning rate", figures(rate, "train"),
             "Of the first parameter group.", False, False),
            ("Gradient norm", "norm", figures(norm, "train"), "Before clipping.", True, True),
            ("Throughput", "tokens/s", figures(speed, "train"), "All processes together.",
             False, True),
        )  # fmt: skip
        charts += [
            Curve(title + suffix, "step", unit, series, log, caption, smooth)
            for title, unit, series, caption, log, smooth in made
            if series
        ]
    return charts


def loss_curves(stages: Mapping[str, Records]) -> list[Curve]:
    """Return the charts of loss.png, those of the main stage."""
    wanted = ("Training loss", "Held-out loss", "Held-out accuracy")
    return [chart for chart in curves({"main": stages["main"]}) if chart.title in wanted]


def heads(held_out: Mapping[str, Any]) -> list[Table]:
    """Return the quality of each head on held-out text, as one table; none if not measured."""
    count = len(head_figures(held_out, "head_acceptance"))
    if not count:
        return []
    figures = {
        "loss (nats)": "head_loss",
        "accuracy": "head_accuracy",
        "confidence": "head_confidence",
        "calibration error": "head_calibration_error",
        "drafts accepted, greedy": "head_acceptance",
        "drafts accepted, sampled": "head_acceptance_sampled",
    }
    columns = {}
    for name, key in figures.items():
        values = [*head_figures(held_out, key), *[math.nan] * count][:count]
        columns[name] = [figure(x) if key == "head_loss" else _percent(x) for x in values]
    caption = (
        f"{_HEAD_K} Confidence: mean probability of its most likely token; calibration error: the "
        "mean difference between that and its accuracy. Drafts accepted: how often head 1, given "
        "the tokens in between, agrees with the draft (greedy) or accepts it (sampled, temperature "
        "1); head 1 itself drafts nothing. A draft counts only if those before it were accepted, "
        f"which gives {_decimals(held_out.get('tokens_per_forward'))} tokens per forward pass "
        f"greedy, {_decimals(held_out.get('tokens_per_forward_sampled'))} sampled."
    )
    if count == 1:  # nothing to draft with
        del columns["drafts accepted, greedy"], columns["drafts accepted, sampled"]
        caption = caption.partition(" Drafts accepted")[0]
    rows = [(f"head {k}", *cells) for k, cells in enumerate(zip(*columns.values(), strict=True), 1)]
    return [Table("Each head on held-out text", ("", *columns), rows, caption)]


def families(split: str, attempts: Sequence[Mapping[str, Any]]) -> Table:
    """Return pass@1 by family of problems."""
    scores: dict[str, list[float]] = {}
    for attempt in attempts:
        family = attempt["task_id"].split("/")[1] if "/" in attempt["task_id"] else "all"
        scores.setdefault(family, []).append(float(attempt["passed"]))
    rows = [
        (family, f"{sum(s) / len(s):.0%}", str(len(s)))
        for family, s in sorted(scores.items(), key=lambda item: -sum(item[1]) / len(item[1]))
    ]
    return Table(f"pass@1 by problem family: {split}", ("family", "pass@1", "programs"), rows)


def pick(attempts: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return some attempts that pass and some that fail."""
    right = [a for a in attempts if a["passed"]][: (count + 1) // 2]
    wrong = [a for a in attempts if not a["passed"]]
    return [*right, *wrong[: count - len(right)]]


def card(attempt: Mapping[str, Any]) -> ProgramCard:
    """Return a generated program with its verdict."""
    failed = f"{attempt['status']}: {attempt['detail']}"
    verdict = "passes its tests" if attempt["passed"] else failed
    return ProgramCard(attempt["instruction"], attempt["completion"], verdict, attempt["passed"])


def _duration(records: Records) -> float:
    """Seconds of all sessions of a stage: each begins with a `run` record and counts `elapsed`."""
    total = latest = 0.0
    for record in records:
        if record["kind"] == "run":
            total, latest = total + latest, 0.0
        elapsed = number(record.get("elapsed"))
        latest = latest if math.isnan(elapsed) else elapsed
    return total + latest


def _time(seconds: float) -> str:
    """`1:02:03`, without days."""
    whole = datetime.timedelta(seconds=round(seconds))
    hours, rest = divmod(int(whole.total_seconds()), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02} (h:min:s)"


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else MISSING


def _percent(share: Any) -> str:
    return "–" if math.isnan(number(share)) else f"{share:.1%}"


def _decimals(value: Any, places: int = 2) -> str:
    return "–" if math.isnan(number(value)) else f"{value:.{places}f}"


def _mean(statistics: Any) -> float:
    return number(statistics.get("mean")) if isinstance(statistics, dict) else math.nan
