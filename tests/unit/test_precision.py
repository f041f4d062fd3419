"""Numbers that 16 bits, or differences in float32, could spoil, each against float64: confident
tokens, tiny inputs, long sums."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import error, random_tokens, tiny_args, tiny_model
from torch import Tensor

from weighted_mtp.core.config.sections import TrainingConfig
from weighted_mtp.decoding.plain import token_logprobs
from weighted_mtp.decoding.sampling import Sampling, probabilities, residual
from weighted_mtp.evaluation.head_quality import read_heads
from weighted_mtp.losses import LossTerms, linear_cross_entropy, mtp_loss
from weighted_mtp.losses import fused_linear_cross_entropy as fused_ce
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.value_head import ValueHead
from weighted_mtp.pipelines.training.objectives.critic import mean_value
from weighted_mtp.pipelines.training.optimization import make_optimizer
from weighted_mtp.runtime.parallel import Parallel
from weighted_mtp.value_weighting.rho1_weighting import rho1_stats, rho1_sums
from weighted_mtp.value_weighting.td_weighting import (
    build_weights,
    compute_td_errors,
    compute_td_targets,
    renormalise,
    td_moments,
    td_stats,
    weight_stats,
    weight_sums,
    whiten,
)

N, D, V = 64, 64, 500
CONFIDENCE = (0.9, 0.99, 0.998, 0.999, 1 - 1e-5, 1 - 1e-9)


def confident_rows(p: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, unembedding, targets, with p(target) about `p` once rounded to `dtype`."""
    g = torch.Generator().manual_seed(0)
    W = 0.3 * torch.randn(V, D, generator=g, dtype=torch.float64)
    y = torch.randint(V, (N,), generator=g)
    h = 0.5 * torch.randn(N, D, generator=g, dtype=torch.float64)
    along = W[y] / W[y].norm(dim=1, keepdim=True)
    low, high = torch.full((N, 1), -50.0).double(), torch.full((N, 1), 100.0).double()
    for _ in range(60):  # how far to go towards the target's row
        middle = (low + high) / 2
        logits = (h + middle * along) @ W.T
        odds = logits.gather(1, y[:, None]) - logits.scatter(1, y[:, None], -math.inf).logsumexp(
            1, keepdim=True
        )
        enough = odds > math.log(p / (1 - p))
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return (h + low * along).to(dtype), W.to(dtype), y


