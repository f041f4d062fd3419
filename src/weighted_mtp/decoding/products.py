"""Products with weight matrices, laid out for reading a few tokens at a time.

A decoding step multiplies 1 … 100 rows by every weight, so it lives on how fast weights are read,
and on a CPU the layout settles that. Measured there (AMD EPYC with AVX-512, torch 2.13, one thread,
weights colder than the cache, `F.linear` against the layout chosen below, microseconds):

    weight          M = 1        M = 4        M = 16       layout
    3072 × 576 bf16 454 → 262    507 → 330    914 → 540    oneDNN's blocks
    704 × 128 bf16   47 → 27      46 → 39      59 → 38     oneDNN's blocks
    3072 × 576 f32  804 → 522    959 → 426   1369 → 742    oneDNN's blocks
    704 × 128 f32    52 → 27      67 → 42     123 → 92     transposed
    128 × 128 f32     7 → 4        6 → 5       15 → 11     transposed

In blocks bfloat16 gives the same bits; float32, in whichever layout, differs by rounding. Such a
copy takes about 0.7 s a gigabyte to make (what ten steps save) and as much memory as the weights,
while it lives. Hence the rule, `worth_copying`.

Up to four tokens at a time are read quickest as float16 by FBGEMM, whose inputs, sums and results
are float32: two threads, weights colder than the cache, microseconds (there 33 GB/s, all that two
threads read of this machine's memory):

    weight           M = 1             M = 4              M = 8
                     halves  blocks    halves  blocks     halves  blocks
    3072 × 576 bf16    122     162       131     155        180     152
    49152 × 576 bf16  1587    2723      1626    1702       2601    2284
    3072 × 576 f32     122     306       131     298        180       –
    49152 × 576 f32   1587    4599      1626    4188       2601       –

What was bfloat16 once is kept by float16 to the bit, down to 2^−28 of the largest number of a
matrix, if it is multiplied by a power of two that puts that number near the top of float16's range;
smaller numbers lose at most 2^−38 of it. So a float32 model whose weights came from bfloat16 is
read at half the bytes, with the results of float32. (A bfloat16 matrix of common size is copied as
it is: numbers below 2^−14 lose at most 2^−25.) Such a copy takes about 7 s for 10^9 bfloat16
weights and 8 s for as many in float32.

Operators of oneDNN and FBGEMM that PyTorch itself uses and does not document: where they are
missing, or do not give `F.linear`'s results, the weights are used as they lie.

Letters: M rows, D inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.core.device import fast_bfloat16
from weighted_mtp.models.meta_mtp.quantised import QuantisedLinear
from weighted_mtp.models.meta_mtp.transformer import Transformer

Product = Callable[[Tensor], Tensor]
Layout = Literal["kept", "blocks", "halves"]
"""How weights are read: as they lie; copied into oneDNN's blocks (small ones transposed); or copied
to float16, with states in float32."""

MOST_BYTES = 2 << 30  # of weights that are copied: a copy of a 7B model must be nobody's surprise
FEWEST_STEPS = 16
_TRANSPOSED = (
    1 << 18
)  # float32 weights up to this number (1 MB) are quicker transposed than in blocks
_SMALL = 4 << 20  # weights: 16 MB in float32, which stay in cache
_FEW_TOKENS = 4  # of all rows together, up to which bfloat16 is read quicker in halves
MANY_STEPS = 128  # what a copy in halves must save before it pays
_HALF_ROWS = 16  # up to which `F.linear` of bfloat16 weights is no quicker than a copy in halves
_TOP = 14  # the largest number of a matrix in halves is below 2^14, so that no rounding overflows
_LEAST = 2.0**-8  # the largest number of a bfloat16 matrix that is copied as it is
_LOST = 2.0**-36  # of the largest number, that float16 may lose of any
_ROWS = 16  # for which oneDNN chooses its blocks; good from 1 to 512


def worth_copying(model: nn.Module, steps: int) -> bool:
    """Whether weights in another layout pay: on a CPU, in float32 or bfloat16, for 16 steps or
    more, and up to 2 GiB of weights. Not under autocast, which wants the weights as they are."""
    weights = list(model.parameters())
    return (
        steps >= FEWEST_STEPS
        and all(type(weight) is nn.Parameter for weight in weights)  # not sharded
        and {weight.device.type for weight in weights} == {"cpu"}
        and {weight.dtype for weight in weights} <= {torch.float32, torch.bfloat16}
        and not torch.is_autocast_enabled("cpu")
        and sum(weight.nbytes for weight in weights) <= MOST_BYTES
    )


def prefers_halves(model: nn.Module, steps: int, width: int) -> bool:
    """Whether, of a model worth copying, float16 is the quickest copy for so many forward passes
    over `width` tokens of all rows together, if the weights allow it: for any number of tokens
    where products are float32, for a few where they are bfloat16, never for models so small that
    they stay in cache."""
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    if steps < MANY_STEPS or sum(weight.numel() for weight in weights) <= _SMALL:
        return False
    finer = any(weight.dtype == torch.float32 for weight in weights)
    return finer or width <= _FEW_TOKENS or not fast_bfloat16(weights[0].device)


def choose_layout(model: nn.Module, steps: int, width: int) -> Layout:
    """The layout for so many forward passes over so many tokens of all rows together."""
    if not worth_copying(model, steps):
        return "kept"
    if not (prefers_halves(model, steps, width) and halves_work()):
        return "blocks"
    linear = [module for module in model.modules() if hasattr(module, "in_features")]
    if any(type(module) is not nn.Linear for module in linear):
        return "blocks"
    fits = all(fits_half(cast(Tensor, module.weight)) for module in linear)
    return "halves" if fits else "blocks"


def is_quantised(model: nn.Module) -> bool:
    """Whether it has weights in 8 or 4 bits, whose products round states themselves: in float32
    norms and rotations are quicker."""
    return any(isinstance(module, QuantisedLinear) for module in model.modules())


def fits_half(weight: Tensor) -> bool:
    """Whether float16 keeps a matrix, times a power of two, but for 2^−36 of its largest number:
    true of what was bfloat16 or float16 once."""
    lift = _lift(weight)
    if weight.dtype == torch.bfloat16 or lift is None:
        return lift is not None
    for part in (weight[:1], weight):  # the first row of other float32 weights says no
        lifted = part.detach() * lift
        if float((lifted.half().float() - lifted).abs().amax()) > _LOST * 2**_TOP:
            return False
    return True


def _lift(weight: Tensor) -> float | None:
    """A power of two that takes the largest number of a matrix below 2^14; None if it has numbers
    that are not finite, or none above 2^−100 but zeros. 1 for bfloat16 where what is lost without,
    2^−25, is little beside its own rounding."""
    low, high = torch.aminmax(weight.detach())
    top = max(-float(low), float(high))
    exponent = math.frexp(top)[1]
    if weight.dtype == torch.bfloat16 and _LEAST <= top < 2**_TOP:
        return 1.0
    return 2.0 ** (_TOP - exponent) if math.isfinite(top) and exponent > -100 else None


def widened(model: Transformer) -> Transformer:
    """A copy that keeps states and norms in float32; linear maps and embeddings are the model's
    own."""
    kept = (nn.Linear, nn.Embedding, QuantisedLinear)
    wide = deepcopy(model, {id(m): m for m in model.modules() if isinstance(m, kept)})
    for module in wide.modules():
        if not isinstance(module, kept):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    wide.stream_dtype = torch.float32
    return wide


def is_quicker_wide(model: nn.Module) -> bool:
    """Whether a bfloat16 model had better be read in float32, which is finer, too: up to 4 M
    weights, or all on a CPU that has no bfloat16 products (`fast_bfloat16`). A bfloat16 product
    takes 16 µs at least, a float32 one 4, and norms and rotations need no casts: a step of the
    demo's model took 1.2 ms instead of 2.9."""
    weights = list(model.parameters())
    if all(weight.dtype != torch.bfloat16 for weight in weights):
        return False
    small = sum(weight.numel() for weight in weights) <= _SMALL
    return small or not fast_bfloat16(weights[0].device)


