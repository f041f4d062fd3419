"""What each objective learns, and what it leaves alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.integration import helpers_training
from tests.integration.helpers_training import SMALL, run_steps, state, token_weights
from tests.unit.sampling_cases import make
from torch import Tensor

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.losses import shift_labels
from weighted_mtp.pipelines.training.module import pool_of
from weighted_mtp.pipelines.training.objectives import Pool
from weighted_mtp.pipelines.training.trainer import Trainer

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer

VALUE = "adapter.value_head."
TRUNK = {"objective__value__trunk": "all"}
LM = {**TRUNK, "objective__value__lm_coef": 1.0}


def batch_of(trainer: Trainer, count: int = 8) -> Batch:
    return trainer.collator(trainer.examples[:count])


def gradients(trainer: Trainer, batch: Batch | None = None) -> dict[str, Tensor]:
    """Of one micro-batch that is the whole step; parameters that are not trained are absent."""
    trainer.module.zero_grad(set_to_none=True)
    batch = batch_of(trainer) if batch is None else batch
    objective = trainer.objective
    denominators = objective.denominators(objective.counts(batch)[None])
    trainer.module(batch, "train", denominators).loss.backward()
    named = trainer.module.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def moving(found: dict[str, Tensor]) -> set[str]:
    return {name for name, gradient in found.items() if torch.count_nonzero(gradient)}


def pool(trainer: Trainer, batch: Batch, signal: Tensor | None = None) -> Pool:
    if signal is None:
        with torch.no_grad():
            signal = trainer.module(batch, "score").signal
    return pool_of(batch, signal)


def reference_ce(trainer: Trainer, batch: Batch) -> Tensor:
    """`[B, S, n]` every head's cross-entropy from whole logits, NaN where there is no target."""
    n = trainer.objective.heads
    logits = trainer.module.adapter.full_forward(batch.tokens)["logits"][:, :, :n].detach()
    targets = shift_labels(batch.labels, n, batch.tokens.shape[1])
    kept = targets.masked_fill(targets == IGNORE_INDEX, 0)
    ce = F.cross_entropy(logits.flatten(0, 2), kept.flatten(), reduction="none").view(kept.shape)
    return ce.masked_fill(targets == IGNORE_INDEX, math.nan)


# --- the weighted loss ---------------------------------------------------------------------------


def test_every_head_weighs_a_token_alike(make_trainer):
    """w[t, k] is the weight of token t + k, whichever head predicts it."""
    trainer = make_trainer("verifiable")
    batch = batch_of(trainer)
    given = pool(trainer, batch)
    tokens, weights = (
        token_weights(trainer.objective, given),
        trainer.objective.weigh(given).weights,
    )
    _, S, n = weights.shape
    assert (S, n) == (batch.tokens.shape[1], 3)
    ahead = F.pad(tokens, (0, n))
    for k in range(1, n + 1):
        assert torch.equal(weights[:, :, k - 1], ahead[:, k : k + S])
    on_target = trainer.objective.targets(batch) != IGNORE_INDEX
    assert torch.equal(weights != 0, on_target)
    assert float(tokens[batch.labels != IGNORE_INDEX].std()) > 0.05


@pytest.mark.parametrize("name", ["verifiable", "rho1"])
def test_the_loss_is_the_weighted_sum_over_its_denominators(name, make_trainer):
    """From whole logits, as the formula says."""
    trainer = make_trainer(name, objective__head_weights="[0.5, 0.3, 0.2]")
    batch, objective = batch_of(trainer), trainer.objective
    counts = objective.counts(batch)
    denominators = objective.denominators(counts[None])
    weights = objective.weigh(pool(trainer, batch)).weights
    terms = (reference_ce(trainer, batch) * weights).nansum((0, 1)).double()
    expected = float((terms / denominators[:-1] * torch.tensor([0.5, 0.3, 0.2])).sum())
    found = trainer.module(batch, "train", denominators)
    if name == "verifiable":
        total, count = found.sums["value"].tolist()
        expected += objective.value_coef * total / count
        assert count == denominators[-1]
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["verifiable", "random_matched", "shuffled", "rho1"])
def test_weights_carry_no_gradient(name, make_trainer):
    trainer = make_trainer("rho1" if name == "rho1" else "verifiable", objective__name=name)
    batch = batch_of(trainer)
    shape = (*batch.tokens.shape, 3) if name == "rho1" else batch.tokens.shape
    signal = torch.rand(shape, requires_grad=True)
    weights = trainer.objective.weigh(pool(trainer, batch, signal)).weights
    assert not weights.requires_grad


