"""Operations with hand-written gradients, against their definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import error

from weighted_mtp.models.meta_mtp.fused_ops import (
    is_short,
    normed_linears,
    rms_norm,
    short_attention,
    swiglu,
    swiglu_linear,
)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_fused_operations(size):
    g = torch.Generator().manual_seed(0)
    x, y = (size * torch.randn(6, 48, generator=g).bfloat16() for _ in "xy")
    weight = torch.randn(48, generator=g)
    grad = torch.randn(6, 48, generator=g).bfloat16()
    cases = [
        (lambda a, b: rms_norm(a, b, 1e-5), (x, weight)),
        (swiglu, (x, y)),
    ]
    plain = [
        lambda a, b: a * torch.rsqrt(a.square().mean(-1, keepdim=True) + 1e-5) * b,
        lambda a, b: F.silu(a) * b,
    ]
    for (function, inputs), definition in zip(cases, plain, strict=True):
        narrow = [t.clone().requires_grad_() for t in inputs]
        wide = [t.double().requires_grad_() for t in inputs]
        out, exact = function(*narrow), definition(*wide)
        out.backward(grad)
        exact.backward(grad.double())
        assert error(out, exact.detach()) < 1e-2
        for a, b in zip(narrow, wide, strict=True):
            assert error(a.grad, b.grad) < 1e-2


def linears(bias: bool, *widths: int) -> list[torch.nn.Linear]:
    """From 12 to each width, with weights of the same seed every time."""
    torch.manual_seed(0)
    return [torch.nn.Linear(12, width, bias=bias) for width in widths]


def block_of(x, weight, first, second, last):
    return swiglu_linear(*normed_linears(x, weight, 1e-5, [first, second]), last)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [(), (1,), (0, 1, 2)])
def test_products_that_keep_less_have_the_gradients_of_their_definition(bias, frozen):
    modules = [each.double() for each in linears(bias, 12, 12, 7)]
    for which in frozen:
        modules[which].requires_grad_(False)
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(12, dtype=torch.float64, requires_grad=True)
    inputs = [x, weight, *(p for m in modules for p in m.parameters() if p.requires_grad)]
    definition = modules[2](
        F.silu(modules[0](n := F.rms_norm(x, (12,), weight, 1e-5))) * modules[1](n)
    )
    out = block_of(x, weight, *modules)
    torch.testing.assert_close(out, definition, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, inputs, grad),
        torch.autograd.grad(definition, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_products_that_keep_less_under_autocast():
    """Values bit for bit those of the plain modules, gradients as near to float64's."""
    x, weight = torch.randn(64, 12), torch.rand(12)
    grad = torch.randn(64, 7).bfloat16()
    found = {}
    for name in ("fused", "plain", "exact"):
        modules = linears(True, 12, 12, 7)
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        if name == "exact":
            modules = [each.double() for each in modules]
            inputs = [each.detach().double().requires_grad_() for each in inputs]
        if name == "plain":
            for each in modules:
                each.register_forward_hook(lambda *_: None)  # seen, so it must be called
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            out = block_of(*inputs, *modules)
        out.backward(grad.to(out.dtype))
        inputs += [p for each in modules for p in each.parameters()]
        found[name] = out.detach(), [each.grad for each in inputs]
    assert torch.equal(found["fused"][0], found["plain"][0])
    for fused, plain, exact in zip(*(found[each][1] for each in found), strict=True):
        assert fused.dtype == torch.float32
        assert error(fused, exact) < max(0.01, 1.2 * error(plain, exact))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (9, 3)], ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_over_short_rows(heads, scale):
    """Its output is that of PyTorch's function, its gradients are nearer to float64's."""
    H, K = heads
    g = torch.Generator().manual_seed(0)
    shapes = [(2, n, 21, 16) for n in (H, K, K, H)]
    *inputs, grad = (torch.randn(shape, generator=g).bfloat16() for shape in shapes)
    found = {}
    for name in ("short", "torch", "exact"):
        kind = torch.float64 if name == "exact" else torch.bfloat16
        q, k, v = (each.to(kind, copy=True).requires_grad_() for each in inputs)
        assert is_short(q) == (name != "exact")
        if name == "short":
            out = short_attention(q, k, v, scale)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=H != K
            )
        out.backward(grad.to(kind))
        found[name] = out.detach(), [each.grad for each in (q, k, v)]
    assert torch.equal(found["short"][0], found["torch"][0])
    for short, plain, exact in zip(*(found[each][1] for each in found), strict=True):
        assert error(short, exact) < max(0.006, 1.2 * error(plain, exact))


def test_linears_that_are_more_than_a_product_are_called():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    first, second = linears(False, 12, 12)
    doubled = Doubled(12, 12, bias=False)
    doubled.load_state_dict(first.state_dict())
    x, weight = torch.randn(3, 12, requires_grad=True), torch.rand(12)
    plain, _ = normed_linears(x, weight, 1e-5, [first, second])
    twice, _ = normed_linears(x, weight, 1e-5, [doubled, second])
    torch.testing.assert_close(twice, 2 * plain)
