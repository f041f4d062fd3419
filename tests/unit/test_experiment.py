"""The experiment: its plan holds, its choice never sees the test split, its arms share rows, its
figures are those of hand computations, and it goes on where it stopped."""

import json
from dataclasses import replace

import numpy as np
import pytest

from weighted_mtp.analysis.experiment_table import (
    arm_table,
    comparison_table,
    outcome,
    replace_section,
)
from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.evaluation.student_t import holm, t_test
from weighted_mtp.pipelines.experiments import bench, run, seed, summary
from weighted_mtp.pipelines.experiments.arms import (
    CHOSEN,
    CRITIC,
    DESIGNS,
    RHO1,
    WITHIN,
    WMTP,
    WMTP_ARMS,
)
from weighted_mtp.pipelines.experiments.plan import (
    CHOICE_SEED,
    check_request,
    make_plan,
    write_plan,
)
from weighted_mtp.pipelines.experiments.request import (
    REGIMES,
    ExperimentRequest,
    Regime,
    arm_path,
    base_path,
    is_excluded,
)
from weighted_mtp.pipelines.experiments.rows import training_rows

TINY = ("model.architecture.dim=16", "model.architecture.n_layers=5")
SMALL = Regime(4, 8, 4, 0.0, "regime", "a few")


@pytest.fixture
def request_(tmp_path, monkeypatch) -> ExperimentRequest:
    monkeypatch.setitem(REGIMES, "scarce", SMALL)
    grid = dict(list(WMTP.grid.items())[:3])
    monkeypatch.setitem(DESIGNS, "wmtp", replace(WMTP, grid=grid))
    return ExperimentRequest(
        tmp_path / "run",
        seeds=2,
        choice_seeds=1,
        arms=("uniform", "chosen", "chosen_shuffled", "oracle"),
        steps=1,
        base_steps=1,
        n_test=4,
        n_validation=3,
        n_problems=0,
        base_limit=20.0,
        settings=TINY,
    )


# --- the plan ---


def test_a_plan_is_written_once_and_refuses_another_request(request_):
    plan = write_plan(request_)
    assert plan["contrast"]["arm"] == "chosen"
    assert plan["final_seeds"] == [0, 1]
    assert plan["choice_seeds"] == [CHOICE_SEED]
    assert "above 20.0 nats" in plan["exclusion"]
    path = request_.directory / "plan.json"
    before = path.read_bytes()
    assert write_plan(replace(request_, jobs=2)) == plan  # jobs change no result
    assert path.read_bytes() == before
    for changed, key in (
        (replace(request_, seeds=3), "final_seeds"),
        (replace(request_, base_limit=1.0), "exclusion"),
        (replace(request_, arms=("chosen", "chosen_shuffled")), "arms"),
        (replace(request_, regime="balanced"), "request.regime"),
        (replace(request_, settings=()), "request.settings"),
    ):
        with pytest.raises(UserError, match=f"the plan says {key}"):
            write_plan(changed)
    assert write_plan(replace(request_, seeds=1))["final_seeds"] == [0, 1]  # ended early
    for arm in request_.chosen_arms:
        arm_path(request_, 1, arm).parent.mkdir(parents=True, exist_ok=True)
        arm_path(request_, 1, arm).write_text("{}")
    with pytest.raises(UserError, match="contrast is known of seed 1"):
        write_plan(replace(request_, seeds=1))
    arm_path(request_, 1, "chosen").unlink()
    write_plan(replace(request_, seeds=1))
    base_path(request_, 1).write_text('{"loss": 20.5}')
    with pytest.raises(UserError, match="base failed is known of seed 1"):
        write_plan(replace(request_, seeds=1))
    path.write_text(path.read_text().replace("alpha 0.05", "alpha 0.10"))
    with pytest.raises(UserError, match="test_of_the_contrast"):
        write_plan(request_)


def test_the_plan_stands_before_anything_is_trained(request_, monkeypatch):
    def fail(*_):
        assert (request_.directory / "plan.json").exists()
        raise UserError("as far as training")

    monkeypatch.setattr(run, "run_choice_seed", fail)
    with pytest.raises(UserError, match="as far as training"):
        run.run_experiment(request_)