# --- whom the losses reach -----------------------------------------------------------------------


@pytest.mark.parametrize("whiten", ["none", "batch", "ema"])
@pytest.mark.parametrize("name", ["verifiable", "random_matched", "shuffled"])
def test_cross_entropy_never_reaches_the_value_head(name, whiten, make_trainer):
    changes = {"objective__value__coef": 0, "objective__value__gradient_to_trunk": True}
    changes |= {"objective__name": name, "objective__td__whiten": whiten}
    trainer = make_trainer("verifiable", **changes)
    found = gradients(trainer)
    assert not any(name.startswith(VALUE) for name in moving(found))
    assert moving(found) == {name for name in found if not name.startswith(VALUE)}


def test_the_value_loss_reaches_the_trunk_only_if_asked_to(make_trainer):
    """Twice the value loss changes the trunk's gradient, or it does not."""
    for reaches in (False, True):
        change = {"objective__value__gradient_to_trunk": reaches}
        one, two = (
            gradients(make_trainer("verifiable", objective__value__coef=coef, **change))
            for coef in (1.0, 2.0)
        )
        for name, gradient in one.items():
            if name.startswith(VALUE):
                torch.testing.assert_close(two[name], 2 * gradient)
            elif "extra_heads" in name or "output" in name or not reaches:
                assert torch.equal(two[name], gradient), name
            else:
                assert not torch.allclose(two[name], gradient, rtol=1e-3), name


def test_targets_are_constants(make_trainer):
    """The value loss's gradient is that of a regression to fixed numbers."""
    trainer = make_trainer("verifiable", objective__value__lam=0.5)
    batch = batch_of(trainer)
    values = torch.randn(batch.tokens.shape, requires_grad=True)
    denominator = trainer.objective.counts(batch)[-1]
    trainer.objective.value_loss(batch, values, denominator)[0].backward()
    before = (batch.labels != IGNORE_INDEX)[:, 1:]
    assert not values.grad[~before].any()
    last = before & ~F.pad(before, (0, 1))[:, 1:]  # the state that predicts EOS: its target is R
    whole, reward = last & ~batch.truncated[:, None], batch.correct[:, None].float()
    expected = 2 * (values.detach() - reward) / denominator
    torch.testing.assert_close(values.grad[whole], expected[whole].float())


@pytest.mark.parametrize(("clip", "huber"), [(None, 0.25), (0.3, None), (0.7, 0.2)])
def test_the_value_loss_follows_its_formula(clip, huber, make_trainer):
    """Sum and gradient, term by term."""
    given = {"gamma": 0.9, "lam": 0.7, "clip": clip, "huber": huber}
    trainer = make_trainer("critic", **{f"objective__value__{k}": v for k, v in given.items()})
    batch = batch_of(trainer)
    values = torch.randn(batch.tokens.shape, generator=torch.Generator().manual_seed(0)).double()
    expected, slopes, kinds = 0.0, torch.zeros_like(values), set()
    for i, labels in enumerate(batch.labels.tolist()):
        response = [j for j, label in enumerate(labels) if label != IGNORE_INDEX]
        advantage = 0.0
        for j in reversed(response):
            last, before = j == response[-1], float(values[i, j - 1])
            ahead = float(batch.correct[i]) if last else 0.9 * float(values[i, j])
            delta = 0.0 if last and batch.truncated[i] else ahead - before
            advantage = delta + 0.9 * 0.7 * advantage
            error = advantage if clip is None else max(-clip, min(clip, advantage))
            far = huber is not None and abs(error) > huber
            expected += huber * (2 * abs(error) - huber) if far else error**2
            slopes[i, j - 1] = -2 * (math.copysign(huber, error) if far else error)
            kinds.add((error != advantage, far))
    assert len(kinds) == 2 + (clip is not None and huber is not None)
    values.requires_grad_()
    loss, sums = trainer.objective.value_loss(batch, values, torch.tensor(10.0))
    loss.backward()
    assert not sums["value"].requires_grad
    assert float(loss.detach()) == pytest.approx(expected / 10, rel=1e-12)
    assert float(sums["value"][0]) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(values.grad, slopes / 10, rtol=1e-10, atol=1e-12)


