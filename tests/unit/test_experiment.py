"""The experiment: its arms resolve, its table says what the scores say, its results file keeps the
rest of the page; and (slow) the command runs end to end and is taken up where it stopped."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weighted_mtp.analysis.experiment_table import markdown_table, replace_section
from weighted_mtp.cli import experiment as command
from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.evaluating import experiment
from weighted_mtp.pipelines.evaluating.experiment import (
    ARMS,
    ArmResult,
    ExperimentRequest,
    arm_recipe,
)


def finish(folder: Path, step: int) -> None:
    """What a finished training leaves, as far as the experiment looks."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    (path / "model").mkdir(parents=True)
    (path / "COMPLETE").touch()


@pytest.fixture
def request_(tmp_path) -> ExperimentRequest:
    request = ExperimentRequest(tmp_path, seeds=1, steps=7, base_steps=9)
    finish(experiment.folder(request, "base", 0), 9)
    return request


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_recipe_with_the_same_budget(arm, request_):
    base, recipe = arm_recipe(request_, "base", 0), arm_recipe(request_, arm, 0)
    assert recipe.model.path is not None
    assert recipe.model.path.parent.name == "step-00000009"
    assert recipe.critic_stage is None
    assert recipe.training.steps == 7
    for name in ("batch_size", "learning_rate", "optimizer", "schedule"):
        assert getattr(recipe.training, name) == getattr(base.training, name)
    assert recipe.data == base.data
    assert recipe.runtime.seed != base.runtime.seed


def test_the_base_learns_from_right_and_wrong_alike(request_):
    base = arm_recipe(request_, "base", 0)
    assert base.pipeline == "critic"
    assert base.objective.value.lm_rows == "all"
    assert base.objective.value.lm_coef > 0


def test_the_controls_differ_from_verifiable_by_their_name_alone(request_):
    real = arm_recipe(request_, "verifiable", 0)
    for arm in ("random_matched", "shuffled", "value_only"):
        control = arm_recipe(request_, arm, 0)
        same = {"name": "verifiable", "td": real.objective.td}
        renamed = control.objective.model_copy(update=same)
        assert control.model_copy(update={"objective": renamed}) == real


def test_an_unknown_arm_is_refused(tmp_path):
    with pytest.raises(UserError, match="no arm magic"):
        experiment.run_experiment(ExperimentRequest(tmp_path, arms=("baseline", "magic")))


def test_rho1_without_its_reference_is_refused(tmp_path):
    with pytest.raises(UserError, match="add baseline"):
        experiment.run_experiment(ExperimentRequest(tmp_path, arms=("rho1",)))


def test_a_training_that_fails_says_where_to_look(tmp_path, monkeypatch):
    def fail(*args, stdout, **options):
        stdout.write("one line\nerror: the disk is full\n")
        return subprocess.CompletedProcess(args, 2)

    monkeypatch.setattr(experiment.subprocess, "run", fail)
    with pytest.raises(UserError, match=r"the disk is full .*base\.log"):
        experiment.run_experiment(ExperimentRequest(tmp_path, seeds=1))


def test_only_evaluations_without_a_result_file_are_run(request_, monkeypatch):
    """`evaluate` itself resumes one that was interrupted."""
    called = []
    monkeypatch.setattr(experiment, "train", lambda *arguments: None)
    monkeypatch.setattr(experiment, "_call", lambda request, words, folder: called.append(words))
    file = experiment.folder(request_, "baseline", 0) / "evaluation" / "micro-test.jsonl"
    (file.with_suffix(".evaluation")).mkdir(parents=True)  # of an interrupted evaluation
    experiment.train_and_evaluate(request_, "baseline", 0)
    assert [words[words.index("--split") + 1] for words in called] == ["test", "compositions"]
    assert not any("--overwrite" in words for words in called)
    file.touch()
    experiment.train_and_evaluate(request_, "baseline", 0)
    assert [words[words.index("--split") + 1] for words in called[2:]] == ["compositions"]