def test_wrong_requests_are_refused(request_, tmp_path, capsys):
    with pytest.raises(UserError, match="no arm magic"):
        check_request(replace(request_, arms=("magic",)))
    with pytest.raises(UserError, match="add chosen_shuffled"):
        check_request(replace(request_, arms=("chosen",)))
    with pytest.raises(UserError, match="dimension"):
        check_request(replace(request_, settings=("model.dimension=3",)))
    for words in (["--seeds", "0"], ["--n-problems", "300"], ["--flipped", "0.5"]):
        assert main(["experiment", "wmtp", *words, "--output-dir", str(tmp_path / "x")]) == 2
        assert words[0] in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("design", "arm"), [(design, arm) for design in (WMTP, CRITIC, WITHIN) for arm in design.arms]
)
def test_every_arm_continues_the_base_with_the_same_budget(design, arm, tmp_path):
    one = seed.Seed(ExperimentRequest(tmp_path, design.name), 3)
    found = design.arms[arm]
    base, recipe = one.recipe(design.base), one.recipe(found, ("objective.td.lam=0.5",))
    assert recipe.training.learning_rate == base.training.final_learning_rate  # no restart
    assert recipe.training.warmup_fraction == 0
    for name in ("batch_size", "schedule", "optimizer", "weight_decay"):
        assert getattr(recipe.training, name) == getattr(base.training, name)
    assert recipe.model == base.model
    assert recipe.critic_stage is None
    assert recipe.objective.td.lam == (0.5 if CHOSEN in found.settings else 0.95)
    keeps_critic = arm.startswith(("still", "within"))
    assert (recipe.objective.value.coef == 0) == keeps_critic


def test_a_control_differs_from_its_arm_by_the_name_alone():
    for arm in ("verifiable", "chosen"):
        real = WMTP.recipe(WMTP_ARMS[arm], "micro", (), ())
        for control in (f"{arm}_shuffled", f"{arm}_random"):
            found = WMTP.recipe(WMTP_ARMS[control], "micro", (), ())
            named = found.objective.model_copy(update={"name": "verifiable"})
            assert found.model_copy(update={"objective": named}) == real


@pytest.mark.parametrize(("design", "arm"), [(CRITIC, "still"), (WITHIN, "within")])
def test_the_shuffled_twin_keeps_its_critic_too(design, arm):
    recipe = design.recipe(design.arms[arm], "micro", (), TINY)
    shuffled = design.recipe(design.arms[f"{arm}_shuffled"], "micro", (), TINY)
    named = shuffled.objective.model_copy(update={"name": "verifiable"})
    assert shuffled.model_copy(update={"objective": named}) == recipe


# --- rows ---


def test_arms_share_rows_and_labels_are_flipped_in_training_only(request_, tmp_path):
    one = seed.Seed(request_, 0)
    recipe = one.recipe(WMTP.base)
    path = tmp_path / "rows.jsonl"
    rows = training_rows(path, recipe, SMALL, 0, one.collator)
    assert sum(x.is_correct for x in rows.kinds["all"]) == 4
    assert len(rows.kinds["all"]) == 12
    taken = {kind: rows.groups(kind, 5).take(0, 12) for kind in ("all", "without_mistakes")}
    assert [g[0].row for g in taken["all"]] == [g[0].row for g in taken["without_mistakes"]]
    for (plain,), (masked,) in zip(*taken.values(), strict=True):
        assert plain.ids == masked.ids
        assert bool(masked.holes) == (not plain.is_correct)
    among = [g[0].row for g in rows.groups("right_among_all", 5).take(0, 12)]
    assert among == [g[0].row for g in taken["all"] if g[0].is_correct]
    right = rows.groups("right", 5).take(0, 12)
    assert len(right) == 12
    assert all(group[0].is_correct for group in right)

    noisy = training_rows(path, recipe, replace(SMALL, flipped=0.25), 0, one.collator)
    changed = [
        a.is_correct != b.is_correct
        for a, b in zip(rows.kinds["all"], noisy.kinds["all"], strict=True)
    ]
    assert sum(changed) == 3
    masked = [bool(x.holes) for x in noisy.kinds["without_mistakes"]]  # the oracle knows the truth
    assert masked == [not x.is_correct for x in rows.kinds["all"]]


# --- a whole run ---