FROZEN = {
    "frozen": set(),
    "top": {"layers.1.", "norm."},
    "all": {"layers.0.", "layers.1.", "norm.", "tok_embeddings."},
}


@pytest.mark.parametrize("loss", ["mse", "pairwise"])
@pytest.mark.parametrize("trunk", FROZEN)
def test_what_a_critic_trains(trunk, loss, make_trainer):
    """Without a language-model loss never another head nor the unembedding."""
    change = {"objective__value__trunk": trunk, "objective__value__top_blocks": 1}
    trainer = make_trainer("critic", objective__value__loss=loss, **change)
    trained = {VALUE, *(f"adapter.transformer.{part}" for part in FROZEN[trunk])}
    names = {name for name, p in trainer.module.named_parameters() if p.requires_grad}
    assert names == {
        n for n in dict(trainer.module.named_parameters()) if n.startswith((*trained,))
    }
    before = state(trainer)
    run_steps(trainer, 3)
    changed = {name for name, w in state(trainer).items() if not torch.equal(w, before[name])}
    free = {VALUE + "value.bias"} if loss == "pairwise" else set()  # it cancels out
    assert changed | free == names


def test_a_critic_that_may_not_reach_the_trunk(make_trainer):
    change = {"objective__value__gradient_to_trunk": False, **LM}
    one, two = (
        gradients(make_trainer("critic", objective__value__head_type=kind, **change))
        for kind in ("linear", "mlp")
    )
    for name in one:
        if not name.startswith(VALUE):
            assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("trunk", ["frozen", "top"])
def test_a_language_model_loss_needs_the_whole_model(trunk, make_trainer):
    with pytest.raises(UserError, match=r"lm_coef trains the whole model"):
        make_trainer("critic", objective__value__trunk=trunk, objective__value__lm_coef=1.0)


@pytest.mark.parametrize("missing", [True, False])
def test_a_critic_needs_both_kinds_of_rows(missing, make_trainer):
    objective = make_trainer("critic", **SMALL).objective
    both = make([True, False, True])
    assert objective.candidates(both).tolist() == [0, 1, 2]
    kind = "correct" if missing else "incorrect"
    with pytest.raises(UserError, match=f"no {kind} samples: all 2 rows"):
        objective.candidates(make([not missing] * 2))


def test_with_a_language_model_loss_a_critic_trains_everything(make_trainer):
    trainer = make_trainer("critic", **LM)
    run_steps(trainer, 1)  # the head starts at zero, and passes nothing on
    found = gradients(trainer)
    assert moving(found) == set(dict(trainer.module.named_parameters()))


@pytest.mark.parametrize("rows", ["correct", "all"])
def test_the_rows_a_critic_reads_and_those_it_judges(rows, make_trainer):
    trainer = make_trainer("critic", objective__value__lm_rows=rows, **LM)
    batch = batch_of(trainer)
    targets, mask = trainer.objective.targets(batch), batch.labels != IGNORE_INDEX
    counts = trainer.objective.counts(batch)
    assert counts[-1] == mask.sum()
    read = mask if rows == "all" else mask & batch.correct[:, None]
    assert (targets[:, :, 0] != IGNORE_INDEX).sum() == counts[0] == read[:, 1:].sum()
    assert 0 < int(batch.correct.sum()) < len(batch.correct)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_value_head_has_a_rate_of_its_own(optimizer, make_trainer):
    change = {"objective__value__learning_rate": 0.05, "training__optimizer": optimizer}
    trainer = make_trainer("verifiable", training__warmup_fraction=0.5, **change)
    head = {id(p) for n, p in trainer.module.named_parameters() if n.startswith(VALUE)}
    for step in range(6):
        trainer.step = step
        rate = trainer.train_step()["learning_rate"]
        for group in trainer.optimizer.param_groups:
            ours = {id(p) for p in group["params"]}
            assert not ours & head or ours == head
            assert group["lr"] == pytest.approx(rate * 5 if ours & head else rate)


