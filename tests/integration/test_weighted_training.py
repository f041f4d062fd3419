"""The weighted pipelines through the command line: what a run does and leaves."""

import shutil

import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    CRITIC,
    last_checkpoint,
    records,
    resume,
    train,
    train_arguments,
    train_curve,
    tree,
    weights,
)

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import load_recipe_file
from weighted_mtp.data.datasets import read_jsonl, write_jsonl
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, value_head_path
from weighted_mtp.models.meta_mtp.value_head import ValueHead

rows_file = helpers_training.rows_file
critic_model = helpers_training.critic_model
reference_file = helpers_training.reference_file


def test_a_critic_on_a_frozen_trunk_learns_and_moves_nothing_else(
    tmp_path, rows_file, critic_model
):
    """Its pass needs no labels of its own: the start is any model, here one with a value head."""
    run_dir = tmp_path / "run"
    changes = {"model__path": critic_model, "training__steps": 30, "training__warmup_fraction": 0}
    assert train(run_dir, rows_file, "critic", objective__value__learning_rate=0.05, **changes) == 0
    before, after = load_meta_mtp_model(critic_model, device="cpu").state_dict(), weights(run_dir)
    assert all(torch.equal(w, after[name]) for name, w in before.items())
    loss = train_curve(run_dir, "value_loss")
    assert sum(loss[-5:]) < 0.95 * sum(loss[:5])
    held_out = [r for r in records(run_dir) if r["kind"] == "validation"][-1]
    assert held_out["loss"] == held_out["value_loss"]
    for share in (25, 50, 75, 100):
        assert 0 <= held_out[f"auc_at_{share}"] <= 1
        assert 0 <= held_out[f"within_problem_auc_at_{share}"] <= 1
        assert f"explained_variance_at_{share}" in held_out
        assert f"calibration_error_at_{share}" in held_out


@pytest.mark.parametrize("name", ["verifiable", "random_matched", "shuffled"])
def test_verifiable_starts_from_the_critic(name, tmp_path, rows_file, critic_model):
    run_dir = tmp_path / "run"
    changes = {
        "model__path": critic_model,
        "objective__name": name,
        "training__learning_rate": 3e-3,
    }
    assert train(run_dir, rows_file, "verifiable", **changes) == 0
    critic = train_curve(last_checkpoint(critic_model.parents[2]).parents[1], "value_loss")
    kept = records(run_dir)
    first, last = ([r for r in kept if r["kind"] == "train"][i] for i in (0, -1))
    assert first["value_loss"] < critic[0]
    assert last["head_loss"][0] < first["head_loss"][0]
    assert 0.1 <= first["weight"]["mean"] <= 5
    assert 0 < first["weight"]["effective_sample_size"] <= 1
    groups = [first[f"advantage_{kind}"]["count"] for kind in ("correct", "incorrect")]
    assert sum(groups) == first["advantage"]["count"] == first["tokens"]
    assert min(groups) > 0
    held_out = [r for r in kept if r["kind"] == "validation"][-1]
    assert {"loss", "head_loss", "head_loss_incorrect", "auc_at_50"} <= held_out.keys()


def test_two_stages_in_one_command(tmp_path, rows_file):
    run_dir = tmp_path / "run"
    stage = {"critic_stage__steps": 5, "critic_stage__learning_rate": 0.02}
    assert train(run_dir, rows_file, "verifiable", **stage, **CRITIC) == 0
    assert len(train_curve(run_dir / "critic")) == 5
    assert len(train_curve(run_dir)) == 8
    assert max(train_curve(run_dir / "critic", "learning_rate")) == 0.02
    assert max(train_curve(run_dir, "learning_rate")) == 0.01
    first = train_curve(run_dir, "head_loss")[0][0]
    assert first < train_curve(run_dir / "critic", "head_loss")[0][0] - 0.5
    assert weights(run_dir).keys() == weights(run_dir / "critic").keys()