def exact_loss(h: Tensor, W: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of each row, dL/dh, dL/dW in float64, with p − 1 as −Σ of the others."""
    h, W = h.double(), W.double()
    logits = h @ W.T
    rows = torch.arange(len(y))
    odds = logits[rows, y] - logits.scatter(1, y[:, None], -math.inf).logsumexp(1)
    residual = torch.softmax(logits, 1)
    residual[rows, y] = -torch.sigmoid(-odds)
    return -F.logsigmoid(odds), scale * residual @ W, scale * residual.T @ h


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", CONFIDENCE)
@pytest.mark.parametrize(
    ("dtype", "ce_limit", "limit"),
    [(torch.bfloat16, 0.1, 0.1), (torch.float16, 0.01, 0.02), (torch.float32, 1e-5, 1e-5)],
)
@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_gradient_of_confident_tokens(p, dtype, ce_limit, limit, scale):
    h, W, y = confident_rows(p, dtype)
    h.requires_grad_()
    wide = W.float().requires_grad_()
    loss, ce, _ = fused_ce(h, wide, y, torch.full((N,), scale), chunk_rows=24)
    # What float16 cannot hold is scaled up, as a gradient scaler would.
    factor = 1 / (scale * (1 - p)) if dtype == torch.float16 else 1.0
    (loss * factor).backward()
    exact_ce, exact_h, exact_W = exact_loss(h.detach(), W, y, scale * factor)
    assert error(ce, exact_ce) < ce_limit
    assert error(loss / scale, exact_ce.sum()) < ce_limit
    if dtype != torch.float16 or p < 0.9999:  # below its smallest number
        assert error(h.grad, exact_h) < limit
        assert F.cosine_similarity(h.grad.double(), exact_h, 1, eps=0).min() > 0.99
        assert error(wide.grad, exact_W) < limit


def test_rows_of_all_degrees_of_confidence_in_one_step():
    """A row's gradient keeps its size and direction beside rows that weigh 10⁶ times as much."""
    parts = [confident_rows(p, torch.bfloat16) for p in (0.5, 0.999, 1 - 1e-6)]
    h = torch.cat([part[0] for part in parts]).requires_grad_()
    y = torch.cat([part[2] for part in parts])
    fused_ce(h, parts[0][1], y, torch.full((len(y),), 0.01))[0].backward()
    for part, grad in zip(parts, h.grad.split(N), strict=True):
        assert error(grad, exact_loss(*part, 0.01)[1]) < 0.06


@pytest.mark.parametrize("size", [1e-2, 1e-4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiny_hidden_states(size, dtype):
    g = torch.Generator().manual_seed(1)
    h, W = size * torch.randn(N, D, generator=g), torch.randn(V, D, generator=g)
    h, W, y = h.to(dtype), W.to(dtype), torch.randint(V, (N,), generator=g)
    h.requires_grad_()
    wide = W.float().requires_grad_()
    loss, ce, _ = fused_ce(h, wide, y, torch.full((N,), 1.0))
    loss.backward()
    exact_ce, exact_h, exact_W = exact_loss(h.detach(), W, y, 1.0)
    assert error(ce, exact_ce) < 1e-3
    assert error(h.grad, exact_h) < 1e-2
    assert error(wide.grad, exact_W) < 1e-2


@pytest.mark.parametrize("frozen", ["hidden", "unembedding", "both"])
def test_no_gradient_is_computed_for_what_is_frozen(frozen, monkeypatch):
    h, W, y = confident_rows(0.5, torch.float32)
    both = [x.clone().requires_grad_() for x in (h, W)]
    fused_ce(*both, y, torch.ones(N))[0].backward()
    h.requires_grad_(frozen == "unembedding")
    W.requires_grad_(frozen == "hidden")
    products, outer = [], linear_cross_entropy.add_outer_

    def noting(total, *args):
        products.append(total.shape)
        outer(total, *args)

    monkeypatch.setattr(linear_cross_entropy, "add_outer_", noting)
    loss = fused_ce(h, W, y, torch.ones(N))[0]
    assert len(products) == (frozen == "hidden")
    assert loss.requires_grad == (frozen != "both")
    if frozen == "both":
        return
    loss.backward()
    for x, trained in zip((h, W), both, strict=True):
        assert x.grad is None if not x.requires_grad else torch.equal(x.grad, trained.grad)


# --- held-out and decoding figures ---------------------------------------------------------------


@pytest.mark.parametrize("p", CONFIDENCE)
def test_held_out_cross_entropy_and_log_probabilities_of_confident_tokens(p):
    h, W, y = confident_rows(p, torch.float32)
    exact_ce = exact_loss(h, W, y, 1.0)[0]
    seen = read_heads([h[None]], W, y[None, :, None])
    assert error(seen.ce[:, 0], exact_ce) < 1e-5
    assert error(seen.confidence[:, 0], torch.softmax(h.double() @ W.double().T, 1).amax(1)) < 1e-6
    for logits in (h @ W.T, (h @ W.T).bfloat16()):
        wide = logits.double()
        odds = wide.gather(1, y[:, None]) - wide.scatter(1, y[:, None], -math.inf).logsumexp(
            1, keepdim=True
        )
        assert error(token_logprobs(logits, y), F.logsigmoid(odds)[:, 0]) < 1e-5


def test_held_out_figures_and_the_loss_agree_on_confident_tokens():
    h, W, y = confident_rows(0.999, torch.bfloat16)
    seen = read_heads([h[None]], W, y[None, :, None])
    trained = mtp_loss([h[None]], W, y[None, :, None], torch.ones(1))
    torch.testing.assert_close(seen.ce, trained.ce[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("p", CONFIDENCE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_speculative_sampling_keeps_the_distribution_of_confident_tokens(p, dtype):
    """min(p, q) + P(rejected) · residual is p again, to float32's last digits."""
    h, W, _ = confident_rows(p, torch.float32)
    judge = (h @ W.T).to(dtype)
    draft = judge + 0.1 * torch.randn(judge.shape, generator=torch.Generator().manual_seed(2))
    sampling = Sampling(temperature=1.0)
    P, Q = probabilities(judge, sampling), probabilities(draft.to(dtype), sampling)
    exact = torch.softmax(judge.double(), -1)
    drawn = torch.where(Q > 0, Q * (P / Q).clamp(max=1), 0.0).double()
    drawn += (1 - drawn.sum(-1, keepdim=True)) * residual(P, Q).double()
    assert (drawn - exact).abs().sum(-1).max() < 1e-5


# --- values and weights --------------------------------------------------------------------------


@pytest.mark.parametrize("head_type", ["linear", "mlp"])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_values_and_td_errors_under_autocast(head_type, size):
    """Values near 0.9 that differ in the fourth digit: in bfloat16 their differences would be 0."""
    torch.manual_seed(0)
    adapter = MetaLlamaMTPAdapter(tiny_model(tiny_args(), dtype=torch.float32))
    head = adapter.attach_value_head(head_type=head_type)
    torch.nn.init.normal_(head.value.weight, std=2e-4 * size)
    torch.nn.init.constant_(head.value.bias, 0.9)
    tokens = random_tokens(adapter.args, 2, 12)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = adapter.trunk_forward(tokens)
        full = adapter.full_forward(tokens)["value_logits"]
    values, hidden = out["value_logits"], out["hidden_states"]
    assert values.dtype == full.dtype == torch.float32
    exact = ValueHead(adapter.args.dim, head_type).double()
    exact.load_state_dict(head.state_dict())
    exact_values = exact(hidden.double()).detach()
    assert (values - exact_values).abs().max() < 1e-6
    mask, rewards = torch.ones(2, 12, dtype=torch.bool), torch.tensor([1.0, 0.0])
    mask[:, 0] = False
    for compute in (compute_td_errors, compute_td_targets):
        found = compute(values, rewards, mask).double()
        assert (found - compute(exact_values, rewards.double(), mask)).abs().max() < 1e-6


def test_sums_over_many_tokens():
    """A quarter of a million tokens whose weights and TD errors are nearly equal, and tiny."""
    g = torch.Generator().manual_seed(0)
    errors = (1e-3 + 1e-6 * torch.randn(64, 4096, generator=g)).requires_grad_(False)
    mask = torch.rand(64, 4096, generator=g) < 0.9
    picked = errors.double()[mask]
    found = td_stats(td_moments(errors, mask))
    assert found["mean"] == pytest.approx(float(picked.mean()), rel=1e-12)
    assert found["std"] == pytest.approx(float(picked.std(correction=0)), rel=1e-4)
    white = whiten(errors, mask, found["mean"], found["std"], eps=0.0)[mask].double()
    assert abs(float(white.mean())) < 1e-4
    assert float(white.std()) == pytest.approx(1.0, abs=1e-3)
    weights = build_weights(errors, mask)
    exact = (picked / 0.9).exp()
    stats = weight_stats(weight_sums(weights, mask, 0.1, 5.0))
    assert stats["mean"] == pytest.approx(float(exact.mean()), rel=1e-7)
    assert float(renormalise(weights, mask)[mask].double().mean()) == pytest.approx(1.0, rel=1e-7)
    selected, ce = torch.ones(64, 4096, 1), errors[..., None]
    rho1 = rho1_stats(rho1_sums(selected, ce, ce - 1e-7, mask[..., None]))
    assert rho1["mean_ce_kept"] == pytest.approx(float(picked.mean()), rel=1e-9)


def test_mean_value_is_not_summed_in_16_bits_nor_spoilt_by_padding():
    values = torch.full((1, 4096), 0.3, dtype=torch.bfloat16)
    values[0, -1] = math.nan
    labels = torch.ones(1, 4097, dtype=torch.long)
    labels[0, -1] = -100
    assert float(mean_value(values, labels)) == pytest.approx(float(values[0, 0]), rel=1e-6)


# --- the network and its optimizer ---------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_clip_norm_of_many_small_gradients(size):
    g = torch.Generator().manual_seed(0)
    module = torch.nn.ParameterList(torch.zeros(n) for n in (3_000_000, 1000, 1))
    exact = 0.0
    for parameter in module:
        parameter.grad = size * torch.randn(parameter.shape, generator=g)
        exact += float(parameter.grad.double().square().sum())
    norm = Parallel(module, torch.device("cpu")).clip(1e9)
    assert norm == pytest.approx(math.sqrt(exact), rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    ["adamw", "muon"],
)
def test_bfloat16_micro_batches_add_up_in_float32(kind):
    """Gradients, what they add up to over 64 micro-batches, and the optimizer's state."""
    model = tiny_model(tiny_args(), dtype=torch.float32)
    tokens = random_tokens(model.args, 64, 6)
    weight = model.layers[0].feed_forward.w2.weight
    each = torch.zeros_like(weight, dtype=torch.float64)
    for row in tokens.split(1):
        before = 0.0 if weight.grad is None else weight.grad.double()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model.head_states(row)
            terms = LossTerms(row[..., None], torch.tensor([1e6]))
            loss = mtp_loss(states, model.output.weight, *terms).loss
        loss.backward()
        each += weight.grad.double() - before
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert error(weight.grad, each) < 1e-6
    optimizer = make_optimizer(model, TrainingConfig(optimizer=kind))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    optimizer.step()
    parts = getattr(optimizer, "parts", {"adamw": optimizer})
    kept = [x for part in parts.values() for s in part.state.values() for x in s.values()]
    assert {x.dtype for x in kept if isinstance(x, Tensor)} == {torch.float32}
