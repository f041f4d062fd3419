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

In bfloat16 the results are the same bits; in float32 they differ by rounding. A copy takes about
0.7 s a gigabyte to make (what ten steps save) and as much memory as the weights, while it lives.
Hence the rule, `worth_copying`. oneDNN's blocks are reached through operators that TorchInductor
uses and PyTorch does not document: where they are missing, or do not give `F.linear`'s results,
the weights are used as they lie.

Letters: M rows, D inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.core.device import fast_bfloat16
from weighted_mtp.models.meta_mtp.quantised import QuantisedLinear

Product = Callable[[Tensor], Tensor]

MOST_BYTES = 2 << 30  # of weights that are copied: a copy of a 7B model must be nobody's surprise
FEWEST_STEPS = 16
_TRANSPOSED = (
    1 << 18
)  # float32 weights up to this number (1 MB) are quicker transposed than in blocks
_SMALL = 4 << 20  # weights: 16 MB in float32, which stay in cache
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


def product(modules: Sequence[nn.Module], copy: bool) -> Product:
    """x `[..., D]` → the modules' results side by side, `[..., O]`, in memory of its own.

    Args:
        modules: linear maps of the same input. Ones that are not plain `nn.Linear` (an adapter, a
            quantised layer) are called as they are.
        copy: the weights may be copied into a better layout; later changes to them go unseen.
    """
    quantised = [module for module in modules if isinstance(module, QuantisedLinear)]
    if len(quantised) == len(modules) and (one := QuantisedLinear.joined(quantised)) is not None:
        return one
    weights = [m.weight for m in modules if type(m) is nn.Linear]
    if not copy or len(weights) < len(modules) or _biased(modules):
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


def _in_blocks(blocks: Tensor, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, None, "none", [], "")
    return out


@cache
def blocks_work(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's blocked products and they are right."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 40, generator=chance).to(dtype)
    x = torch.randn(2, 3, 40, generator=chance).to(dtype)
    try:
        blocks = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        found = _in_blocks(blocks, x)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    wanted, scale = F.linear(x, weight), 32 * torch.finfo(dtype).eps
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=scale, atol=scale)
