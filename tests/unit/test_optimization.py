"""The optimizers of a recipe: who holds which parameter, that their state survives, and the rate of
every step."""

import math
import shutil
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    largest_difference,
    last_checkpoint,
    same,
    train,
    weights,
)
from torch import nn

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.sections import TrainingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.training.muon import Muon, orthogonal
from weighted_mtp.pipelines.training.optimization import Optimizers, learning_rate, make_optimizer

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer


def adapter() -> MetaLlamaMTPAdapter:
    return MetaLlamaMTPAdapter(tiny_model(tiny_args(), seed=0, dtype=torch.float32))


def names_of(module: nn.Module, groups) -> set[str]:
    held = {id(p) for group in groups for p in group["params"]}
    return {name for name, p in module.named_parameters() if id(p) in held}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_held_once_and_only_matrices_decay(kind):
    module = adapter()
    groups = make_optimizer(module, TrainingConfig(optimizer=kind)).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(module.parameters()))
    decayed = names_of(module, [g for g in groups if g["weight_decay"] > 0])
    assert decayed
    assert not any("norm" in name or "tok_embeddings" in name for name in decayed)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_adamw_follows_its_settings(kind):
    """Three steps by the formulas of Loshchilov & Hutter, for every parameter that it holds."""
    module, generator = adapter(), torch.Generator().manual_seed(0)
    config = TrainingConfig(optimizer=kind, learning_rate=0.01, betas=(0.6, 0.8), weight_decay=0.3)
    optimizer = make_optimizer(module, config)
    adamw = optimizer.parts["adamw"] if isinstance(optimizer, Optimizers) else optimizer
    expected = {
        id(p): [p.detach().double(), 0.0, 0.0, group["weight_decay"]]
        for group in adamw.param_groups
        for p in group["params"]
    }
    assert {decay for *_, decay in expected.values()} == {0.0, 0.3}
    for step in range(1, 4):
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            if id(p) in expected:
                w, first, second, decay = expected[id(p)]
                first = 0.6 * first + 0.4 * p.grad.double()
                second = 0.8 * second + 0.2 * p.grad.double() ** 2
                direction = (first / (1 - 0.6**step)) / ((second / (1 - 0.8**step)).sqrt() + 1e-8)
                w = w * (1 - 0.01 * decay) - 0.01 * direction
                expected[id(p)] = [w, first, second, decay]
        optimizer.step()
    held = [p for p in module.parameters() if id(p) in expected]
    assert held
    for p in held:
        torch.testing.assert_close(p.detach().double(), expected[id(p)][0], rtol=1e-5, atol=1e-6)


def test_muon_takes_the_recipes_rate_and_decay():
    config = TrainingConfig(optimizer="muon", learning_rate=0.02, weight_decay=0.3)
    (group,) = make_optimizer(adapter(), config).parts["muon"].param_groups
    asked = ("lr", "weight_decay", "momentum")
    assert [group[name] for name in asked] == [0.02, 0.3, 0.95]


SHAPES = [(6, 9), (9, 6), (6, 9), (5, 5)]


def muon_steps(kind, **settings) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(1)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = kind(matrices, lr=0.02, weight_decay=0.3, momentum=0.95, **settings)
    for _ in range(3):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()
    return matrices, optimizer


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9")
def test_muon_is_pytorchs_up_to_its_bfloat16():
    theirs, state = muon_steps(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    ours, optimizer = muon_steps(Muon)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=4e-3)
    optimizer.load_state_dict(state.state_dict())
    for a, b in zip(ours, theirs, strict=True):
        a.grad = b.grad
        assert torch.equal(optimizer.state[a]["momentum_buffer"], state.state[b]["momentum_buffer"])
    optimizer.step()


def test_muon_follows_its_definition(monkeypatch):
    """Momentum and decay in plain words; matrices one by one give what they give together."""
    ours, _ = muon_steps(Muon)
    monkeypatch.setattr("weighted_mtp.pipelines.training.muon._TOGETHER", 1)
    alone, _ = muon_steps(Muon)
    generator = torch.Generator().manual_seed(1)
    wanted = [torch.randn(shape, generator=generator) for shape in SHAPES]
    means = [torch.zeros(shape) for shape in SHAPES]
    for _ in range(3):
        for i, (A, B) in enumerate(SHAPES):
            gradient = torch.randn((A, B), generator=generator)
            means[i] = 0.95 * means[i] + 0.05 * gradient
            update = orthogonal((0.05 * gradient + 0.95 * means[i])[None])[0]
            wanted[i] = (1 - 0.02 * 0.3) * wanted[i] - 0.02 * 0.2 * max(A, B) ** 0.5 * update
    for a, b, c in zip(ours, alone, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.detach(), c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (8, 8)])