def results(solved: dict[str, float], seeds: int = 2, problems: int = 40) -> list[ArmResult]:
    """Arms that solve a given share of the problems, the first ones."""
    found = []
    for arm, share in solved.items():
        for seed in range(seeds):
            passed = {f"p{i}": i < share * problems for i in range(problems)}
            both = {"test": passed, "compositions": dict.fromkeys(passed, False)}
            found.append(ArmResult(arm, seed, both, 1000, [0.5], 0.7))
    return found


def test_the_table_ranks_arms_and_compares_pairs():
    lines = command.summarise(results({"uniform": 0.25, "baseline": 0.5, "rho1": 0.25}), "uniform")
    assert [line.name for line in lines] == ["baseline", "uniform", "rho1"]
    best = lines[0]
    assert best.scores["test"][0] == pytest.approx(0.5)
    assert best.scores["test"][1] < 0.5 < best.scores["test"][2]
    assert best.scores["compositions"] == (0, 0, 0)
    assert best.difference[0] == pytest.approx(0.25)
    assert best.difference[1] > 0
    assert lines[1].difference is None
    assert lines[2].difference == (0, 0, 0)
    text = markdown_table(lines, ("test", "compositions"), "uniform")
    assert len({row.count("|") for row in text.splitlines()}) == 1
    assert "+25.0" in text


def test_scores_are_aligned_by_problem():
    one = ArmResult("a", 0, {"test": {"x": True, "y": False}}, 0)
    other = ArmResult("a", 1, {"test": {"y": True, "x": False}}, 0)
    np.testing.assert_array_equal(command.table([one, other], "test"), [[1, 0], [0, 1]])


def test_comparisons_are_paired():
    found = results({"verifiable": 0.5, "shuffled": 0.5, "baseline": 0.75})
    rows = command.compare(found)
    assert [(arm, other) for arm, other, *_ in rows] == [
        ("verifiable", "shuffled"),
        ("verifiable", "baseline"),
    ]
    assert rows[0][3] == [(0, 0, 0), (0, 0, 0)]
    assert rows[1][3][0][0] == pytest.approx(-0.25)


def test_other_settings_in_the_same_directory_are_refused(request_):
    run_dir = experiment.folder(request_, "baseline", 0)
    finish(run_dir, 7)
    (run_dir / "config.yaml").touch()
    run_dir.with_suffix(".yaml").write_text(arm_recipe(request_, "baseline", 0).to_yaml())
    experiment.train(request_, "baseline", 0)  # finished: nothing to do
    changed = replace(request_, settings=("training.learning_rate=0.5",))
    with pytest.raises(UserError, match="made with other settings"):
        experiment.train(changed, "baseline", 0)


def test_results_replace_their_own_section_only(tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results\n\nbefore\n")
    replace_section(page, "one", "first")
    replace_section(page, "two", "second")
    replace_section(page, "one", "third")
    text = page.read_text()
    assert text.startswith("# Results\n\nbefore\n")
    assert "first" not in text
    assert text.index("third") < text.index("second")
    assert text.count("one: begin") == text.count("one: end") == 1


def test_wrong_numbers_are_refused(tmp_path, capsys):
    assert main(["experiment", "wmtp", "--seeds", "0", "--output-dir", str(tmp_path)]) == 2
    assert "--seeds must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_from_nothing_and_again(tmp_path, capsys):
    arguments = ["experiment", "wmtp", "--seeds", "1", "--steps", "2", "--base-steps", "2"]
    arguments += ["--n-problems", "2", "--arms", "baseline,uniform,verifiable,rho1"]
    for setting in ("data.micro.n_problems=20", "data.micro.n_validation=4"):
        arguments += ["--set", setting]
    page = tmp_path / "docs" / "RESULTS.md"
    arguments += ["--output-dir", str(tmp_path / "runs"), "--results", str(page)]
    assert main(arguments) == 0
    first = page.read_text()
    metrics = tmp_path / "runs" / "seed0" / "rho1" / "metrics.jsonl"
    assert json.loads(metrics.read_text().splitlines()[1])["rho1"]["kept_share"] > 0.59
    stamp = metrics.stat().st_mtime_ns
    assert main(arguments) == 0
    assert metrics.stat().st_mtime_ns == stamp
    assert page.read_text() == first
    assert (page.parent / "figures" / "experiment-wmtp-micro.png").exists()
