"""Training heads on a frozen trunk: what moves, what does not, what the backward pass keeps."""

import pytest
import torch
from tests.helpers import random_tokens, tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    last_checkpoint,
    records,
    resume,
    same,
    train,
    tree,
    weights,
)
from torch.autograd.graph import saved_tensors_hooks

from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.losses import count_targets, mtp_loss, shift_labels
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native
from weighted_mtp.pipelines.planning.plan import PlanRequest, plan
from weighted_mtp.pipelines.training.adapting import freeze, halve_frozen
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective

rows_file = helpers_training.rows_file
HEADS = {"training__adapt": "heads", "training__learning_rate": 0.02}


def recipe_of(*changes):
    own = ["model.path=unread", "data.train=unread", "runtime.compute_dtype=bfloat16"]
    return load_recipe("baseline", None, [*own, *changes])


def adapted(args=None, *changes, stored=None):
    """A tiny model whose heads alone learn."""
    recipe = recipe_of("training.adapt=heads", *changes)
    adapter = MetaLlamaMTPAdapter(tiny_model(args))
    objective = make_objective(recipe.objective, adapter.args.n_future_tokens)
    module = TrainingModule(adapter, objective, getattr(torch, recipe.runtime.compute_dtype))
    freeze(adapter, recipe, objective)
    names = dict(adapter.transformer.named_parameters())
    halve_frozen(adapter, recipe, dict.fromkeys(names, stored or torch.float32))
    return module


@pytest.mark.parametrize("tied", [False, True])
def test_the_trunk_keeps_nothing_and_the_heads_get_their_gradient(tied):
    """The gradient is that of a training of all weights, for the heads alone."""
    args = tiny_args(tie_embeddings=tied)
    model, tokens = adapted(args).adapter.transformer, random_tokens(args, 2, 11)
    whole = tiny_model(args)
    saved = []
    with saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        h = model.embed(tokens)
        for block in model.layers:
            h = block(h, model.freqs_cis[:11])
    assert not saved
    targets = shift_labels(tokens, 3)
    for each in (model, whole):
        states = each.head_states(tokens, return_all_heads=True)
        mtp_loss(states, each.output.weight, targets, count_targets(targets)).loss.backward()
    expected = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("extra_heads."), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad)


