"""Run a study: plan, seeds, figures. Whatever is finished is not repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.lock import only_writer
from weighted_mtp.core.run_records import without_nan
from weighted_mtp.evaluation.result_files import write_json
from weighted_mtp.evaluation.student_t import t_test
from weighted_mtp.pipelines.experiments.plan import (
    arm_as_json,
    check_arms,
    comparisons_of,
    keep_plan,
    versions,
)
from weighted_mtp.pipelines.experiments.request import arm_path
from weighted_mtp.pipelines.experiments.run import RESULTS, for_each
from weighted_mtp.pipelines.experiments.study import SETTINGS, Claim, StudyRequest
from weighted_mtp.pipelines.experiments.study_seed import TEST_SEED, run_study_seed
from weighted_mtp.pipelines.experiments.summary import Floats, corrected, processor_seconds

Table = Mapping[str, Mapping[str, Floats]]
"""Accuracies `[seeds]` by arm and measure."""


def run_study(request: StudyRequest) -> dict[str, Any]:
    """Run what is missing and return the results, which are written to results.json too.

    Raises:
        UserError: the request cannot be run, or differs from the plan in its directory.
    """
    _check(request)
    with only_writer(request.directory, "wait until it ends, or give another --output-dir"):
        plan = keep_plan(request, make_study_plan(request))
        for_each(request, run_study_seed, [(number,) for number in range(request.seeds)])
        results = dict(without_nan(summarise_study(request, plan)))
        write_json(request.directory / RESULTS, results)
    return results


def _check(request: StudyRequest) -> None:
    """Raise `UserError` where an arm is unknown, one of the contrast is missing, or a recipe is
    wrong."""
    check_arms(request.study, request)
    for arm in request.chosen_arms:
        request.recipe(arm)


def make_study_plan(request: StudyRequest) -> dict[str, Any]:
    """Everything that is decided before the first training, but for the date."""
    study = request.study
    return {
        "experiment": study.name,
        "about": study.about,
        "versions": versions(),
        "request": {
            "steps": request.chosen_steps,
            "n_test": request.tested,
            "settings": list(request.settings),
        },
        "task": {**asdict(study.task), "levels": list(study.task.levels)},  # type: ignore[call-overload]  # every task is a dataclass
        "final_seeds": list(range(request.seeds)),
        "test_seed": TEST_SEED,
        "arms": {name: arm_as_json(study.arms[name]) for name in request.chosen_arms},
        "settings_of_all": [*SETTINGS, *study.settings],
        "measures": {
            name: {**asdict(measure), "levels": list(measure.levels)}
            for name, measure in study.measures.items()
        },
        "primary_figure": f"{study.primary}, a share; chance is {study.chance:g}",
        "contrast": asdict(study.contrast),
        "test_of_the_contrast": "two-sided paired t-test over seeds, alpha 0.05",
        "comparisons": [asdict(claim) for claim in comparisons_of(study, request)],
        "test_of_the_comparisons": "the same, p-values corrected by Holm's method",
        "exclusion": "none: every seed counts",
    }


def summarise_study(request: StudyRequest, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Compute all figures from the files of the arms."""
    study = request.study
    files = {
        arm: [read_json(arm_path(request, n, arm)) for n in range(request.seeds)]
        for arm in request.chosen_arms
    }
    table = {
        arm: {name: _column(each, name) for name in study.measures} for arm, each in files.items()
    }
    claims = comparisons_of(study, request)
    compared = corrected(
        [compare_arms(table, claim, study.primary) for claim in claims], "difference"
    )
    return {
        "plan": dict(plan),
        "primary": study.primary,
        "chance": study.chance,
        "points": list(study.points),
        "axes": list(study.axes),
        "lines": {
            name: found
            for name, line in study.lines.items()
            if (found := [t_test(table[a][m])._asdict() for a, m in line if a in table])
        },
        "seeds": list(range(request.seeds)),
        "arms": {
            arm: {
                "parameters": files[arm][0]["parameters"],
                "tokens": int(np.mean([each["tokens"] for each in files[arm]])),
                "seconds": float(np.mean([each["seconds"] for each in files[arm]])),
                "accuracy": {
                    name: {**t_test(values)._asdict(), "by_seed": values.tolist()}
                    for name, values in columns.items()
                },
            }
            for arm, columns in table.items()
        },
        "contrast": compare_arms(table, study.contrast, study.primary),
        "comparisons": compared,
        "core_minutes": processor_seconds(request) / 60,
    }


def compare_arms(table: Table, claim: Claim, primary: str) -> dict[str, Any]:
    """The paired difference arm − other, and how it stands to what was published: `same`,
    `opposite`, or `undecided` where the 95 % interval holds 0 or there is one seed; None where
    nothing was published."""
    measure = claim.measure or primary
    values = table[claim.arm][measure] - table[claim.other][measure]
    test = t_test(values)
    found: str | None = "undecided"
    if test.p < 0.05:
        found = "same" if (test.mean > 0) == (claim.sign > 0) else "opposite"
    return {
        **asdict(claim),
        "measure": measure,
        "difference": test._asdict(),
        "by_seed": values.tolist(),
        "sign_found": found if claim.sign else None,
    }


def _column(files: Sequence[Mapping[str, Any]], measure: str) -> Floats:
    return np.array([each["accuracy"][measure] for each in files], dtype=np.float64)
