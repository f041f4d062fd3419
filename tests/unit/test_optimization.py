"""The optimizers of a recipe: who holds which parameter, and that their state survives."""

import pytest
import torch
from tests.helpers import tiny_args, tiny_model
from torch import nn

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.sections import TrainingConfig
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.optimization import Optimizers, make_optimizer

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9")


def adapter() -> MetaLlamaMTPAdapter:
    return MetaLlamaMTPAdapter(tiny_model(tiny_args(), seed=0, dtype=torch.float32))


def names_of(module: nn.Module, groups) -> set[str]:
    held = {id(p) for group in groups for p in group["params"]}
    return {name for name, p in module.named_parameters() if id(p) in held}


@pytest.mark.parametrize("kind", ["adamw", pytest.param("muon", marks=needs_muon)])
def test_every_parameter_is_held_once_and_only_matrices_decay(kind):
    module = adapter()
    groups = make_optimizer(module, TrainingConfig(optimizer=kind)).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(module.parameters()))
    decayed = names_of(module, [g for g in groups if g["weight_decay"] > 0])
    assert decayed
    assert not any("norm" in name or "tok_embeddings" in name for name in decayed)


@pytest.mark.parametrize("kind", ["adamw", pytest.param("muon", marks=needs_muon)])
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


@needs_muon
def test_muon_takes_the_recipes_rate_and_decay():
    config = TrainingConfig(optimizer="muon", learning_rate=0.02, weight_decay=0.3)
    (group,) = make_optimizer(adapter(), config).parts["muon"].param_groups
    asked = ("lr", "weight_decay", "momentum", "adjust_lr_fn")
    assert [group[name] for name in asked] == [0.02, 0.3, 0.95, "match_rms_adamw"]


@needs_muon
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


@needs_muon
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


def test_muon_without_a_muon_is_a_clear_error(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match=r"muon needs PyTorch 2\.9"):
        make_optimizer(adapter(), TrainingConfig(optimizer="muon"))