def test_the_loss_is_the_same_in_two_parts():
    """Frozen and trained heads apart, with weights, head weights and a head without targets."""
    args = tiny_args()
    tokens, generator = random_tokens(args, 2, 11), torch.Generator().manual_seed(0)
    states = [torch.randn(2, 11, 32, generator=generator, dtype=torch.float64) for _ in range(3)]
    unembedding = torch.randn(37, 32, generator=generator, dtype=torch.float64)
    targets = shift_labels(tokens, 3)
    counts = torch.tensor([9.0, 0.0, 5.0], dtype=torch.float64)
    weighted = torch.rand(2, 11, 3, generator=generator, dtype=torch.float64)
    for c in (None, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)):
        whole = [state.clone().requires_grad_() for state in states]
        part = [states[0], *(state.clone().requires_grad_() for state in states[1:])]
        outs = [mtp_loss(x, unembedding, targets, counts, weighted, c) for x in (whole, part)]
        for out in outs:
            out.loss.backward()
        for one, other in zip(*outs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        torch.testing.assert_close(whole[1].grad, part[1].grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "stored", "expected"),
    [
        ([], torch.float32, torch.float32),
        ([], torch.bfloat16, torch.bfloat16),
        (["training.frozen_dtype=bfloat16"], torch.float32, torch.bfloat16),
        (["training.frozen_dtype=float32"], torch.bfloat16, torch.float32),
        (["runtime.compute_dtype=float32"], torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_format_of_what_is_frozen(changes, stored, expected, tied):
    module = adapted(tiny_args(tie_embeddings=tied), *changes, stored=stored)
    for name, parameter in module.adapter.transformer.named_parameters():
        frozen = not name.startswith("extra_heads.") and parameter.ndim > 1
        assert parameter.dtype == (expected if frozen else torch.float32), name
    model = module.adapter.transformer
    assert (model.output.weight is model.tok_embeddings.weight) == tied
    assert model.embed(random_tokens(model.args, 1, 3)).dtype == torch.float32


def test_products_with_halved_weights_are_those_of_autocast():
    """Autocast would round the same weights: the states are the same bits."""
    rounded = tiny_model()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16())
    module = adapted(None, "training.frozen_dtype=bfloat16")
    module.adapter.transformer.load_state_dict(rounded.state_dict())
    tokens = random_tokens(rounded.args, 2, 9)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        one, other = (
            model.head_states(tokens, return_all_heads=True)
            for model in (rounded, module.adapter.transformer)
        )
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_trains_heads_and_leaves_the_rest_bit_for_bit(dtype, tmp_path, rows_file):
    """From a stored model, resumed in the middle; what is frozen is saved as it was stored."""
    args = tiny_args(vocab_size=259, max_seq_len=64)
    save_native(tiny_model(args).to(dtype), tmp_path / "start")
    changes = {
        **HEADS,
        "model__path": tmp_path / "start",
        "model__architecture": "null",
        "runtime__compute_dtype": str(dtype).removeprefix("torch."),
        "training__steps": 6,
        "training__save_every": 3,
    }
    run_dir = tmp_path / "run"
    assert train(run_dir, rows_file, **changes) == 0
    before = load_meta_mtp_model(tmp_path / "start", "cpu", keep_formats=True).state_dict()
    after = load_meta_mtp_model(run_dir, "cpu", keep_formats=True).state_dict()
    for name, weight in before.items():
        assert same_values(weight, after[name]) != name.startswith("extra_heads."), name
    losses = [r["head_loss"] for r in records(run_dir) if r["kind"] == "train"]
    assert losses[-1][1] < losses[0][1]
    again = tmp_path / "again"
    assert train(again, rows_file, **{**changes, "training__steps": 3}) == 0
    assert resume(again, "--set", "training.steps=6", "--set", "training.adapt=full") == 2
    whole = tmp_path / "whole"
    assert train(whole, rows_file, **changes) == 0
    assert same(weights(whole), weights(run_dir))
    assert tree(run_dir).keys() == tree(whole).keys()
    assert last_checkpoint(run_dir).name == "step-00000006"


def same_values(one, other):
    return torch.equal(one.float(), other.float())


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("baseline", {"n_future_tokens": 1}, ["n is 1", "model.add_heads=3"]),
        ("critic", {}, ["training.adapt heads", "training.adapt=full"]),
    ],
)
def test_nothing_to_train_is_one_line(recipe, changes, words):
    found = load_recipe(
        recipe, None, ["model.path=unread", "data.train=unread", "training.adapt=heads"]
    )
    adapter = MetaLlamaMTPAdapter(tiny_model(tiny_args(**changes)))
    objective = make_objective(found.objective, adapter.args.n_future_tokens)
    with pytest.raises(UserError) as caught:
        freeze(adapter, found, objective)
    assert all(word in str(caught.value) for word in words)


def test_a_plan_counts_what_is_frozen():
    """A 7B on one GPU: heads, and a frozen critic, in bfloat16 against float32."""

    def least(*changes, recipe="baseline"):
        overrides = ["data.source=micro", "tokenizer.kind=bytes", *changes]
        request = PlanRequest(recipe, overrides=overrides, model="7b")
        return plan(request).smallest().memory

    full, heads = least(), least("training.adapt=heads")
    assert heads.total < full.total / 3
    assert heads.optimizer < full.optimizer / 8
    critic = least(recipe="critic")
    assert critic.weights == pytest.approx(2 * 6.74e9, rel=0.01)
    assert critic.total < 0.9 * 24 * 2**30
    assert least("training.frozen_dtype=float32", recipe="critic").weights > 1.9 * critic.weights