# --- truncated rows ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["critic", "verifiable"])
def test_truncated_rows_have_no_terminal_reward(name, make_trainer):
    """Whether they were right makes no difference to what is learned from them."""
    trainer = make_trainer(name, **(LM if name == "critic" else {}), **SMALL)
    cut = [e for e in trainer.examples if e.truncated]
    batch = trainer.collator(cut)._replace(correct=torch.ones(len(cut), dtype=torch.bool))
    other = batch._replace(correct=~batch.correct)
    values = torch.randn(batch.tokens.shape)
    right, wrong = (trainer.objective.value_loss(b, values, torch.ones(())) for b in (batch, other))
    assert len(cut) > 3
    assert float(right[0]) == float(wrong[0]) > 0
    if name == "verifiable":
        weights = [
            trainer.objective.weigh(pool(trainer, b, values)).weights for b in (batch, other)
        ]
        assert torch.equal(*weights)
        last = (batch.labels != IGNORE_INDEX).sum(1) + (batch.labels == IGNORE_INDEX).int().argmin(
            1
        )
        ends = token_weights(trainer.objective, pool(trainer, batch, values))
        assert (ends[torch.arange(len(cut)), last - 1] == 1).all()  # no error: exp(0)


def test_a_truncated_row_is_worth_one_term_less(make_trainer):
    """Nothing is known about its last state; it must not water down the others."""
    trainer = make_trainer("critic", **LM, **SMALL)
    for example in trainer.examples:
        batch = trainer.collator([example])
        tokens = int((batch.labels != IGNORE_INDEX).sum())
        assert int(trainer.objective.value_count(batch)) == tokens - example.truncated


# --- what is decided over whole batches ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pooled"),
    [
        ({}, False),
        ({"objective__td__whiten": "ema"}, False),
        ({"objective__td__whiten": "batch"}, True),
        ({"objective__td__renormalise": True}, True),
        ({"objective__name": "random_matched"}, True),
        ({"objective__name": "shuffled"}, False),
    ],
)
def test_weights_that_depend_on_the_whole_batch_are_pooled(changes, pooled, make_trainer):
    """Ranks would disagree otherwise, and `scope: step` would do nothing."""
    objective = make_trainer("verifiable", objective__scope="step", **changes, **SMALL).objective
    assert objective.pooled is pooled
    assert objective.scores_whole_steps is pooled
    assert not make_trainer("verifiable", **changes, **SMALL).objective.scores_whole_steps


def test_the_log_tells_of_errors_advantages_and_weights(make_trainer):
    trainer = make_trainer("verifiable", objective__td__lam=0.3, **SMALL)
    batch = batch_of(trainer)
    given = pool(trainer, batch)
    counts = trainer.objective.counts(batch)
    out = trainer.module(batch, "train", trainer.objective.denominators(counts[None]))
    assert not any(x.requires_grad for x in out.sums.values())
    figures = trainer.objective.summarise(out.sums)
    found = {
        "td_error": trainer.objective.td_errors(given),
        "advantage": trainer.objective.advantages(given, trainer.objective.td_errors(given)),
        "weight": token_weights(trainer.objective, given),
    }
    groups = {"": given.correct | True, "_correct": given.correct, "_incorrect": ~given.correct}
    for name, values in found.items():
        for group, chosen in groups.items():
            kept = values[given.mask & chosen[:, None]].double()
            stats = figures[name + group]
            assert stats["mean"] == pytest.approx(float(kept.mean()), rel=1e-5), name + group
            assert stats["std"] == pytest.approx(float(kept.std(correction=0)), rel=1e-4)