def test_an_update_is_nearly_orthogonal(shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, made in zip(x, orthogonal(x), strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.linalg.svdvals(made)
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.3
        assert float(((left @ right) * made).sum() / len(values)) > 0.8  # the same directions


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match=r"matrices, not shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_muon_has_the_matrices_of_the_blocks_alone():
    module = adapter()
    optimizer = make_optimizer(module, TrainingConfig(optimizer="muon"))
    assert isinstance(optimizer, Optimizers)
    muon = names_of(module, optimizer.parts["muon"].param_groups)
    assert muon == {
        name
        for name, p in module.named_parameters()
        if p.ndim == 2 and ("layers." in name or "extra_heads." in name)
    }


def test_optimizers_go_on_from_their_state(tmp_path):
    def step(module, optimizer, seed):
        torch.manual_seed(seed)
        for p in module.parameters():
            p.grad = torch.randn_like(p)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (seed + 1)
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in module.parameters())

    straight, resumed = adapter(), adapter()
    config = TrainingConfig(optimizer="muon")
    first = make_optimizer(straight, config)
    for seed in range(4):
        step(straight, first, seed)
    second = make_optimizer(resumed, config)
    for seed in range(2):
        step(resumed, second, seed)
    torch.save(second.state_dict(), tmp_path / "optimizer.pt")
    third = make_optimizer(resumed, config)
    third.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for seed in range(2, 4):
        step(resumed, third, seed)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


# --- learning rate -------------------------------------------------------------------------------


def rates(steps: int, **changes) -> list[float]:
    config = TrainingConfig(steps=steps, **{"learning_rate": 1.0, "warmup_fraction": 0, **changes})
    return [learning_rate(step, config) for step in range(steps)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    schedule=st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    steps=st.integers(1, 60),
    warmup=st.sampled_from([0.0, 0.03, 0.1, 0.5, 0.9, 0.999]),
    decay=st.sampled_from([1e-9, 0.01, 0.2, 0.5, 1.0]),
    peak=st.sampled_from([3e-4, 0.1, 1.0]),
    final=st.sampled_from([0.0, 1e-5, 0.07]),
)
def test_every_schedule_rises_to_the_peak_once_and_ends_at_the_final_rate(
    schedule, steps, warmup, decay, peak, final
):
    final = min(final, peak)
    settings = {"schedule": schedule, "warmup_fraction": warmup, "decay_fraction": decay}
    found = rates(steps, learning_rate=peak, final_learning_rate=final, **settings)
    assert found[-1] == (peak if schedule == "constant" else final)  # exactly
    top = min(max(1, round(warmup * steps)) - 1, steps - 1)
    if top < steps - 1:
        assert found[top] == max(found) == peak
    assert found[:top] == pytest.approx([peak * (s + 1) / (top + 1) for s in range(top)])
    falling = found[top:]
    assert all(a >= b for a, b in pairwise(falling))
    if schedule in ("cosine", "linear") and steps - 1 > top and final < peak:
        assert found.count(peak) == 1


def test_rates_by_hand():
    assert rates(5, schedule="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert rates(3, schedule="cosine") == pytest.approx([1, 0.5, 0])
    half = 0.5 + math.sqrt(0.125)
    assert rates(5, schedule="cosine") == pytest.approx([1, half, 0.5, 1 - half, 0])
    wsd = {"schedule": "wsd", "final_learning_rate": 0.2}
    assert rates(11, decay_fraction=0.4, **wsd) == pytest.approx([1] * 7 + [0.8, 0.6, 0.4, 0.2])
    assert rates(10, **wsd) == pytest.approx([1] * 8 + [0.2 + 0.8 * 5 / 9, 0.2])
    assert rates(3, **wsd) == [1, 1, 0.2]
    assert rates(2, **wsd) == [1, 0.2]
    for name in ("cosine", "linear", "wsd"):
        assert rates(1, schedule=name, final_learning_rate=0.3) == [0.3]
    assert rates(3, schedule="constant", final_learning_rate=0.2) == [1, 1, 1]
    warm = rates(4, schedule="linear", warmup_fraction=0.5)
    assert warm == [0.5, 1, 0.5, 0]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_group_ends_at_its_share_of_the_final_rate(kind, make_trainer):
    rates = {"training__learning_rate": 0.01, "training__final_learning_rate": 0.001}
    trainer = make_trainer(
        "verifiable",
        training__steps=3,
        training__optimizer=kind,
        training__warmup_fraction=0,
        objective__value__learning_rate=0.03,
        **rates,
    )
    for expected in (0.01, 0.0055, 0.001):
        figures = trainer.train_step()
        trainer.step += 1
        assert figures["learning_rate"] == pytest.approx(expected)
        found = {group["lr"] for group in trainer.optimizer.param_groups}
        assert sorted(found) == pytest.approx([expected, 3 * expected])


def test_eight_bits_without_torchao_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    config = TrainingConfig(optimizer="adamw_8bit")
    with pytest.raises(UserError, match="pip install torchao"):
        make_optimizer(nn.Linear(4, 4), config)


def test_eight_bits_are_saved_and_resumed_bit_for_bit(tmp_path, rows_file):
    """By torchao, its step not compiled, which takes half a minute on the CPU."""
    pytest.importorskip("torchao.optim")
    changes = {
        "model__architecture__dim": 64,
        "model__architecture__n_future_tokens": 2,
        "training__optimizer": "adamw_8bit",
        "training__steps": 4,
        "training__save_every": 2,
    }
    with torch.compiler.set_stance("force_eager"):
        assert train(tmp_path / "one", rows_file, **changes) == 0
        assert train(tmp_path / "two", rows_file, **changes) == 0
        shutil.rmtree(last_checkpoint(tmp_path / "two"))
        assert main(["train", "--resume", "--output-dir", str(tmp_path / "two")]) == 0
        plain = {**changes, "training__optimizer": "adamw"}
        assert train(tmp_path / "plain", rows_file, **plain) == 0
    ours, again, plain = (weights(tmp_path / name) for name in ("one", "two", "plain"))
    assert same(ours, again)
    assert largest_difference(ours, plain) < 0.05  # of steps of 0.01
    sizes = [last_checkpoint(tmp_path / name) / "optimizer.pt" for name in ("one", "plain")]
    assert sizes[0].stat().st_size < 0.5 * sizes[1].stat().st_size
