"""The fused loss is the naive `[B, S, n, V]` computation in everything but memory."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import random_tokens, tiny_args, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weighted_mtp.losses import MTPLoss, count_targets, mtp_loss, shift_labels
from weighted_mtp.losses import fused_linear_cross_entropy as fused_ce

CHUNKS = (1, 3, 64, 10_000)
B, S, N, D, V = 2, 5, 3, 8, 11


class Case(NamedTuple):
    hidden: list[Tensor]
    unembedding: Tensor
    targets: Tensor
    denominators: Tensor
    weights: Tensor | None = None
    head_weights: Tensor | None = None

    def loss(self, chunk_rows: int | None = None) -> MTPLoss:
        return mtp_loss(*self, chunk_rows=chunk_rows)


class Result(NamedTuple):
    loss: Tensor
    hidden_grad: Tensor
    weight_grad: Tensor


def make_case(
    b=B, s=S, n=N, d=D, v=V, seed=0, dtype=torch.float64, ignored=0.3, ahead=0, documents=False
) -> Case:
    """Random input with `ignored` of the labels −100 and about a third of the weights zero."""
    g = torch.Generator().manual_seed(seed)
    length = s + ahead
    labels = torch.randint(v, (b, length), generator=g)
    labels[torch.rand(b, length, generator=g) < ignored] = -100
    document = torch.randint(3, (b, length), generator=g).sort(1).values if documents else None
    targets = shift_labels(labels, n, s, document)
    hidden = [torch.randn(b, s, d, generator=g, dtype=torch.float64).to(dtype) for _ in range(n)]
    unembedding = torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype)
    weights = 3 * torch.rand(b, s, n, generator=g, dtype=torch.float64)
    weights[torch.rand(b, s, n, generator=g) < 0.3] = 0.0
    head_weights = torch.rand(n, generator=g, dtype=torch.float64)
    return Case(hidden, unembedding, targets, count_targets(targets), weights, head_weights)


def naive(case: Case) -> MTPLoss:
    """The definition: all logits at once, autograd through them."""
    logits = torch.stack(case.hidden, 2) @ case.unembedding.T  # [B, S, n, V]
    n, targets = len(case.hidden), case.targets
    ce = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view_as(targets)
    w = torch.ones_like(ce) if case.weights is None else case.weights.to(ce.dtype)
    c = [1 / n] * n if case.head_weights is None else case.head_weights.tolist()
    loss = (logits * 0).sum()
    for k in range(n):
        if case.denominators[k] > 0:
            loss = loss + c[k] * (w[..., k] * ce[..., k]).sum() / case.denominators[k]
    counted = (targets != -100) & (w != 0) & (case.denominators > 0)
    return MTPLoss(loss, (ce * counted).detach(), (logits.argmax(-1) == targets) & counted)


def differentiate(case: Case, function=None, factor: float = 1.0, **options) -> Result:
    hidden = [h.clone().requires_grad_() for h in case.hidden]
    unembedding = case.unembedding.clone().requires_grad_()
    case = case._replace(hidden=hidden, unembedding=unembedding)
    out = naive(case) if function is naive else case.loss(**options)
    (out.loss * factor).backward()
    grads = torch.stack([h.grad for h in hidden])
    return Result(out.loss.detach(), grads, unembedding.grad)


def pick_rows(case: Case, rows) -> Case:
    hidden = [h[rows] for h in case.hidden]
    return case._replace(hidden=hidden, targets=case.targets[rows], weights=case.weights[rows])


def with_dtype(case: Case, dtype: torch.dtype) -> Case:
    return case._replace(hidden=[h.to(dtype) for h in case.hidden])


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact.double()).norm() / exact.double().norm())


def assert_same(result: Result, expected: Result, tolerance: float) -> None:
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


@st.composite
def cases(draw) -> Case:
    size = {"b": (1, 3), "s": (1, 6), "n": (1, 4), "d": (1, 5), "v": (2, 9), "seed": (0, 999)}
    shape = {name: draw(st.integers(*bounds)) for name, bounds in size.items()}
    case = make_case(
        **shape,
        ignored=draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        ahead=draw(st.integers(0, shape["n"])),
        documents=draw(st.booleans()),
    )
    unset = {name: None for name in ("weights", "head_weights") if draw(st.booleans())}
    return case._replace(denominators=case.denominators * draw(st.sampled_from([1, 7])), **unset)


# --- equal to the definition ---------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), chunk_rows=st.sampled_from(CHUNKS))
def test_equals_the_naive_computation(case, chunk_rows):
    expected = differentiate(case, naive)
    assert_same(differentiate(case, chunk_rows=chunk_rows), expected, 1e-10)
    out, wanted = case.loss(chunk_rows), naive(case)
    torch.testing.assert_close(out.ce, wanted.ce, rtol=1e-10, atol=1e-10)
    assert torch.equal(out.hit, wanted.hit)
    assert not out.ce.requires_grad


@pytest.mark.parametrize("chunk_rows", [*CHUNKS, None])
def test_float32_to_1e_5(chunk_rows):
    case = make_case(s=20, v=50, dtype=torch.float32)
    assert_same(differentiate(case, chunk_rows=chunk_rows), differentiate(case, naive), 1e-5)


def test_gradcheck():
    case = make_case()

    def loss(unembedding: Tensor, *hidden: Tensor) -> Tensor:
        changed = case._replace(hidden=list(hidden), unembedding=unembedding)
        return changed.loss(4).loss

    inputs = [x.clone().requires_grad_() for x in (case.unembedding, *case.hidden)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_head_k_learns_the_token_k_places_on():
    labels = torch.tensor([[4, 5, 6, 7]])
    assert shift_labels(labels, 2).tolist() == [[[5, 6], [6, 7], [7, -100], [-100, -100]]]
    assert shift_labels(labels, 2, length=2).tolist() == [[[5, 6], [6, 7]]]
    documents = torch.tensor([[0, 0, 1, 1]])
    expected = [[[5, -100], [-100, -100], [7, -100], [-100, -100]]]
    assert shift_labels(labels, 2, documents=documents).tolist() == expected


@pytest.mark.parametrize("ahead", [0, 1, N - 1, N])
def test_tokens_read_ahead_are_targets(ahead):
    targets = make_case(ignored=0.0, ahead=ahead).targets
    assert targets.shape == (B, S, N)
    assert count_targets(targets).tolist() == [B * min(S, S + ahead - k) for k in (1, 2, 3)]


def test_tied_embeddings_get_the_naive_gradient():
    args = tiny_args(tie_embeddings=True)
    tokens = random_tokens(args, 2, 8)
    case = make_case(s=8, v=args.vocab_size)
    grads = []
    for function in (lambda c: c.loss(5), naive):
        model = tiny_model(args, dtype=torch.float64)
        states = model.head_states(tokens, return_all_heads=True)
        function(case._replace(hidden=states, unembedding=model.output.weight)).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert "output.weight" not in grads[0]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_cutting_the_step_changes_nothing(pieces):
    """Loss and gradient of micro-batches add up to those of the step, given its denominators."""
    case = make_case(b=4)
    cut = []
    for rows in torch.arange(4).split(4 // pieces):
        cut.append(differentiate(pick_rows(case, rows), chunk_rows=3))
    losses, hiddens, weights = zip(*cut, strict=True)
    summed = Result(sum(losses), torch.cat(hiddens, 1), sum(weights))
    assert_same(summed, differentiate(case), 1e-10)


# --- nothing to learn ----------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", ["no target", "no target anywhere", "zero weights", "no rows"])
def test_nothing_to_learn_is_a_graph_connected_zero(nothing):
    case = make_case()
    if nothing.startswith("no target"):
        case = case._replace(targets=torch.full_like(case.targets, -100))
    if nothing == "no target anywhere":
        case = case._replace(denominators=torch.zeros(N, dtype=torch.float64))
    if nothing == "zero weights":
        case = case._replace(weights=torch.zeros_like(case.weights))
    if nothing == "no rows":
        case = pick_rows(case, slice(0))
    result = differentiate(case)  # fails where the loss has no graph
    assert not any(part.any() for part in result)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_without_grad_and_no_gradient_of_the_token_weights(mode):
    case = make_case()
    case.weights.requires_grad_()
    case.unembedding.requires_grad_()
    with mode():
        loss = case.loss().loss
    assert not loss.requires_grad
    torch.testing.assert_close(loss, naive(case).loss.detach())
    case.loss().loss.backward()
    assert case.unembedding.grad.any()
    assert case.weights.grad is None


# --- number formats ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_close_to_float32(dtype, record_property):
    case = make_case(s=20, v=50, dtype=dtype)
    exact = with_dtype(case, torch.float32)._replace(unembedding=case.unembedding.float())
    result, expected = differentiate(case, chunk_rows=7), differentiate(exact, naive)
    assert result.loss.dtype == torch.float32
    assert result.hidden_grad.dtype == result.weight_grad.dtype == dtype
    for name, value, wanted in zip(Result._fields, result, expected, strict=True):
        record_property(name, relative_error(value, wanted))
        assert relative_error(value, wanted) < 4 * torch.finfo(dtype).eps  # so it is finite, too


@pytest.mark.parametrize("loss_scale", [1.0, 2.0**16])
def test_float16_with_a_million_tokens_a_step_does_not_underflow(loss_scale):
    case = make_case(s=20, v=50, dtype=torch.float32)
    case = case._replace(denominators=torch.full((N,), 1e6, dtype=torch.float64))
    exact = differentiate(case, naive, factor=loss_scale)
    result = differentiate(with_dtype(case, torch.float16), factor=loss_scale)
    assert relative_error(result.weight_grad, exact.weight_grad) < 1e-2
    assert result.hidden_grad.any()
    if loss_scale > 1:
        assert relative_error(result.hidden_grad, exact.hidden_grad) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_own_format(dtype):
    case = make_case(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        result = differentiate(case, chunk_rows=4)
    by_hand = differentiate(with_dtype(case, dtype), chunk_rows=4)
    assert all(part.dtype == torch.float32 for part in result)
    assert_same(result, by_hand, 0.0)
    assert relative_error(result.weight_grad, differentiate(case, naive).weight_grad) < 0.03


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_logits_are_finite_and_right(dtype):
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4] * 3, [1e4] * 3, [1e4, 1e4, -1e4]], dtype=dtype)
    for target in range(3):
        targets = torch.full((len(logits),), target)
        hidden, wide = logits.clone().requires_grad_(), logits.clone().double().requires_grad_()
        unembedding, scale = torch.eye(3, dtype=dtype), torch.ones(len(logits))
        loss, ce, _ = fused_ce(hidden, unembedding, targets, scale)
        expected = F.cross_entropy(wide, targets, reduction="none")
        (loss + expected.sum()).backward()
        torch.testing.assert_close(ce.double(), expected.detach(), rtol=1e-6, atol=1e-6)
        assert relative_error(hidden.grad, wide.grad) < torch.finfo(dtype).eps


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_hidden_state_is_not_hidden(bad):
    case = make_case(ignored=0.0)._replace(weights=None)
    case.hidden[0][0, 0, 0] = bad
    assert case.loss().loss.isnan()


# --- memory --------------------------------------------------------------------------------------


class LargestOutput(TorchDispatchMode):
    """Records the most elements any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_rows", [4, 16])
def test_the_logits_of_all_rows_are_never_held(dtype, chunk_rows):
    case = make_case(s=40, v=997, dtype=dtype)._replace(weights=None)
    with LargestOutput() as spy:
        differentiate(case, chunk_rows=chunk_rows)
    assert spy.largest == max(chunk_rows * 997, 997 * D) < 2 * 40 * 997
    with LargestOutput() as spy:
        differentiate(case, naive)
    assert spy.largest >= 2 * 40 * N * 997  # the spy sees what it should
