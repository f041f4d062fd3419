"""Token-order prediction: its targets and loss against plain loops, and as the trainer sees it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    SMALL,
    last_checkpoint,
    recut,
    resume,
    run_steps,
    same,
    tiny_recipe,
    train,
    weights,
)

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.losses import order_targets, token_order_loss
from weighted_mtp.models.meta_mtp.order_head import ORDER_HEAD_FILE
from weighted_mtp.pipelines.compose import start_model
from weighted_mtp.pipelines.planning.estimate import count
from weighted_mtp.pipelines.resolve import Processes, model_args
from weighted_mtp.pipelines.training.objectives import make_objective

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer
V = 7


def labels_of(seed: int = 0) -> torch.Tensor:
    """Many repetitions, and tokens that are no targets."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(V, (3, 13), generator=generator)
    return labels.masked_fill(torch.rand(3, 13, generator=generator) < 0.25, -100)


def plain_scores(row: list[int], t: int, window: int) -> torch.Tensor:
    """`[V]` scores of the paper, −∞ for tokens that do not come."""
    scores = torch.full((V,), -torch.inf, dtype=torch.float64)
    for d in range(window):
        if t + 1 + d < len(row) and row[t + 1 + d] >= 0 and scores[row[t + 1 + d]].isinf():
            scores[row[t + 1 + d]] = window - d
    return scores


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, window: int) -> torch.Tensor:
    """The sum over positions whose next token is a target."""
    total = logits.sum() * 0.0
    for b, row in enumerate(labels.tolist()):
        for t in range(logits.shape[1]):
            if t + 1 < len(row) and row[t + 1] >= 0:
                wanted = plain_scores(row, t, window).softmax(0)
                total = total - (wanted * logits[b, t].log_softmax(0)).sum()
    return total


@pytest.mark.parametrize("window", [1, 4, 40])
def test_targets_are_the_first_occurrences(window):
    labels = labels_of()
    found = order_targets(labels, 12, window)
    for b, row in enumerate(labels.tolist()):
        for t in range(12):
            dense = torch.zeros(V).scatter_add(0, found.tokens[b, t], found.shares[b, t])
            if row[t + 1] < 0:
                assert not dense.any()
                assert not found.there[b, t]
            else:
                wanted = plain_scores(row, t, window).softmax(0).float()
                torch.testing.assert_close(dense, wanted)


@pytest.mark.parametrize("chunk_rows", [None, 5])
def test_loss_and_gradients_are_those_of_the_dense_loss(chunk_rows):
    labels, generator = labels_of(1), torch.Generator().manual_seed(2)
    states = torch.randn(3, 12, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = order_targets(labels, 12, 5)
    found = token_order_loss(states, weight, targets, chunk_rows)
    wanted = plain_loss(states @ weight.t(), labels, 5)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)  # shares are float32
    for a, b in zip(
        *(torch.autograd.grad(x, (states, weight)) for x in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_nothing_to_rank_is_a_connected_zero():
    states = torch.ones(1, 4, 2, requires_grad=True)
    weight = torch.ones(V, 2, requires_grad=True)
    loss = token_order_loss(states, weight, order_targets(torch.full((1, 5), -100), 4, 3))
    loss.backward()
    assert loss == 0
    assert not states.grad.any()
    assert not weight.grad.any()


def test_a_step_adds_the_order_loss_however_it_is_cut(make_trainer):
    changes = {"objective__options": {"window": 6, "coef": 0.5}, **SMALL}
    figures = []
    for rows in (8, 3):
        trainer = make_trainer(objective__name="top", **changes)
        recut(trainer, micro_batch_size=rows)
        figures.append(run_steps(trainer, 2))
    for one, other in zip(*figures, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        heads = sum(one["head_loss"]) / 2
        assert one["loss"] == pytest.approx(heads + 0.5 * one["order_loss"], rel=1e-5)


def test_with_coef_0_the_model_is_that_of_the_baseline(make_trainer):
    curves = []
    for name, options in (("baseline", {}), ("top", {"coef": 0})):
        trainer = make_trainer(objective__name=name, objective__options=options, **SMALL)
        curves.append([figures["head_loss"] for figures in run_steps(trainer, 3)])
    # Not to the bit: the norm that gradients are clipped by is a sum with more terms here.
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-5, atol=0)


def test_packed_rows_rank_nothing_of_other_rows(make_trainer):
    figures = []
    for packing in (False, True):
        trainer = make_trainer(objective__name="top", data__packing=packing, **SMALL)
        recut(trainer, packing=packing, micro_batch_size=2 if packing else 8)
        figures.append(run_steps(trainer, 1)[0])
    assert figures[0]["order_loss"] == pytest.approx(figures[1]["order_loss"], rel=1e-5)
    assert figures[0]["grad_norm"] == pytest.approx(figures[1]["grad_norm"], rel=1e-4)


def test_checkpoints_have_the_order_head_and_exports_do_not(tmp_path, rows_file):
    small = {**SMALL, "objective__name": "top", "training__steps": 3, "training__save_every": 2}
    run = tmp_path / "run"
    assert train(run, rows_file, **small) == 0
    model = last_checkpoint(run) / "model"
    wanted, order = weights(run), load_file(model / ORDER_HEAD_FILE)["weight"]
    assert not any("order" in name for name in wanted)
    recipe = tiny_recipe(rows_file, **small)
    start = start_model(recipe, Processes(), last_checkpoint(run))[0]
    assert torch.equal(start.on(torch.device("cpu")).order_head.weight, order)
    shutil.rmtree(last_checkpoint(run))
    assert resume(run) == 0
    assert same(weights(run), wanted)
    assert torch.equal(load_file(model / ORDER_HEAD_FILE)["weight"], order)
    assert main(["convert", str(run), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert not list((tmp_path / "hf").rglob(ORDER_HEAD_FILE))


def test_a_fresh_model_takes_no_file_of_the_working_directory(tmp_path, rows_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ORDER_HEAD_FILE).write_bytes(b"of another model")
    start = start_model(tiny_recipe(rows_file, objective__name="top"), Processes())[0]
    assert start.on(torch.device("cpu")).order_head.weight.std() > 0


def test_partial_training_is_refused(rows_file):
    recipe = tiny_recipe(rows_file, objective__name="top", training__adapt="heads")
    with pytest.raises(UserError, match=r"training\.adapt=full"):
        start_model(recipe, Processes())


def test_an_estimate_counts_the_order_head(rows_file):
    found = []
    for name in ("baseline", "top"):
        recipe = tiny_recipe(rows_file, objective__name=name)
        args = model_args(recipe, 259)
        objective = make_objective(recipe.objective, args.n_future_tokens)
        found.append(count(recipe, args, objective))
    assert found[1].trained - found[0].trained == 259 * 32