def test_a_run_goes_on_where_it_stopped_and_chooses_before_it_tests(request_, monkeypatch):
    trained, measured = [], []
    train, measure = seed.Seed.train, seed.Seed.measure

    def counted(self, arm, chosen=()):
        trained.append((self.number, arm.about))
        if len(trained) == 9:  # while the second seed's first arm is trained
            raise KeyboardInterrupt
        return train(self, arm, chosen)

    def watched(self, model, split):
        measured.append((self.number >= CHOICE_SEED, split))
        if split == "validation":
            assert not seed.held_out_path(request_, "test").exists()
        else:
            assert (request_.directory / "choice.json").exists()
        return measure(self, model, split)

    monkeypatch.setattr(seed.Seed, "train", counted)
    monkeypatch.setattr(seed.Seed, "measure", watched)
    with pytest.raises(KeyboardInterrupt):
        run.run_experiment(request_)
    files = {path: path.stat().st_mtime_ns for path in request_.directory.rglob("*.json")}
    results = run.run_experiment(request_)
    assert len(trained) == 3 + 2 * 4 + 1  # only the interrupted arm began twice
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    assert set(measured) == {(True, "validation"), (False, "test")}
    assert results["seeds"] == [0, 1]
    assert results["arms"]["uniform"]["headroom"]["share"] in (0.0, None)
    assert json.loads((request_.directory / "results.json").read_text()) == results
    text = arm_table(results) + comparison_table(results) + outcome(results)
    assert "nan" not in text.lower()
    again = run.run_experiment(request_)
    assert again == results
    assert len(trained) == 12


def test_a_failed_base_is_excluded_by_the_rule_of_the_plan(request_, monkeypatch):
    assert is_excluded(None, 1.0)
    assert is_excluded(1.01, 1.0)
    assert not is_excluded(1.0, 1.0)
    bases = {0: 0.5, 1: 1.5, 2: None}
    request = replace(request_, seeds=3, base_limit=1.0)
    for number, loss in bases.items():
        folder = request.directory / f"seed{number}"
        (folder / "arms").mkdir(parents=True)
        (folder / "base.json").write_text(json.dumps({"loss": loss, "seconds": 1.0}))
    for name in ("base", *request.chosen_arms):
        path = arm_path(request, 0, name)
        path.write_text(json.dumps(arm_file([[1.0, 2.0], [3.0, 4.0]])))
    results = summary.summarise(request, make_plan(request), {"chosen": "x"})
    assert results["seeds"] == [0]
    assert results["excluded"] == [1, 2]
    (request.directory / "seed0" / "base.json").write_text('{"loss": null, "seconds": 1.0}')
    with pytest.raises(UserError, match="every seed is excluded"):
        summary.summarise(request, make_plan(request), {})


# --- figures ---


def arm_file(losses: list[list[float]], lengths=(2, 8)) -> dict[str, object]:
    """An arm's result, `losses` [programs, heads]."""
    return {
        "losses": losses,
        "lengths": list(lengths),
        "tokens": 10,
        "seconds": 1.0,
        "right_preferred": None,
    }


def tables(**losses: list[float]) -> dict[str, summary.ArmTable]:
    """Arms with one program of one token a seed."""
    none = np.zeros(0)
    return {
        name: summary.ArmTable(np.array(values)[:, None, None], np.ones(1), None, none, none, none)
        for name, values in losses.items()
    }


def test_a_loss_counts_tokens_not_programs(request_):
    for number, losses in enumerate(([[1.0, 2.0], [3.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]])):
        path = arm_path(request_, number, "uniform")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(arm_file(losses)))
    table = summary.ArmTable.read(request_, "uniform", [0, 1])
    np.testing.assert_allclose(table.head_1, [0.4, 0.4])
    np.testing.assert_allclose(table.all_heads, [0.5, 0.4])
    assert seed.head_1(arm_file([[1.0, 2.0], [3.0, 4.0]])) == pytest.approx(0.4)


def test_a_comparison_is_paired_and_the_rest_corrected():
    found = tables(a=[1.0, 2.0, 3.0], b=[1.5, 2.4, 3.6])
    compared = summary.compare(found, summary.Comparison("a", "b", "x"))
    assert compared["loss"] == pytest.approx(t_test([-0.5, -0.4, -0.6])._asdict())
    assert compared["loss_by_seed"] == pytest.approx([-0.5, -0.4, -0.6])
    assert -0.601 < compared["crossed_bootstrap"]["low"] < -0.5
    assert holm([compared["loss"]["p"]]) == [compared["loss"]["p"]]


