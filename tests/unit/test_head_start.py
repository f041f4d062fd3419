"""New heads fitted to the next-token head: the regression by hand, and what it is good for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.data.batches import Example, pack_batch, pad_batch
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.add_heads import add_heads
from weighted_mtp.models.meta_mtp.args import Family
from weighted_mtp.pipelines.training.head_start import RIDGE, fit_new_heads
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective

SHAPES = {
    "llama": {},
    "qwen3": {"family": Family(qk_norm=True, head_dim=6)},
    "granite": {"family": Family(residual_multiplier=0.3, logits_scaling=4.0, mlp_bias=True)},
}
PROMPT = 2
LENGTHS = (9, 4, 12, 7)


def module(family: str = "llama") -> TrainingModule:
    """Two new heads, which are copies."""
    args = tiny_args(n_future_tokens=1, **SHAPES[family])
    adapter = MetaLlamaMTPAdapter(add_heads(tiny_model(args), 3).double())
    recipe = load_recipe("heads", None, ["model.path=unread", "data.train=unread"])
    return TrainingModule(adapter, make_objective(recipe.objective, 3))


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(30, (m,), generator=generator).tolist() for m in LENGTHS]
    return [Example(ids, PROMPT, True, i) for i, ids in enumerate(tokens)]


def by_hand(model, k: int) -> torch.Tensor:
    """The projection of head k, row by row: ridge as least squares with rows of its own."""
    head = copy.deepcopy(model.extra_heads[k - 2])
    inputs, outputs, wanted = [], [], []
    for example in examples():
        tokens = torch.tensor(example.ids[:-1])[None]
        freqs_cis, mask = model.context(tokens, 0, None)
        trunk = model.trunk_state(tokens)
        teacher, stream = model.layers[-1](trunk, freqs_cis, mask)[0], []
        hook = head.feed_forward.w2.register_forward_pre_hook(lambda _, x, s=stream: s.append(x[0]))
        z = head(trunk, freqs_cis, mask)[0]
        hook.remove()
        for t in range(len(z)):
            # t predicts token t + k, which must be of the response; its teacher stands at t + k - 1
            if t + k < PROMPT or t + k >= len(example.ids):
                continue
            y = teacher[t + k - 1]
            inputs.append(stream[0][0, t])
            outputs.append(z[t])
            wanted.append(y / y.square().mean().add(model.args.norm_eps).sqrt())
    X, Z = torch.stack(inputs), torch.stack(outputs)
    Y = torch.stack(wanted)
    Y = Y * Z.square().mean(-1).sqrt().median()
    P = X.shape[1]
    penalty = (RIDGE * (X.T @ X).trace() / P).sqrt() * torch.eye(P, dtype=X.dtype)
    rows, values = torch.cat([X, penalty]), torch.cat([Y - Z, torch.zeros(P, Z.shape[1]).double()])
    change = torch.linalg.lstsq(rows, values).solution.T
    return head.feed_forward.w2.weight + change / model.args.family.residual_multiplier


@torch.no_grad()
@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_fit_is_a_ridge_regression_on_the_teacher(packed, family):
    trained = module(family)
    model, rows = trained.adapter.transformer, examples()
    expected = [by_hand(model, k) for k in (2, 3)]
    others = {k: v.clone() for k, v in model.state_dict().items() if "feed_forward.w2" not in k}
    batch = pack_batch([rows[:2], rows[2:]], 0) if packed else pad_batch(rows, 0, 8)
    count = fit_new_heads(trained, trained, [[batch]])
    assert count == sum(m - max(PROMPT, 3) for m in LENGTHS)
    for head, weight in zip(model.extra_heads, expected, strict=True):
        torch.testing.assert_close(head.feed_forward.w2.weight, weight, rtol=1e-4, atol=1e-5)
    for name, before in others.items():
        assert torch.equal(model.state_dict()[name], before), name


@torch.no_grad()
def test_fitted_heads_are_closer_to_their_teacher():
    trained = module()
    model = trained.adapter.transformer
    batch = pad_batch(examples(), 0, 8)

    def likeness() -> list[float]:
        states = model.head_states(batch.tokens, return_all_heads=True)
        pairs = [(states[k][:, : -k or None], states[0][:, k:]) for k in (1, 2)]
        return [F.cosine_similarity(own, taught, dim=-1).mean().item() for own, taught in pairs]

    before = likeness()
    fit_new_heads(trained, trained, [[batch]])
    assert all(late > early for late, early in zip(likeness(), before, strict=True))


def test_without_rows_the_copies_stay():
    trained = module()
    before = copy.deepcopy(trained.adapter.transformer.state_dict())
    unread = pad_batch([Example([1, 2, 3], 3, True, 0)], 0, 8)  # all of it is the prompt
    assert fit_new_heads(trained, trained, [[unread]]) == 0
    for name, weight in trained.adapter.transformer.state_dict().items():
        assert torch.equal(weight, before[name])
