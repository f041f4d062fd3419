"""Figures count what there is a term for, and what there is nothing of is null: never 0, and never
the figure of something else."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import SMALL, token_weights

from weighted_mtp.analysis import run_report
from weighted_mtp.analysis.charts import save_png
from weighted_mtp.core.config.sections import ObjectiveConfig, ValueConfig
from weighted_mtp.core.run_records import read_stages
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.evaluation.scores import Tally, score
from weighted_mtp.pipelines.metrics_utils import MetricsFile, in_words, read_metrics
from weighted_mtp.pipelines.tracking.backends import scalars
from weighted_mtp.pipelines.training.objectives import Pool, make_objective
from weighted_mtp.pipelines.training.step import summarise
from weighted_mtp.value_weighting.rho1_weighting import rho1_stats

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer


# --- tokens for which there is no term -----------------------------------------------------------


def batch_of(rows: list[tuple[int, int]], width: int, truncated=()) -> Batch:
    """Rows whose response is `start … end − 1`, right and wrong in turn."""
    labels = torch.full((len(rows), width), IGNORE_INDEX)
    for row, (start, end) in zip(labels, rows, strict=True):
        row[start:end] = 7
    cut = torch.tensor([i in truncated for i in range(len(rows))])
    correct = torch.arange(len(rows)) % 2 == 0
    return Batch(labels[:, :-1], labels, cut, torch.arange(len(rows)), correct)


def test_the_value_loss_counts_the_terms_it_has():
    """A response at position 0 has no V before its first token; a truncated one no outcome."""
    objective = make_objective(ObjectiveConfig(name="verifiable"), 2)
    rows = [(0, 4), (1, 4), (0, 1), (3, 3), (0, 1), (2, 5), (0, 3)]
    batch = batch_of(rows, 6, truncated={4, 5, 6})
    assert objective.value_count(batch) == 3 + 3 + 0 + 0 + 0 + 2 + 1
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    loss, sums = objective.value_loss(batch, values.requires_grad_(), torch.tensor(9.0))
    loss.backward()
    assert (values.grad != 0).sum() == sums["value"][1] == 9
    assert objective.counts(batch).tolist() == [11, 8, 9]  # heads 1 and 2, values
    for pooled in ("whiten", "renormalise"):
        td = {"whiten": "batch"} if pooled == "whiten" else {"renormalise": True}
        weighted = make_objective(ObjectiveConfig(name="verifiable", td=td), 2)
        signal = values.detach()
        pool = Pool(batch.labels, batch.correct, batch.truncated, batch.rows, signal, None)
        weights = token_weights(weighted, pool)
        assert not weights[:, 0].any()
        assert weighted.weigh(pool).figures["weight"].sum(0)[:, 0].sum() == 11
        if pooled == "renormalise":
            assert weights.sum() / 11 == pytest.approx(1.0)


def test_a_pair_with_a_row_that_has_no_value_is_not_counted():
    config = ObjectiveConfig(name="critic", value=ValueConfig(loss="pairwise"))
    objective = make_objective(config, 1)
    batch = batch_of([(0, 1), (1, 3), (1, 3), (2, 4), (1, 2)], 5)
    values = torch.ones(5, 4, requires_grad=True)
    assert objective.value_count(batch) == 1
    loss, sums = objective.value_loss(batch, values, torch.tensor(1.0))
    assert loss.item() == pytest.approx(math.log(2))
    assert sums["value"].tolist() == pytest.approx([math.log(2), 1])
    loss.backward()
    assert not values.grad[[0, 1, 4]].any()


@pytest.mark.parametrize("loss", ["mse", "pairwise"])
def test_a_critic_counts_tokens_not_pairs(loss, make_trainer):
    trainer = make_trainer("critic", objective__value__loss=loss, **SMALL)
    batches = next(trainer.reader)
    tokens = sum(int((batch.labels[:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
    again = make_trainer("critic", objective__value__loss=loss, **SMALL)
    assert again.train_step()["tokens"] == tokens > 50
    assert again.validate()["tokens"] > 50


# --- an absent class -----------------------------------------------------------------------------


def records(tmp_path, figures: dict) -> tuple[dict, dict]:
    """A record as it is in the file, and as it is read."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write("train", 1, figures)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    raw = json.loads(file.path.read_text(), parse_constant=refuse)
    return raw, read_metrics(file.path)[0]


def step_of_one_class(make_trainer: Callable, correct: bool) -> dict:
    """Figures of a training step whose rows are all right, or all wrong."""
    trainer = make_trainer("verifiable", objective__value__gradient_to_trunk=False, **SMALL)
    only = [
        batch._replace(correct=torch.full_like(batch.correct, correct))
        for batch in next(trainer.reader)
    ]
    trainer.reader = iter([only])
    return trainer.train_step()