def product(modules: Sequence[nn.Module], layout: Layout) -> Product:
    """x `[..., D]` → the modules' results side by side, `[..., O]`, in memory of its own.

    Args:
        modules: linear maps of the same input. Ones that are not plain `nn.Linear` (an adapter, a
            quantised layer) are called as they are.
        layout: unless it is "kept", the weights are copied; later changes to them go unseen. In
            "halves" all weights must be as `choose_layout` wants them, and x be float32.
    """
    quantised = [module for module in modules if isinstance(module, QuantisedLinear)]
    if len(quantised) == len(modules) and (one := QuantisedLinear.joined(quantised)) is not None:
        return one.product()
    weights = [m.weight for m in modules if type(m) is nn.Linear]
    if layout == "halves" and len(weights) == len(modules):
        return _Halves(cast(Sequence[nn.Linear], modules))
    if layout == "kept" or len(weights) < len(modules) or _biased(modules):
        return modules[0] if len(modules) == 1 else partial(_side_by_side, modules)
    weight = torch.cat(weights)  # [O, D]
    if weight.dtype == torch.float32 and weight.numel() <= _TRANSPOSED:
        return partial(_times, weight.t().contiguous())
    if not blocks_work(weight.dtype):
        return partial(F.linear, weight=weight)
    return partial(_in_blocks, torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS))


