"""The objectives `dft` and `surprise` as the trainer sees them."""

import json

import pytest
import torch
from tests.integration import helpers_training
from tests.integration.helpers_training import SMALL, run_steps

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.pipelines.training.module import pool_of

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer


def weighed(trainer):
    batch = trainer.collator(trainer.examples[:6])
    with torch.no_grad():
        pool = pool_of(batch, trainer.module(batch, "score").signal)
    return batch, pool, trainer.objective.weigh_checked(pool).weights


def test_dft_weighs_each_head_by_its_own_probability(make_trainer):
    trainer = make_trainer(objective__name="dft", dtype=torch.float64)
    batch, _, weights = weighed(trainer)
    assert batch.correct.all()
    logits = trainer.module.adapter.full_forward(batch.tokens)["logits"].detach()
    targets = trainer.objective.targets(batch)
    there = targets != IGNORE_INDEX
    p = logits.softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(weights[there].double(), p[there], rtol=1e-5, atol=0)
    assert not weights[~there].any()


def test_dft_of_a_step_is_the_weighted_loss(make_trainer):
    """Its gradient is that of −Σ p(y), since p · ∇CE = −∇p."""
    trainer = make_trainer(objective__name="dft", dtype=torch.float64)
    batch, objective = trainer.collator(trainer.examples[:4]), trainer.objective
    counts = objective.denominators(objective.counts(batch)[None])
    trainer.module(batch, "train", counts).loss.backward()
    weight = trainer.module.adapter.transformer.output.weight
    found, weight.grad = weight.grad.clone(), None
    logits = trainer.module.adapter.full_forward(batch.tokens)["logits"]
    targets = objective.targets(batch)
    p = logits.softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    per_head = (p * (targets != IGNORE_INDEX)).sum((0, 1)) / counts[:-1]
    (-per_head.mean()).backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("muted", ["wrong", "all"])
def test_surprise_mutes_wrong_rows(muted, make_trainer):
    trainer = make_trainer(objective__name="surprise", objective__options={"muted_rows": muted})
    batch, pool, weights = weighed(trainer)
    assert len(set(batch.correct.tolist())) == 2
    for row, correct in enumerate(batch.correct.tolist()):
        there = weights[row][pool.valid[row]]
        assert ((there == 1).all().item()) == (correct and muted == "wrong")
        assert there.min() >= 0.1
        assert there.max() == 1
        for t in range(batch.length - 1):  # one weight a token, whichever head predicts it
            if pool.valid[row, t, 1]:
                assert weights[row, t, 1] == weights[row, t + 1, 0]


def test_surprise_with_beta_0_is_uniform(make_trainer):
    curves = []
    for name, options in (("uniform", {}), ("surprise", {"beta": 0})):
        changes = {"objective__name": name, "objective__options": options, **SMALL}
        curves.append([(f["loss"], f["grad_norm"]) for f in run_steps(make_trainer(**changes), 3)])
    assert curves[0] == curves[1]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("wrong", [1, 0.25, 0])
def test_a_labels_weight_is_that_of_the_loss_of_its_rows(wrong, packing, make_trainer):
    changes = {"objective__options": {"wrong_weight": wrong}, "data__packing": packing, **SMALL}
    trainer = make_trainer(objective__name="label_weighted", dtype=torch.float64, **changes)
    batch, objective = trainer.collator(trainer.examples[:6]), trainer.objective
    assert len(set(batch.correct.tolist())) == 2
    counts = objective.denominators(objective.counts(batch)[None])
    found = trainer.module(batch, "train", counts).loss
    targets, expected = objective.targets(batch), 0.0
    for row in [] if packing else range(len(batch.rows)):
        logits = trainer.module.adapter.full_forward(batch.tokens[row : row + 1])["logits"][0]
        for head in range(objective.heads):
            each = torch.nn.functional.cross_entropy(
                logits[:, head], targets[row, :, head], reduction="sum", ignore_index=IGNORE_INDEX
            )
            share = (1.0 if batch.correct[row] else wrong) / objective.heads
            expected += share * each / counts[head]
    if not packing:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        return
    plain = make_trainer(
        objective__name="label_weighted",
        dtype=torch.float64,
        **{**changes, "data__packing": False},
    )
    alone = plain.collator(plain.examples[:6])
    torch.testing.assert_close(found, plain.module(alone, "train", counts).loss, rtol=1e-9, atol=0)


def test_figures_of_a_step(make_trainer):
    figures = run_steps(make_trainer(objective__name="surprise", **SMALL), 1)[0]
    assert figures["weight_correct"]["mean"] == 1
    assert 0.1 <= figures["weight_incorrect"]["mean"] < figures["weight"]["mean"] < 1
    figures = run_steps(make_trainer(objective__name="dft", **SMALL), 1)[0]
    assert figures["weight"]["mean"] == pytest.approx(sum(figures["head_weight_mean"]) / 2, rel=0.1)
    json.dumps(figures)


def test_surprise_without_wrong_rows_says_so(make_trainer, caplog):
    make_trainer(objective__name="surprise", objective__rows="correct", **SMALL)
    assert "surprise mutes nothing" in caplog.text
