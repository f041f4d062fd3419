"""Training through the command line: what a run does, what it leaves, what can be done with it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tests.helpers import ROOT
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    checkpoint_names,
    last_checkpoint,
    records,
    same,
    settings,
    tiny_recipe,
    train,
    train_arguments,
    train_curve,
    tree,
    weights,
)

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import RECIPES, available, load_recipe_file
from weighted_mtp.data.datasets import read_jsonl
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model

rows_file = helpers_training.rows_file

HEADS, BLOCKS, STEPS = 3, 4, 12

critic_model = helpers_training.critic_model


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, rows_file) -> Path:
    """A baseline run of 12 steps that saved after 4, 8 and 12 and keeps two."""
    path = tmp_path_factory.mktemp("runs") / "baseline"
    status = train(
        path,
        rows_file,
        training__steps=STEPS,
        training__save_every=4,
        training__keep_last=2,
    )
    assert status == 0
    return path


def test_the_loss_falls(run_dir):
    loss = train_curve(run_dir)
    assert len(loss) == STEPS
    assert loss[-1] < 0.8 * loss[0]
    per_head = train_curve(run_dir, "head_loss")
    assert all(last < first for first, last in zip(per_head[0], per_head[-1], strict=True))


def test_loss_is_the_mean_of_the_heads(run_dir):
    for record in records(run_dir):
        assert len(record["head_loss"]) == HEADS
        assert record["loss"] == pytest.approx(sum(record["head_loss"]) / HEADS, abs=2e-6)


def test_metrics_hold_every_step_and_validation(run_dir):
    kept = records(run_dir)
    assert [r["step"] for r in kept if r["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [r["step"] for r in kept if r["kind"] == "validation"] == [4, 8, 12]
    assert all(r["tokens"] > 0 and r["grad_norm"] > 0 for r in kept if r["kind"] == "train")


def test_log_every_thins_the_metrics_and_keeps_the_last_step(tmp_path, rows_file):
    assert train(tmp_path / "r", rows_file, training__log_every=3, data__validation=None) == 0
    assert [r["step"] for r in records(tmp_path / "r")] == [3, 6, 8]


def test_keep_last_checkpoints_are_kept_whole(run_dir):
    assert checkpoint_names(run_dir) == ["step-00000008", "step-00000012"]
    for name in checkpoint_names(run_dir):
        checkpoint = run_dir / "checkpoints" / name
        present = {path.name for path in checkpoint.iterdir()}
        assert present == {
            "COMPLETE", "model", "optimizer.pt", "rng-0.pt", "sums.json", "trainer.json"
        }  # fmt: skip


def test_the_model_loads_as_a_native_checkpoint(run_dir):
    adapter = MetaLlamaMTPAdapter.from_pretrained(
        last_checkpoint(run_dir) / "model", device="cpu", initialize_value_head=False
    )
    assert adapter.args.n_future_tokens == HEADS
    assert len(adapter.transformer.layers) + len(adapter.transformer.extra_heads) == BLOCKS
    assert adapter.full_forward(torch.tensor([[1, 2, 3]]))["logits"].shape == (1, 3, HEADS, 259)


def test_config_is_what_was_asked(run_dir, rows_file):
    asked = tiny_recipe(
        rows_file, training__steps=STEPS, training__save_every=4, training__keep_last=2
    )
    assert load_recipe_file(run_dir / "config.yaml") == asked
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert saved["training"]["learning_rate"] == 0.01
    assert saved["training"]["weight_decay"] == 0.1  # the recipe's own, resolved
    assert saved["data"]["train"] == str(rows_file)


def test_an_existing_run_is_refused_and_left_alone(run_dir, rows_file, capsys):
    before = tree(run_dir)
    assert train(run_dir, rows_file, training__steps=2) == 2
    assert re.fullmatch(
        r"error: .* holds a run already; add --resume .*\n", capsys.readouterr().err
    )
    assert tree(run_dir) == before


def test_ntp_from_scratch_is_one_head_on_as_many_blocks(tmp_path, rows_file):
    assert train(tmp_path / "r", rows_file, "ntp", training__steps=6) == 0
    adapter = MetaLlamaMTPAdapter.from_pretrained(
        last_checkpoint(tmp_path / "r") / "model", device="cpu", initialize_value_head=False
    )
    assert adapter.args.n_future_tokens == 1
    assert len(adapter.transformer.layers) == BLOCKS
    assert len(adapter.transformer.extra_heads) == 0
    assert train_curve(tmp_path / "r")[-1] < train_curve(tmp_path / "r")[0]


def test_ntp_leaves_the_other_heads_of_a_checkpoint_alone(tmp_path, rows_file, run_dir):
    start = last_checkpoint(run_dir) / "model"
    assert train(tmp_path / "r", rows_file, "ntp", model__path=start, training__steps=4) == 0
    before, after = weights(run_dir), weights(tmp_path / "r")
    assert before.keys() == after.keys()
    for name in before:
        untouched = name.startswith("extra_heads.")
        assert torch.equal(before[name], after[name]) == untouched, name


def test_training_goes_on_from_a_run_directory_of_weights(tmp_path, rows_file, run_dir):
    start = last_checkpoint(run_dir) / "model"
    assert train(tmp_path / "r", rows_file, model__path=start, tokenizer__kind="auto") == 0
    assert train_curve(tmp_path / "r")[0] < train_curve(run_dir)[0]


def test_dry_run_writes_nothing(tmp_path, rows_file, run_dir, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = train_arguments(Path("runs/dry"), rows_file)
    assert main(["train", "--dry-run", *arguments]) == 0
    out = capsys.readouterr().out
    parameters = sum(w.numel() for w in weights(run_dir).values())
    assert f"{parameters:,}" in out
    assert re.search(r"tokens per step\s+at most 512\b", out)  # 8 rows of at most 64
    assert re.search(r"memory per rank\s+about \d+\.\d\d GiB \(weights .* loss .*\)", out)
    printed = yaml.safe_load(out[: out.index("parameters ")])
    assert printed == tiny_recipe(rows_file).model_dump(mode="json")
    assert list(tmp_path.iterdir()) == []


def test_generate_writes_text(run_dir, capsys):
    for path in (run_dir, last_checkpoint(run_dir), last_checkpoint(run_dir) / "model"):
        command = ["generate", str(path), "--prompt", "add 1 and 2", "--max-new-tokens", "8"]
        assert main([*command, "--device", "cpu"]) == 0
        assert len(capsys.readouterr().out.rstrip("\n").encode()) <= 3 * 8


def test_evaluate_takes_a_model_directory_outside_any_run(run_dir, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(helpers_training.last_checkpoint(run_dir) / "model", model)
    command = ["evaluate", str(model), "--n-problems", "2", "--max-new-tokens", "4"]
    assert main(command) == 0


def test_evaluate_judges_programs(run_dir, capsys):
    command = ["evaluate", str(run_dir), "--n-problems", "4", "--max-new-tokens", "8"]
    assert main([*command, "--device", "cpu"]) == 0
    assert "pass@1" in capsys.readouterr().out
    result = run_dir / "evaluation" / "micro-test.jsonl"
    attempts = [json.loads(line) for line in result.read_text().splitlines()]
    assert len({a["task_id"] for a in attempts}) == 4
    assert all(a["status"] in {"passed", "failed", "error"} for a in attempts)
    summary = json.loads(result.with_suffix(".summary.json").read_text())
    assert summary["pass@1"] == sum(a["passed"] for a in attempts) / 4


def test_report_tells_what_a_run_did(run_dir, tmp_path, capsys):
    page = tmp_path / "new" / "report.html"
    assert main(["report", str(run_dir), "--output", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    assert "Training loss" in html
    assert "<script" not in html
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "next-token loss" in told
    assert str(page) in told


def test_report_of_a_critic_looks_into_programs(tmp_path, rows_file, capsys):
    heads = {"objective__head_weights": "[1, 0.5, 0.5]"}  # of the run, not of what is looked at
    assert train(tmp_path / "r", rows_file, "critic", training__steps=4, **heads) == 0
    assert main(["report", str(tmp_path / "r"), "--pairs", "2"]) == 0
    html = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "critic" in capsys.readouterr().out
    assert html.count("TD error") > 10


def test_report_of_nothing_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "give the directory of a training run" in capsys.readouterr().err


def test_the_module_can_be_run():
    command = [sys.executable, "-m", "weighted_mtp", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "train a model by a recipe" in done.stdout


def test_bfloat16_compute_keeps_small_updates(tmp_path, rows_file, run_dir):
    start = last_checkpoint(run_dir) / "model"
    status = train(
        tmp_path / "r",
        rows_file,
        model__path=start,
        training__steps=2,
        training__learning_rate=1e-5,
        training__schedule="constant",
        runtime__compute_dtype="bfloat16",
    )
    assert status == 0
    before, after = weights(run_dir), weights(tmp_path / "r")
    assert all(w.dtype == torch.float32 for w in after.values())
    for name in before:
        if name == "tok_embeddings.weight":
            continue  # most bytes never occur
        moved = before[name] != after[name]
        assert moved.float().mean() > 0.95, name
        if name.endswith("norm.weight"):  # about 1, where bfloat16 would have swallowed the step
            lost = before[name].bfloat16() == after[name].bfloat16()
            assert lost.float().mean() > 0.9


def test_bfloat16_learns_as_float32_does(tmp_path, rows_file, run_dir):
    status = train(
        tmp_path / "r", rows_file, training__steps=STEPS, runtime__compute_dtype="bfloat16"
    )
    assert status == 0
    for narrow, wide in zip(train_curve(tmp_path / "r"), train_curve(run_dir), strict=True):
        assert narrow == pytest.approx(wide, rel=0.02)


def test_the_seed_decides_everything(tmp_path, rows_file):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert train(tmp_path / name, rows_file, training__steps=3, runtime__seed=seed) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_preset_and_overrides_are_merged_in_order(tmp_path, rows_file, capsys):
    sets = [w for item in settings(rows_file, training__steps=5) for w in ("--set", item)]
    assert main(["train", "--recipe", "baseline", "--preset", "micro", "--dry-run", *sets]) == 0
    out = capsys.readouterr().out
    printed = yaml.safe_load(out[: out.index("parameters ")])
    assert printed["training"]["steps"] == 5  # --set over the preset
    assert printed["training"]["warmup_fraction"] == 0.05  # the preset over the recipe
    assert printed["training"]["clip_norm"] == 1.0  # the recipe


@pytest.mark.parametrize("preset", available(RECIPES / "presets"))
@pytest.mark.parametrize("recipe", available())
def test_every_recipe_with_every_preset_resolves(
    recipe, preset, tmp_path, rows_file, critic_model, capsys
):
    """`micro` brings a model and data; `long` is for a checkpoint and files of the user's."""
    changes: list[str] = []
    if preset == "long":
        changes = ["model.architecture=null", f"model.path={critic_model}", "tokenizer.kind=auto"]
        changes.append("model.max_seq_len=16384")
        if recipe != "pretrain":
            changes.append(f"data.train={rows_file}")
        if recipe == "rho1":
            changes.append("reference_stage.steps=5")
    words = [word for change in changes for word in ("--set", change)]
    command = ["train", "--recipe", recipe, "--preset", preset, "--dry-run", *words]
    assert main([*command, "--output-dir", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_tied_embeddings_stay_tied(tmp_path, rows_file):
    run_dir = tmp_path / "r"
    assert train(run_dir, rows_file, model__architecture__tie_embeddings=True) == 0
    model = load_meta_mtp_model(last_checkpoint(run_dir) / "model")
    assert sum(p.numel() for p in model.parameters()) == 70_112 - 259 * 32


def test_micro_data_follows_the_recipe(tmp_path, rows_file):
    """Data kept by a start that failed must not be taken for that of the next recipe."""
    run_dir = tmp_path / "r"
    micro = {"data__source": "micro", "data__micro__n_validation": 2, "training__steps": 1}
    assert train(run_dir, rows_file, **micro, data__micro__n_problems=4, data__max_length=8) == 2
    status = train(run_dir, rows_file, **micro, data__micro__n_problems=6, data__max_length=512)
    assert status == 0
    assert (
        len({row["task_id"] for row in read_jsonl(next(run_dir.glob("data/micro-train-6x*")))}) == 6
    )