def _biased(modules: Sequence[nn.Module]) -> bool:
    return any(getattr(module, "bias", None) is not None for module in modules)


def _side_by_side(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    return torch.cat([module(x) for module in modules], -1)


def _times(transposed: Tensor, x: Tensor) -> Tensor:
    return x @ transposed


class _Halves:
    """Linear maps side by side, in float16; many rows of a bfloat16 model in its own format."""

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        weights = [module.weight.detach() for module in modules]
        lifts = [_lift(weight) or math.nan for weight in weights]  # none is 0
        weight = torch.cat([w.float() * x for w, x in zip(weights, lifts, strict=True)])  # [O, D]
        biases = [
            weight.new_zeros(len(w)) if m.bias is None else m.bias
            for m, w in zip(modules, weights, strict=True)
        ]
        self._bias = torch.cat([b.detach().float() for b in biases]) if _biased(modules) else None
        self._times = _in_halves()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
        self._lowered = None  # [O]
        if any(lift != 1 for lift in lifts):
            lowered = [torch.full((len(w),), 1 / x) for w, x in zip(weights, lifts, strict=True)]
            self._lowered = torch.cat(lowered)
        own = weights[0].dtype == torch.bfloat16 and fast_bfloat16(weight.device)
        self._weights = weights if own else []  # for many rows

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor
        if self._weights and x.numel() > _HALF_ROWS * x.shape[-1]:
            rows = x.bfloat16()
            out = torch.cat([F.linear(rows, w) for w in self._weights], -1).float()
        else:
            out = self._times(x, self._packed)
            if self._lowered is not None:
                out.mul_(self._lowered)
        return out if self._bias is None else out.add_(self._bias)


@cache
def _in_halves() -> Callable[[Tensor, Any], Tensor]:
    """FBGEMM's product, without 4 µs of checks for traced objects.

    Raises:
        AttributeError: this PyTorch does not have it.
    """
    operator = torch.ops.quantized.linear_dynamic_fp16.default
    return cast(Callable[[Tensor, Any], Tensor], getattr(operator, "_op", operator))


def _in_blocks(blocks: Tensor, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, None, "none", [], "")
    return out


@cache
def halves_work() -> bool:
    """Whether this PyTorch has FBGEMM's float16 products and they are right."""

    def times(weight: Tensor, x: Tensor) -> Tensor:
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")  # draws nothing
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return _Halves([linear])(x)

    return _gives_linear(times, _drawn(48, 40).bfloat16().float())


@cache
def blocks_work(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's blocked products and they are right."""

    def times(weight: Tensor, x: Tensor) -> Tensor:
        return _in_blocks(torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS), x)

    return _gives_linear(times, _drawn(48, 40).to(dtype))


def _gives_linear(times: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> bool:
    """Whether `times(weight, x)` runs here and is `F.linear(x, weight)`, up to rounding."""
    x = _drawn(2, 3, weight.shape[1]).to(weight.dtype)
    try:
        found = times(weight, x)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    wanted, scale = F.linear(x, weight), 32 * torch.finfo(weight.dtype).eps
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=scale, atol=scale)


def _drawn(*shape: int) -> Tensor:
    """Numbers that are the same each time; the process's own chance is left alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