@pytest.mark.parametrize("correct", [True, False])
def test_weights_and_losses_of_an_absent_class_are_null(correct, make_trainer, tmp_path):
    raw, read = records(tmp_path, step_of_one_class(make_trainer, correct))
    there, absent = ("correct", "incorrect") if correct else ("incorrect", "correct")
    for name in ("weight", "td_error", "advantage"):
        assert raw[f"{name}_{there}"]["mean"] is not None
        nothing = raw[f"{name}_{absent}"]
        assert nothing.pop("count", 0) == 0
        assert set(nothing.values()) == {None}
        assert math.isnan(read[f"{name}_{absent}"]["mean"])
    assert raw["tokens"] > 0
    assert raw["loss"] > 0
    if correct:
        assert all(x > 0 for x in raw["head_loss"])
        assert "head_loss_incorrect" not in raw
    else:
        assert set(raw["head_loss"]) == set(raw["head_accuracy"]) == {None}
        assert all(x > 0 for x in raw["head_loss_incorrect"])


def test_head_figures_of_a_validation_are_never_of_wrong_rows(make_trainer):
    trainer = make_trainer("baseline", objective__name="uniform", **SMALL)
    trainer.validation = [
        tuple(e._replace(is_correct=False) for e in group) for group in trainer.validation
    ]
    figures = trainer.validate()
    for name in ("head_loss", "head_accuracy", "head_confidence", "head_acceptance"):
        assert all(map(math.isnan, figures[name])), name
    assert math.isnan(figures["loss"])
    assert math.isnan(figures["tokens_per_forward"])
    assert all(x > 0 for x in figures["head_loss_incorrect"])
    assert "nan" not in in_words(figures)


def test_a_step_with_nothing_to_learn_has_no_figures(make_trainer):
    trainer = make_trainer("verifiable", **SMALL)
    empty = [
        batch._replace(labels=torch.full_like(batch.labels, IGNORE_INDEX))
        for batch in next(trainer.reader)
    ]
    trainer.reader = iter([empty])
    figures = trainer.train_step()
    assert "skipped" not in figures
    assert figures["loss"] == figures["tokens"] == 0  # what was optimised: an empty sum
    assert math.isnan(figures["value_loss"])
    assert all(map(math.isnan, figures["head_loss"]))


def test_tiny_means_are_not_rounded_to_0():
    heads = torch.tensor([[[3e-9], [4.0], [4.0]], [[0.0], [0.0], [0.0]]], dtype=torch.float64)
    assert summarise({"heads": heads})["head_loss"] == [7.5e-10]


def test_rho1_statistics_of_no_token_are_null():
    sums = torch.tensor([[4, 2, 2.0, 6, 8], [3, 0, 1.5, 0, 0], [0] * 5], dtype=torch.float64)
    stats = rho1_stats(sums)
    assert stats["kept_share_head_2"] == 0
    assert stats["mean_excess_head_2"] == 0.5
    names = ["mean_excess_kept_head_2", "mean_ce_kept_head_2"]
    names += [f"{n}_head_3" for n in ("kept_share", "mean_excess", "mean_ce_kept")]
    assert all(math.isnan(stats[name]) for name in names)


def test_one_problem_has_no_standard_error():
    assert score({"a": Tally(4, 2)}, (1,)).standard_error == {1: None}
    assert score({"a": Tally(1, 1), "b": Tally(1, 0)}, (1,)).standard_error == {1: 0.5}


# --- readers leave gaps --------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path):
    """A run whose second and last batches lack right rows, and whose validation lacks a class."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step, mean in enumerate([1.5, math.nan, 0.5, math.nan], 1):
        heads = [2.0, 3.0] if step % 2 else [math.nan] * 2
        weights = {"weight_correct": {"mean": mean}, "weight_incorrect": {"mean": 0.7}}
        file.write("train", step, {"head_loss": heads, "loss": 1.0, "tokens": 9, **weights})
        held_out = {"head_loss": heads, "head_accuracy": heads, "auc_at_50": math.nan}
        held_out |= {"auc_at_100": mean, "right_preferred": math.nan}
        held_out |= {"head_acceptance": [1.0, math.nan], "tokens_per_forward": math.nan}
        names = ("head_confidence", "head_calibration_error", "head_acceptance_sampled")
        held_out |= dict.fromkeys(names, [math.nan] * 2)
        file.write("validation", step, held_out | {"tokens_per_forward_sampled": math.nan})
    return tmp_path


def test_the_report_of_a_run_with_gaps(run_dir):
    stages = read_stages(run_dir)
    charts = {chart.title: chart for chart in run_report.curves(stages)}
    weights = charts["Mean token weight"].series["correct programs"]
    assert [x for x in weights[1] if not math.isnan(x)] == [1.5, 0.5]
    summary = {name: figure for name, figure, _ in run_report.summarise(stages, {})}
    assert summary["token weight, correct"] == "0.50"  # of the last step that had one
    assert summary["next-token accuracy"] == summary["correct preferred"] == "–"
    assert summary["tokens per forward pass"] == "– of 2"
    held_out = stages["main"][-1]
    assert "nan" not in str(run_report.heads(held_out)) + in_words(held_out)
    save_png(run_report.loss_curves(stages), run_dir / "loss.png", "gaps")
    assert (run_dir / "loss.png").stat().st_size > 0


def test_trackers_get_no_null(run_dir):
    for record in read_metrics(run_dir / "metrics.jsonl"):
        found = scalars("x", record)
        assert all(map(math.isfinite, found.values()))
        assert ("x/weight_correct/mean" in found) == (
            record["kind"] == "train" and record["step"] % 2
        )
