"""Selection, running statistics, schedules and held-out figures of the objectives."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tests.integration import helpers_training
from tests.integration.helpers_training import SMALL, run_steps, state
from torch import Tensor

from weighted_mtp.core.config.sections import ObjectiveConfig, ValueConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import Batch
from weighted_mtp.pipelines.training.module import pool_of
from weighted_mtp.pipelines.training.objectives import Pool, base, make_objective
from weighted_mtp.pipelines.training.trainer import Trainer
from weighted_mtp.runtime.pooling import concat_rows

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer


def gradients_of_a_step(trainer: Trainer, monkeypatch) -> tuple[dict[str, Tensor], dict]:
    """What the optimizer sees, and the figures."""
    seen, original = {}, trainer.optimizer.step

    def step():
        for name, parameter in trainer.module.named_parameters():
            if parameter.grad is not None:
                seen[name] = parameter.grad.clone()
        original()

    monkeypatch.setattr(trainer.optimizer, "step", step)
    return seen, trainer.train_step()


# --- a share of the positions ---------------------------------------------------------------------


def step_of(make_trainer, monkeypatch, draws=None, **changes):
    """Gradients of the first step, and how many targets each head had."""
    if draws is not None:
        monkeypatch.setattr(base, "counter_uniform", draws)
    trainer = make_trainer("baseline", **changes)
    trainer.module.double()
    heads = trainer.module.adapter.transformer.extra_heads
    seen, _ = gradients_of_a_step(trainer, monkeypatch)
    assert len(heads) == 2
    return seen


def test_the_gradient_is_that_of_all_positions_on_average(make_trainer, monkeypatch):
    """It is linear in what is kept, so four shares of a partition have the mean of the whole."""
    changes = {"training__clip_norm": 1e9}
    whole = step_of(make_trainer, monkeypatch, **changes)
    parts = []
    for part in range(4):

        def draws(seed, step, rows, length, part=part):
            place = torch.arange(length) + rows[:, None]
            return torch.where(place % 4 == part, 0.1, 0.9).double()

        shares = {**changes, "objective__head_positions": 0.25}
        parts.append(step_of(make_trainer, monkeypatch, draws, **shares))
    for name, gradient in whole.items():
        mean = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(mean, gradient, atol=1e-12, rtol=1e-9)
        if "extra_heads" in name:
            assert not torch.allclose(parts[0][name], gradient)


def test_which_positions_hangs_on_seed_step_and_row_alone(make_trainer):
    changes = {"objective__head_positions": 0.25}
    trainer = make_trainer("baseline", **changes)
    batch = next(trainer.reader)[0]
    objective = trainer.objective
    objective.begin_step(3, 9)
    kept, c = objective.sampled(batch)
    flipped = batch._replace(
        **{
            name: getattr(batch, name).flip(0)
            for name in ("tokens", "labels", "rows", "targets")
            if getattr(batch, name) is not None
        }
    )
    assert torch.equal(objective.sampled(flipped)[0].flip(0), kept)
    assert torch.equal(kept[..., 0], objective.targets(batch)[..., 0])
    assert c.tolist() == pytest.approx([1 / 3, 4 / 3, 4 / 3])
    valid = objective.targets(batch)[..., 1] != IGNORE_INDEX
    assert 0.1 < (kept[..., 1][valid] != IGNORE_INDEX).double().mean() < 0.4
    objective.begin_step(4, 9)
    assert not torch.equal(objective.sampled(batch)[0], kept)
    assert torch.equal(objective.counts(batch), trainer.objective.counts(flipped))


# --- Rho-1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("scope", ["micro_batch", "step"])
@pytest.mark.parametrize("k", [0.6, 0.37, 1])
def test_rho1_keeps_what_its_denominators_count(k, scope, first, make_trainer, monkeypatch):
    changes = {"objective__rho1__k_percent": k, "objective__scope": scope}
    changes |= {"objective__rho1__first_head_always": first, "training__micro_batch_size": 2}
    trainer = make_trainer("rho1", **changes)
    batches, weighed, denominators = [], [], []
    forward = trainer.module.forward
    decide = trainer.objective.weigh

    def look(batch, task="train", given=None, weights=None):
        if task == "train":
            batches.append(batch)
            denominators.append(given)
        return forward(batch, task, given, weights)

    def weigh(pool):
        out = decide(pool)
        weighed.append(out.weights)
        return out

    monkeypatch.setattr(trainer.module, "forward", look)
    monkeypatch.setattr(trainer.objective, "weigh", weigh)
    figures = trainer.train_step()
    counts = torch.stack([trainer.objective.counts(b)[:-1] for b in batches])  # [m, n]
    pools = counts if scope == "micro_batch" else counts.sum(0, keepdim=True)
    expected = torch.ceil(pools * k - 1e-9)
    if first:
        expected[:, 0] = pools[:, 0]
    found = torch.stack([w.sum((0, 1)).double() for w in weighed])
    assert torch.equal(found, expected)
    assert all(torch.equal(d[:-1], expected.sum(0)) for d in denominators)
    for head in range(3):
        share = float(expected.sum(0)[head] / counts.sum(0)[head])
        assert figures["rho1"][f"kept_share_head_{head + 1}"] == pytest.approx(share)


@pytest.mark.parametrize("scope", ["micro_batch", "step"])
def test_rho1_with_all_tokens_is_the_uniform_objective(scope, make_trainer, monkeypatch):
    uniform, figures = gradients_of_a_step(
        make_trainer("baseline", objective__name="uniform"), monkeypatch
    )
    change = {"objective__rho1__k_percent": 1, "objective__scope": scope}
    found, own = gradients_of_a_step(make_trainer("rho1", **change), monkeypatch)
    assert found.keys() == uniform.keys()
    assert all(torch.equal(found[name], uniform[name]) for name in found)
    for key in ("loss", "grad_norm", "tokens", "head_loss", "head_loss_incorrect"):
        assert own[key] == figures[key]


def test_rho1_modes_choose_by_their_scores(make_trainer):
    """With a reference that is far better at odd positions those are kept; with one that is far
    worse there too, as to the distance."""
    kept = {}
    for mode, sign in (("signed", -1), ("signed", 1), ("absolute", -1), ("absolute", 1)):
        trainer = make_trainer("rho1", objective__rho1__mode=mode, objective__rho1__k_percent=0.3)
        batch = trainer.collator(trainer.examples[:8])
        odd = (torch.arange(batch.labels.shape[1]) % 2 == 1).expand(batch.labels.shape)
        trick = batch._replace(reference=torch.where(odd, 5.5 + 100.0 * sign, 5.5))
        weights = weights_of(trainer, trick)[:, :, 0]
        kept[mode, sign] = float(weights[odd[:, 1:]].sum() / weights.sum())
    assert kept == {
        ("signed", -1): 1.0,
        ("signed", 1): 0.0,
        ("absolute", -1): 1.0,
        ("absolute", 1): 1.0,
    }


@pytest.mark.parametrize("heads", ["same", "next"])
def test_rho1_keeps_what_a_loop_over_rows_and_heads_keeps(heads, make_trainer):
    """In float64; the reference has two heads, the model three. `next`: its first head alone."""
    change = {"objective__rho1__reference_heads": heads, "objective__rho1__k_percent": 0.4}
    trainer = make_trainer("rho1", dtype=torch.float64, **change)
    batch = trainer.collator(trainer.examples[:5])
    found = weights_of(trainer, batch)
    with torch.no_grad():
        logits = trainer.module.adapter.full_forward(batch.tokens)["logits"]
    for k in (1, 2, 3):
        scores = {}
        for b in range(5):
            for t in range(batch.length):
                j = t + k
                if j < batch.labels.shape[1] and batch.labels[b, j] != IGNORE_INDEX:
                    ce = -logits[b, t, k - 1].log_softmax(-1)[batch.labels[b, j]]
                    column = k - 1 if heads == "same" and k <= 2 else 0
                    scores[b, t] = float(ce.float() - batch.reference[b, j, column])
        kept = sorted(scores, key=scores.__getitem__, reverse=True)[: -(-4 * len(scores) // 10)]
        expected = torch.zeros_like(found[:, :, k - 1])
        for at in kept:
            expected[at] = 1
        assert torch.equal(found[:, :, k - 1], expected)


def test_a_batch_without_rows_agrees_on_the_references_heads(make_trainer):
    """A rank that has nothing left to read pools with those that have."""
    trainer = make_trainer("rho1")
    full, empty = trainer.collator(trainer.examples[:2]), trainer.collator([])
    with torch.no_grad():
        pools = [pool_of(b, trainer.module(b, "score").signal) for b in (full, empty)]
    whole = Pool.of(concat_rows(pools))
    S = full.length
    weights = trainer.objective.weigh(whole).weights
    assert torch.equal(weights[:2, :S], trainer.objective.weigh(pools[0]).weights)
    assert float(weights[2:].sum()) == 0


def weights_of(trainer: Trainer, batch: Batch) -> Tensor:
    with torch.no_grad():
        pool = pool_of(batch, trainer.module(batch, "score").signal)
    return trainer.objective.weigh(pool).weights


def test_rho1_without_reference_losses_is_an_error(make_trainer):
    trainer = make_trainer("rho1")
    batch = trainer.collator(trainer.examples[:2])._replace(reference=None)
    with pytest.raises(UserError, match=r"objective\.rho1\.reference"):
        weights_of(trainer, batch)


# --- held-out figures ----------------------------------------------------------------------------

LM = {"objective__value__trunk": "all", "objective__value__lm_coef": 1.0}
HELD_OUT = {
    "uniform": ("baseline", {"objective__name": "uniform"}),
    "dft": ("baseline", {"objective__name": "dft"}),
    "surprise": ("baseline", {"objective__name": "surprise"}),
    "curriculum": ("baseline", {"objective__head_curriculum": "forward"}),
    "head weights": ("baseline", {"objective__head_weights": "[1, 0, 0]"}),
    "critic": ("critic", {**LM, "objective__value__lm_coef": 0.3}),
    "verifiable": ("verifiable", {}),
    "renormalise": ("verifiable", {"objective__td__renormalise": True}),
    "rows by labels": ("verifiable", {"objective__td__rows": "labels"}),
    "shuffled": ("verifiable", {"objective__name": "shuffled"}),
    "random_matched": ("verifiable", {"objective__name": "random_matched"}),
    "rho1": ("rho1", {}),
}


@pytest.mark.parametrize("case", HELD_OUT)
def test_the_held_out_loss_is_the_plain_one(case, make_trainer):
    """Every objective is judged by the same cross-entropy of the same tokens."""
    name, changes = HELD_OUT[case]
    plain = make_trainer("baseline")
    other = make_trainer(name, **changes)
    other.module.adapter.transformer.load_state_dict(plain.module.adapter.transformer.state_dict())
    expected, found = plain.validate(), other.validate()
    for key in ("loss", "head_loss", "head_accuracy", "head_loss_incorrect", "tokens"):
        assert found[key] == expected[key], key
    assert found["loss"] == pytest.approx(sum(found["head_loss"]) / 3)


# --- running statistics --------------------------------------------------------------------------

EMA = {"objective__td__whiten": "ema", "objective__td__ema_decay": 0.9}


def test_running_statistics_move_once_a_step_by_all_of_its_tokens(make_trainer, monkeypatch):
    averages = []
    for size in (8, 2):
        trainer = make_trainer("verifiable", training__micro_batch_size=size, **EMA)
        moments, update = [], trainer.objective.ema.update

        def look(given, moments=moments, update=update):
            moments.append(given)
            update(given)

        monkeypatch.setattr(trainer.objective.ema, "update", look)
        figures = run_steps(trainer, 4)
        assert len(moments) == 4
        assert [float(m[0]) for m in moments] == [f["tokens"] for f in figures]
        averages.append(trainer.objective.state_dict()["ema"])
    assert averages[0] == pytest.approx(averages[1], rel=1e-4)
    assert averages[0]["weight"] == pytest.approx(1 - 0.9**4)


def test_statistics_are_read_before_they_are_updated(make_trainer):
    """The first step is whitened by nothing at all."""
    plain, whitened = make_trainer("verifiable"), make_trainer("verifiable", **EMA)
    curves = [run_steps(trainer, 2) for trainer in (plain, whitened)]
    assert curves[0][0]["loss"] == curves[1][0]["loss"]
    assert curves[0][1]["loss"] != curves[1][1]["loss"]


def test_validation_and_scoring_leave_the_objective_alone(make_trainer):
    trainer = make_trainer("verifiable", **EMA)
    run_steps(trainer, 2)
    before = copy.deepcopy(trainer.objective.state_dict())
    trainer.validate()
    with torch.no_grad():
        trainer.module(trainer.collator(trainer.examples[:4]), "score")
    assert trainer.objective.state_dict() == before


def test_a_skipped_step_leaves_the_objective_alone(make_trainer, monkeypatch):
    trainer = make_trainer("verifiable", **EMA)
    run_steps(trainer, 2)
    before = copy.deepcopy(trainer.objective.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(trainer.module, "chunk_rows", None)
        broken = torch.full_like(trainer.module.adapter.value_head.value.weight, math.nan)
        patch.setattr(trainer.module.adapter.value_head.value.weight, "data", broken)
        assert run_steps(trainer, 1)[0]["skipped"] == 1
    assert trainer.objective.state_dict() == before
    run_steps(trainer, 1)
    assert trainer.objective.state_dict() != before


# --- schedules -----------------------------------------------------------------------------------


def head_weights(heads: int = 4, steps: int = 101, at=(0, 24, 25, 50, 75, 100), **changes):
    objective = make_objective(ObjectiveConfig(name="uniform", **changes), heads)
    found = []
    for step in at:
        objective.begin_step(step, steps)
        found.append([round(c, 6) for c in objective.head_weights.tolist()])
    return found


def test_a_forward_curriculum_adds_heads():
    third = round(1 / 3, 6)
    assert head_weights(head_curriculum="forward") == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [0.5, 0.5, 0, 0],
        [third, third, third, 0],
        [0.25] * 4,
        [0.25] * 4,
    ]


def test_a_reverse_curriculum_drops_them():
    third = round(1 / 3, 6)
    assert head_weights(head_curriculum="reverse") == [
        [0.25] * 4,
        [0.25] * 4,
        [third, third, third, 0],
        [0.5, 0.5, 0, 0],
        [1, 0, 0, 0],
        [1, 0, 0, 0],
    ]


def test_curricula_at_given_fractions():
    fractions = {"head_fractions": (0.1, 0.2)}
    at = (0, 9, 10, 19, 20, 100)
    forward = head_weights(3, at=at, head_curriculum="forward", **fractions)
    assert [sum(c > 0 for c in weights) for weights in forward] == [1, 1, 2, 2, 3, 3]
    reverse = head_weights(3, at=at, head_curriculum="reverse", head_fractions=(0.2, 0.1))
    assert [sum(c > 0 for c in weights) for weights in reverse] == [3, 3, 2, 2, 1, 1]


def test_head_weights_move_from_start_to_end():
    moving = {"head_weights": (1.0, 0.0), "final_head_weights": (0.2, 0.6)}
    assert head_weights(2, at=(0, 50, 100), **moving) == [[1, 0], [0.6, 0.3], [0.2, 0.6]]
    both = head_weights(2, at=(0, 50, 100), head_curriculum="forward", **moving)
    assert both == [[1, 0], [0.6, 0.3], [0.2, 0.6]]


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_a_curriculum_keeps_the_sum_of_the_head_weights(kind):
    at = tuple(range(101))
    plain = head_weights(at=at, head_curriculum=kind, head_weights=(1,) * 4)
    assert [sum(weights) for weights in plain] == pytest.approx([4] * 101, abs=1e-5)
    given = {"head_weights": (4, 2, 1, 1), "final_head_weights": (1, 1, 0, 0)}
    for progress, weights in enumerate(head_weights(at=at, head_curriculum=kind, **given)):
        plain = [a + (b - a) * progress / 100 for a, b in zip(*given.values(), strict=True)]
        assert sum(weights) == pytest.approx(sum(plain), abs=1e-5)
        known = [(w, p) for w, p in zip(weights, plain, strict=True) if w > 0]
        for w, p in known:  # in proportion
            assert w / known[0][0] == pytest.approx(p / known[0][1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "when"),
    [
        ({"head_curriculum": "forward", "head_weights": (0.0, 1.0, 1.0)}, "at 0%"),
        ({"head_curriculum": "reverse", "head_weights": (0.0, 1.0, 1.0)}, "at 67%"),
        (
            {
                "head_curriculum": "reverse",
                "head_weights": (1.0, 1.0, 1.0),
                "final_head_weights": (0.0, 1.0, 1.0),
            },
            "at 100%",
        ),
    ],
)
def test_a_curriculum_that_leaves_only_heads_of_weight_0_is_refused(changes, when):
    with pytest.raises(UserError, match=rf"head_curriculum .*{when}.*head_weights"):
        make_objective(ObjectiveConfig(name="baseline", **changes), 3)
    later = {"head_curriculum": "forward", "head_fractions": (0.0, 0.5)}
    make_objective(ObjectiveConfig(name="baseline", head_weights=(0.0, 1.0, 1.0), **later), 3)


def test_a_head_learns_once_it_is_its_turn(make_trainer):
    trainer = make_trainer(
        objective__head_curriculum="forward",
        objective__head_fractions="[0.3, 0.7]",
        training__weight_decay=0,
        training__steps=10,
    )
    since: dict[str, int] = {}
    for step in range(10):
        before = state(trainer)
        figures = run_steps(trainer, 1)[0]
        active = 1 + (step / 9 >= 0.3) + (step / 9 >= 0.7)
        assert sum(not math.isnan(x) for x in figures["head_loss"]) == active
        for name, weight in state(trainer).items():
            if "extra_heads" in name and not torch.equal(weight, before[name]):
                since.setdefault(name.split(".")[3], step)
    assert since == {"0": 3, "1": 7}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("linear", [0.9, 0.9, 0.45, 0.0]), ("cosine", [0.9, 0.9, 0.45, 0.0])],
)
def test_lambda_moves_after_its_hold(shape, expected):
    td = {"lam": 0.9, "final_lam": 0.0, "lam_hold": 0.5, "lam_shape": shape}
    objective = make_objective(ObjectiveConfig(name="verifiable", td=td), 2)
    found = []
    for step in (0, 50, 75, 100):
        objective.begin_step(step, 101)
        found.append(objective.lam)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_fractions": (0.5,)}, "head_fractions"),
        ({"final_head_weights": (1.0, 1.0, 1.0)}, "needs objective.head_weights"),
        ({"heads": 4}, "objective.heads is 4, but the model has 3"),
        ({"value": {"loss": "pairwise"}}, "objective.value.loss pairwise"),
    ],
)
def test_settings_that_do_not_fit(changes, words):
    with pytest.raises(UserError) as caught:
        make_objective(ObjectiveConfig(name="verifiable", **changes), 3)
    assert words in str(caught.value)


# --- pairs ---------------------------------------------------------------------------------------


def test_the_pairwise_loss_by_hand():
    """Two pairs; mean values 0.5 and −0.5, 1 and 3: σ(1) and σ(−2)."""
    config = ObjectiveConfig(name="critic", value=ValueConfig(loss="pairwise"))
    objective = make_objective(config, 1)
    labels = torch.full((4, 5), IGNORE_INDEX)
    labels[0, 2:4] = labels[1, 2:3] = labels[2, 2:5] = labels[3, 1:3] = 7
    values = torch.tensor(
        [[9, 0.25, 0.75, 9], [9, -0.5, 9, 9], [9, 0, 1, 2], [2.5, 3.5, 9, 9]], requires_grad=True
    )
    tokens, none = labels[:, :-1], torch.zeros(4, dtype=torch.bool)
    batch = Batch(tokens, labels, none, torch.arange(4), torch.tensor([True, False, True, False]))
    assert objective.counts(batch)[-1] == 2
    loss, sums = objective.value_loss(batch, values, torch.tensor(2.0))
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert loss.item() == pytest.approx(by_hand)
    assert objective.summarise(sums)["value_loss"] == pytest.approx(by_hand)
    loss.backward()
    slope = -(1 - 1 / (1 + math.exp(-1))) / 2
    expected = torch.tensor([0, slope / 2, slope / 2, 0])
    torch.testing.assert_close(values.grad[0], expected)
    torch.testing.assert_close(values.grad[1], torch.tensor([0, -slope, 0, 0]))
    assert F.cosine_similarity(values.grad[2], torch.tensor([0.0, -1, -1, -1]), dim=0) > 0.9999


def test_pairs_are_of_one_problem_right_before_wrong(make_trainer):
    trainer = make_trainer("critic", objective__value__loss="pairwise", **SMALL)
    rows = trainer.examples
    assert len(rows) == 16
    assert [e.is_correct for e in rows] == [True, False] * 8
    assert all(a.task_id == b.task_id for a, b in zip(rows[::2], rows[1::2], strict=True))
    for batch in next(trainer.reader):
        assert batch.correct.tolist() == [True, False] * (len(batch.correct) // 2)