def test_the_value_loss_is_divided_by_its_own_count(make_trainer):
    """Not by a head's, which counts the last token of a truncated row."""
    trainer = make_trainer("critic", **LM, **SMALL)
    batch = batch_of(trainer)
    counts = trainer.objective.counts(batch)
    assert batch.truncated.any()
    assert len(set(counts.tolist()[-2:])) == 2
    losses = []
    for factor in (1, 2):
        denominators = counts * torch.tensor([1.0, 1.0, factor])
        out = trainer.module(batch, "train", denominators)
        losses.append(float(out.loss.detach()))
    total = float(out.sums["value"][0])
    assert losses[0] - losses[1] == pytest.approx(total / float(counts[-1]) / 2, rel=1e-4)


# --- controls ------------------------------------------------------------------------------------


def test_shuffled_keeps_the_weights_of_each_row(make_trainer):
    real = make_trainer("verifiable", **SMALL)
    control = make_trainer("verifiable", objective__name="shuffled", **SMALL)
    batch = batch_of(real, 24)
    values = torch.randn(batch.tokens.shape)
    given = pool(real, batch, values)
    before, after = (token_weights(t.objective, given) for t in (real, control))
    assert torch.equal(before.sort(1).values, after.sort(1).values)
    assert not after[batch.labels == IGNORE_INDEX].any()  # a prompt never gets any
    moved = (before != after).sum(1)
    assert (moved > 3).all()


def test_random_matched_has_the_moments_of_the_real_weights(make_trainer):
    real = make_trainer("verifiable")
    control = make_trainer("verifiable", objective__name="random_matched")
    batch = real.collator(real.examples * 20)
    batch = batch._replace(rows=torch.arange(len(batch.rows)))
    given = pool(real, batch, torch.randn(batch.tokens.shape) * 0.3)
    mask = batch.labels != IGNORE_INDEX
    before, after = (token_weights(t.objective, given)[mask] for t in (real, control))
    assert len(before) > 5000
    assert float(after.mean()) == pytest.approx(float(before.mean()), rel=0.03)
    assert float(after.std()) == pytest.approx(float(before.std()), rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([before, after]))[0, 1])) < 0.05
    assert float(after.min()) >= 0.1
    assert float(after.max()) <= 5.0


@pytest.mark.parametrize("scaled", [{"renormalise": True}, {"rows": "labels", "wrong_weight": 1}])
def test_random_matched_follows_weights_that_left_the_clamps_range(scaled, make_trainer):
    """Brought to mean 1, all of them are below `min_weight`."""
    td = {"min_weight": 2.0, "max_weight": 9.0, **scaled}
    changes = {f"objective__td__{k}": v for k, v in td.items()}
    trainer = make_trainer("verifiable", objective__name="random_matched", **changes, **SMALL)
    batch = trainer.collator(trainer.examples * 20)
    batch = batch._replace(rows=torch.arange(len(batch.rows)))
    drawn = token_weights(trainer.objective, pool(trainer, batch, torch.randn(batch.tokens.shape)))
    assert float(drawn[batch.labels != IGNORE_INDEX].mean()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("name", ["verifiable", "shuffled"])
def test_labels_decide_between_rows_and_the_critic_within_them(name, make_trainer):
    changes = {"objective__name": name, "objective__td__rows": "labels"}
    trainer = make_trainer("verifiable", objective__td__wrong_weight=0.25, **changes)
    plain = make_trainer("verifiable", objective__name=name)
    given = pool(trainer, batch_of(trainer))
    assert 0 < int(given.correct.sum()) < len(given.correct)
    rows = zip(
        token_weights(trainer.objective, given),
        token_weights(plain.objective, given),
        given.mask,
        given.correct.tolist(),
        strict=True,
    )
    for found, by_critic, mask, correct in rows:
        mean = 1.0 if correct else 0.25
        expected = by_critic[mask] / by_critic[mask].mean() * mean
        assert torch.allclose(found[mask], expected, rtol=1e-5)
        assert float(expected.std()) > 0


@pytest.mark.parametrize("name", ["random_matched", "shuffled"])
def test_controls_draw_anew_in_every_step(name, make_trainer):
    trainer = make_trainer("verifiable", objective__name=name)
    given = pool(trainer, batch_of(trainer))
    drawn = []
    for step in (0, 1, 0):
        trainer.objective.begin_step(step, 8)
        drawn.append(trainer.objective.weigh(given).weights)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