def test_share_of_the_headroom():
    start, end = np.array([1.0, 1.2]), np.array([0.5, 0.6])
    half = summary.share_of_headroom(start, (start + end) / 2, end)
    assert half == pytest.approx({"share": 0.5, "low": 0.5, "high": 0.5})
    worse = summary.share_of_headroom(start, start + 0.11, end)
    assert worse["share"] == pytest.approx(-0.2)
    assert worse["low"] < -0.2 < worse["high"]
    none = {"share": None, "low": None, "high": None}
    assert summary.share_of_headroom(start, end, start) == none
    unsure = summary.share_of_headroom(np.array([1.0, 1.0]), end, np.array([0.5, 1.1]))
    assert unsure["share"] is not None
    assert unsure["low"] is None


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([-0.5, -0.4, -0.6], "**better**"),
        ([0.5, 0.4, 0.6], "**worse**"),
        ([0.5, -0.4, 0.1], "No difference shown"),
        ([0.5], "One seed"),
    ],
)
def test_the_outcome_is_said_whichever_way_it_went(values, word):
    test = t_test(values)._asdict()
    test = {key: None if x != x else x for key, x in test.items()}
    contrast = {"arm": "a", "other": "b", "loss": test, "loss_by_seed": values}
    assert word in outcome({"contrast": contrast})


def test_right_programs_are_counted_by_running_them(request_):
    """The reference solutions, as if a model had written them."""
    one = seed.Seed(replace(request_, n_problems=2), 0)
    run._generate(request_, "test", request_.n_test)
    problems = one.problems()
    assert len(problems) == 2
    assert all(problem.tests for problem in problems)
    groups = one.rows.groups("all", 0)
    trained = bench.train(one.recipe(WMTP.base), groups, one.folder)
    assert bench.pass_at_1(trained.adapter, problems, one.collator) == [False, False]


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


def test_the_command_writes_text_and_picture(request_, tmp_path, capsys):
    page = tmp_path / "docs" / "RESULTS.md"
    words = ["experiment", "wmtp", "--seeds", "2", "--choice-seeds", "1", "--steps", "1"]
    words += ["--base-steps", "1", "--n-test", "3", "--n-validation", "3", "--n-problems", "1"]
    words += ["--base-limit", "20", "--arms", "uniform,chosen,chosen_shuffled,oracle"]
    words += [word for setting in TINY for word in ("--set", setting)]
    words += ["--output-dir", str(tmp_path / "runs"), "--results", str(page)]
    assert main(words) == 0
    text = page.read_text()
    assert "weights on the right tokens" in text
    assert "--base-limit 20.0" in text
    assert (page.parent / "figures" / "experiment-wmtp-scarce.png").stat().st_size > 10_000
    assert main([*words, "--n-validation", "4"]) == 2
    assert "the plan says" in capsys.readouterr().err


# --- rho1 ---


def test_noise_is_known_to_the_oracle_and_the_reference_has_other_problems(tmp_path, monkeypatch):
    few = Regime(12, 0, 6, 0.0, "regime", "a few", replaced=0.3)
    monkeypatch.setitem(REGIMES, "noisy-tokens", few)
    request = ExperimentRequest(tmp_path, "rho1", "noisy-tokens", steps=1, settings=TINY)
    one = seed.Seed(replace(request, base_steps=1, n_validation=2, n_test=2, n_problems=0), 0)
    kinds = one.rows.kinds
    assert len(kinds["all"]) == 8
    assert len(kinds["reference"]) == 4
    assert not {x.task_id for x in kinds["all"]} & {x.task_id for x in kinds["reference"]}
    for noisy, clean, known in zip(
        kinds["all"], kinds["clean"], kinds["without_mistakes"], strict=True
    ):
        changed = [
            i for i, pair in enumerate(zip(noisy.ids, clean.ids, strict=True)) if len({*pair}) > 1
        ]
        assert noisy.ids[-1] == clean.ids[-1]
        assert known.holes == tuple((i, i + 1) for i in changed)
        assert all(i >= clean.prompt_length for i in changed)
    assert sum(len(x.holes) for x in kinds["without_mistakes"]) > 0

    run._generate(request, "validation", 2)
    lines = one.reference
    assert [x.ids for x in lines] == [x.ids for x in kinds["all"]]
    heads = one.recipe(RHO1.base).model.architecture.n_future_tokens
    assert lines[0].reference.shape == (len(lines[0].ids), heads)
    assert (lines[0].reference[lines[0].prompt_length :] > 0).all()
    for arm in ("same", "next", "difficult", "random_60", "clean"):
        assert one.train(RHO1.arms[arm]).tokens > 0


def test_a_regime_of_another_experiment_is_refused(tmp_path):
    with pytest.raises(UserError, match="rho1 has noisy-tokens"):
        check_request(ExperimentRequest(tmp_path, "rho1", "scarce"))
    assert make_plan(ExperimentRequest(tmp_path, "rho1", "noisy-tokens"))["choice_seeds"] == []