def test_rho1_trains_its_reference_first(tmp_path, rows_file):
    """In RUN/reference, on correct rows only; both stages start from the same fresh weights."""
    run_dir = tmp_path / "run"
    stage = {"reference_stage__steps": 5, "reference_stage__learning_rate": 0.02}
    assert train(run_dir, rows_file, "rho1", **stage) == 0
    assert len(train_curve(run_dir / "reference")) == 5
    assert len(train_curve(run_dir)) == 8
    assert max(train_curve(run_dir / "reference", "learning_rate")) == 0.02
    saved = load_recipe_file(run_dir / "reference" / "config.yaml")
    assert (saved.pipeline, saved.objective.name) == ("baseline", "baseline")
    assert saved.objective.rows == "correct"
    alone = tmp_path / "alone"  # the main stage by itself, against the same reference
    model = last_checkpoint(run_dir / "reference") / "model"
    assert train(alone, rows_file, "rho1", objective__rho1__reference_model=model) == 0
    assert train_curve(alone) == train_curve(run_dir)
    before = tree(run_dir)
    assert resume(run_dir) == 0
    assert tree(run_dir) == before


def test_the_second_stage_may_stop_early(tmp_path, rows_file, capsys):
    """Nothing ever improves enough: it ends after its second validation, for good. The critic, of
    which the figure that is watched may say nothing, is trained to its end."""
    early = "{patience: 1, min_delta: 100}"
    changes = {"training__early_stopping": early, "training__validate_every": 2, **CRITIC}
    run_dir = tmp_path / "run"
    assert train(run_dir, rows_file, "verifiable", critic_stage__steps=6, **changes) == 0
    assert last_checkpoint(run_dir / "critic").name == "step-00000006"
    assert last_checkpoint(run_dir).name == "step-00000004"
    before = tree(run_dir)
    assert resume(run_dir) == 0
    assert tree(run_dir) == before


def test_rho1_reports_what_it_kept(tmp_path, rows_file, reference_file):
    run_dir = tmp_path / "run"
    assert train(run_dir, rows_file, "rho1", objective__rho1__reference=reference_file) == 0
    for record in (r for r in records(run_dir) if r["kind"] == "train"):
        rho1 = record["rho1"]
        assert 0.6 <= rho1["kept_share"] < 0.62
        assert rho1["mean_excess_kept"] > rho1["mean_excess"]
    assert train_curve(run_dir)[-1] < train_curve(run_dir)[0]


def test_pairs_are_judged_as_pairs(tmp_path, rows_file, critic_model, monkeypatch):
    """The same pairs for training, in one step that moves nothing, and for validation, where the
    file has them in another order."""
    model = tmp_path / "model"
    shutil.copytree(critic_model, model)
    head = ValueHead.load_checkpoint(value_head_path(model))
    torch.nn.init.normal_(head.value.weight)
    head.save_checkpoint(value_head_path(model))
    monkeypatch.setenv("WEIGHTED_MTP_VERIFY", "0")  # changed on purpose
    rows = read_jsonl(rows_file)
    mixed = sorted(rows, key=lambda row: (row["is_correct"], row["output"]))
    write_jsonl(tmp_path / "mixed.jsonl", mixed)
    change = {
        "model__path": model,
        "objective__value__loss": "pairwise",
        "data__validation": tmp_path / "mixed.jsonl",
        "training__learning_rate": 1e-12,
        "training__steps": 1,
        "training__batch_size": 16,
    }
    assert train(tmp_path / "run", rows_file, "critic", **change) == 0
    trained, held_out = records(tmp_path / "run")
    assert held_out["value_loss"] == pytest.approx(trained["value_loss"], rel=1e-4)


def test_what_is_set_on_resume_takes_effect(tmp_path, rows_file, critic_model):
    """Rates and decay live in the optimizer's saved groups too."""
    run_dir = tmp_path / "run"
    start = {"model__path": critic_model, "objective__value__learning_rate": 0.01}
    arguments = train_arguments(run_dir, rows_file, "verifiable", training__steps=4, **start)
    assert main(["train", *arguments]) == 0
    more = ("training.steps=8", "training.learning_rate=0.05", "training.weight_decay=0.0")
    sets = [word for item in more for word in ("--set", item)]
    assert main(["train", "--resume", "--output-dir", str(run_dir), *sets]) == 0
    state = torch.load(last_checkpoint(run_dir) / "optimizer.pt", weights_only=True)
    rate = train_curve(run_dir, "learning_rate")[-1]
    matrices, _, head = state["param_groups"]
    assert matrices["weight_decay"] == 0
    assert head["lr"] == pytest.approx(rate / 0.05 * 0.01)
