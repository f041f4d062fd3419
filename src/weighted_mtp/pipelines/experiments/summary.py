"""From the files of the arms to the figures of an experiment.

Letters: M seeds, N held-out programs, n heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json
from weighted_mtp.evaluation.statistics import hierarchical_bootstrap
from weighted_mtp.evaluation.student_t import holm, t_test
from weighted_mtp.pipelines.experiments.arms import Comparison
from weighted_mtp.pipelines.experiments.plan import comparisons_of
from weighted_mtp.pipelines.experiments.request import (
    ExperimentRequest,
    HasJobs,
    arm_path,
    base_path,
    is_excluded,
)

Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class ArmTable:
    """What an arm did on the test split.

    Attributes:
        losses: `[M, N, n]` summed cross-entropy of each right program, nats.
        lengths: `[N]` its response tokens.
        passed: `[M, problems]`; None if no programs were written.
        preferred, tokens, seconds: `[M]`.
    """

    losses: Floats
    lengths: Floats
    passed: Floats | None
    preferred: Floats
    tokens: Floats
    seconds: Floats

    @property
    def head_1(self) -> Floats:
        """`[M]` nats per token."""
        return np.asarray(self.losses[:, :, 0].sum(1) / self.lengths.sum())

    @property
    def all_heads(self) -> Floats:
        """`[M]` nats per token, the mean over heads."""
        return np.asarray(self.losses.sum(1).mean(1) / self.lengths.sum())

    @classmethod
    def read(cls, request: ExperimentRequest, arm: str, seeds: Sequence[int]) -> ArmTable:
        """Read an arm's files.

        Raises:
            UserError: one was made with other test programs.
        """
        found = [read_json(arm_path(request, seed, arm)) for seed in seeds]
        if any(each["lengths"] != found[0]["lengths"] for each in found):
            raise UserError(f"{arm_path(request, seeds[0], arm)}: has other test programs")
        passed = np.array([each["passed"] for each in found]) if "passed" in found[0] else None
        preferred = [each["right_preferred"] for each in found]
        return cls(
            np.array([each["losses"] for each in found], dtype=np.float64),
            np.array(found[0]["lengths"], dtype=np.float64),
            None if passed is None else passed.astype(np.float64),
            np.array([math.nan if x is None else x for x in preferred], dtype=np.float64),
            np.array([each["tokens"] for each in found], dtype=np.float64),
            np.array([each["seconds"] for each in found], dtype=np.float64),
        )


def summarise(
    request: ExperimentRequest, plan: Mapping[str, Any], choice: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute all figures.

    Raises:
        UserError: every seed is excluded.
    """
    bases = {n: _base(request, n) for n in range(request.seeds)}
    limit = request.data.base_limit
    seeds = [n for n, base in bases.items() if not is_excluded(base["loss"], limit)]
    if not seeds:
        raise UserError(
            f"{request.directory}: every seed is excluded; the bases have validation losses of "
            + ", ".join(str(base["loss"]) for base in bases.values())
        )
    tables = {name: ArmTable.read(request, name, seeds) for name in ("base", *request.chosen_arms)}
    start, end = request.design.headroom
    arms = {}
    for name, table in tables.items():
        arms[name] = _arm(table)
        if start in tables:
            difference = table.head_1 - tables[start].head_1
            arms[name]["difference"] = t_test(difference)._asdict()
            arms[name]["difference_by_seed"] = difference.tolist()
        if start in tables and end in tables:
            arms[name]["headroom"] = share_of_headroom(
                tables[start].head_1, table.head_1, tables[end].head_1
            )
    named = comparisons_of(request.design, request)
    compared = corrected([compare(tables, each) for each in named], "loss")
    return {
        "plan": dict(plan),
        "choice": dict(choice),
        "seeds": seeds,
        "excluded": [n for n in bases if n not in seeds],
        "base": {str(n): base for n, base in bases.items()},
        "start": start,
        "arms": arms,
        "contrast": compare(tables, request.design.contrast),
        "comparisons": compared,
        "core_minutes": processor_seconds(request) / 60,
    }


def corrected(compared: list[dict[str, Any]], figure: str) -> list[dict[str, Any]]:
    """Add to each comparison the p-value of a figure, corrected by Holm's method."""
    found = holm([each[figure]["p"] for each in compared])
    return [{**each, "p_holm": p} for each, p in zip(compared, found, strict=True)]


def compare(tables: Mapping[str, ArmTable], comparison: Comparison) -> dict[str, Any]:
    """Paired differences, arm − other: losses in nats per token, pass@1 as a share."""
    a, b = tables[comparison.arm], tables[comparison.other]
    # Weighted so that the mean over programs is the difference in nats per token.
    programs = (a.losses - b.losses)[:, :, 0] * (len(a.lengths) / a.lengths.sum())
    crossed = hierarchical_bootstrap(programs, resamples=RESAMPLES, same_problems=True)
    found = {
        "arm": comparison.arm,
        "other": comparison.other,
        "shows": comparison.shows,
        "loss": t_test(a.head_1 - b.head_1)._asdict(),
        "loss_by_seed": (a.head_1 - b.head_1).tolist(),
        "crossed_bootstrap": crossed._asdict(),
        "all_heads": t_test(a.all_heads - b.all_heads)._asdict(),
    }
    if a.passed is not None and b.passed is not None:
        found["pass_at_1"] = t_test((a.passed - b.passed).mean(1))._asdict()
    return found


def share_of_headroom(start: Floats, arm: Floats, end: Floats, seed: int = 0) -> dict[str, Any]:
    """(start − arm) / (start − end) of the means over seeds, `[M]` each, with a percentile
    interval from resampled seeds.

    Returns:
        `share`, `low` and `high`; bounds are None where a resample leaves no headroom, and all are
        None where there is none at all.
    """
    gained, room = start - arm, start - end
    if room.mean() <= 0:
        return {"share": None, "low": None, "high": None}
    found = {"share": float(gained.mean() / room.mean()), "low": None, "high": None}
    picked = np.random.default_rng(seed).integers(len(room), size=(RESAMPLES, len(room)))
    rooms = room[picked].mean(1)
    if len(room) > 1 and (rooms > 0).all():
        low, high = np.quantile(gained[picked].mean(1) / rooms, [0.025, 0.975])
        found |= {"low": float(low), "high": float(high)}
    return found


def _arm(table: ArmTable) -> dict[str, Any]:
    preferred = table.preferred[~np.isnan(table.preferred)]
    found: dict[str, Any] = {
        "loss": t_test(table.head_1)._asdict(),
        "loss_by_seed": table.head_1.tolist(),
        "all_heads": t_test(table.all_heads)._asdict(),
        "right_preferred": float(preferred.mean()) if len(preferred) else None,
        "tokens": int(table.tokens.mean()),
        "seconds": float(table.seconds.mean()),
    }
    if table.passed is not None:
        found["pass_at_1"] = t_test(table.passed.mean(1))._asdict()
    return found


def _base(request: ExperimentRequest, number: int) -> dict[str, Any]:
    return dict(read_json(base_path(request, number)))


def processor_seconds(request: HasJobs) -> float:
    """Processor time of everything that was trained and measured, to choose and to test."""
    files = [*request.directory.glob("seed*/*.json"), *request.directory.glob("seed*/arms/*.json")]
    return sum(float(read_json(file).get("seconds", 0.0)) for file in files)
