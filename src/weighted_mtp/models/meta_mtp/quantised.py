"""Weights in 8 or 4 bits, for decoding on a CPU: a step there takes as long as reading the weights.

Only matrices are quantised, and only in memory; the rest of the arithmetic stays as it is. `int8`
has one scale for each row of W; `int4` one scale and offset for every 32 inputs of a row, and its
unembedding, which decides between tokens, in `int8`. Operands and results of a product are rounded
to bfloat16 and added up in float32, and a row's results are the same bits in any batch of up to 32.
The kernels are PyTorch's own, those that torchao uses too.

Letters: O outputs, D inputs, G groups of 32 inputs, M rows of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.core.device import fast_bfloat16
from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.transformer import Transformer, TransformerBlock

Bits = Literal["int8", "int4"]
BITS: tuple[Bits, ...] = get_args(Bits)
_GROUP = 32  # inputs that share a scale in int4
_ROWS = 32  # up to which the kernel for 8 bits is quicker than a product with widened weights
_TOGETHER = 64  # outputs that the kernel for 4 bits keeps together, at most (with AVX-512)
_STRIDE = 16  # inputs that the kernel for 8 bits reads at a time, past the end of a row if need be


class QuantisedLinear(nn.Module):
    """A linear map whose weights have 8 or 4 bits.

    Args:
        weight: `[O, D]` int8, D filled up with zeros to a multiple of 16, or `[O, D / 2]` bytes as
            the kernel for 4 bits wants them.
        scales: `[O]`, or `[G, O, 2]` scales and offsets; bfloat16.
        bias: `[O]`, as it was stored; None for a map without.
        whole: the map of whose outputs this has some, in the same memory.
        start: the first of them.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scales: Tensor,
        bits: Bits,
        bias: Tensor | None = None,
        whole: QuantisedLinear | None = None,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.bits, self.start = bits, start
        self._whole = None if whole is None else (whole,)  # in a tuple: not a submodule
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, weight: Tensor, bits: Bits, bias: Tensor | None = None) -> QuantisedLinear:
        """The nearest such map to `weight` `[O, D]`; in 8 bits where 4 do not fit the kernel."""
        outputs, inputs = weight.shape
        if bits == "int4" and inputs % _GROUP == 0 and outputs % _TOGETHER == 0:
            return cls(*_four_bits(weight.detach().float()), "int4", bias)
        return cls(*_eight_bits(weight.detach().float()), "int8", bias)

    def part(self, start: int, stop: int) -> QuantisedLinear:
        """Outputs `start` … `stop` − 1."""
        scales = self.scales[start:stop] if self.bits == "int8" else self.scales[:, start:stop]
        whole = self if self._whole is None else self._whole[0]
        weight, first = self.weight[start:stop], self.start + start
        bias = None if self.bias is None else self.bias[start:stop]
        return QuantisedLinear(weight, scales.contiguous(), self.bits, bias, whole, first)

    @staticmethod
    def joined(parts: Sequence[QuantisedLinear]) -> QuantisedLinear | None:
        """Neighbouring parts of one map as one; None if they are not."""
        if len(parts) == 1:
            return parts[0]
        wholes, end = {part._whole for part in parts}, parts[0].start
        for part in parts:
            if part.start != end:
                return None
            end += len(part.weight)
        (whole,) = wholes if len(wholes) == 1 else (None,)
        return None if whole is None else whole[0].part(parts[0].start, end)

    def product(self) -> Callable[[Tensor], Tensor]:
        """`forward` as a plain function of the weights as they are now: some µs less a call."""
        if self.bias is not None:
            return self
        return partial(_times, self.weight, self.scales.to(torch.bfloat16), self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` → `[..., O]`."""
        scales = self.scales.to(torch.bfloat16)  # what they are, unless the model was converted
        out = _times(self.weight, scales, self.bits, x)
        return out if self.bias is None else out + self.bias.to(x.dtype)


def _times(weight: Tensor, scales: Tensor, bits: Bits, x: Tensor) -> Tensor:
    """`[..., D]` → `[..., O]`, of the dtype of `x`."""
    rows = x.reshape(-1, x.shape[-1]).bfloat16()  # [M, D]
    missing = weight.shape[1] - rows.shape[1]
    if bits == "int8" and missing:  # an empty pad would copy the rows
        rows = F.pad(rows, (0, missing))
    out: Tensor
    if bits == "int4":
        out = torch.ops.aten._weight_int4pack_mm_for_cpu.default(rows, weight, _GROUP, scales)
    elif len(rows) <= _ROWS:
        out = torch.ops.aten._weight_int8pack_mm.default(rows, weight, scales)
    else:
        wide = torch.bfloat16 if fast_bfloat16(x.device) else torch.float32
        out = F.linear(rows.to(wide), weight.to(wide)).float() * scales
        out = out.bfloat16()
    return out.to(x.dtype).view(*x.shape[:-1], -1)


def _eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers and scales of `[O, D]`, symmetric."""
    # Rounded up before they are used, so that rounding them costs nothing, and nothing is cut.
    scales = (weight.abs().amax(1) / 127 * (1 + 2**-7)).clamp(min=1e-30).bfloat16()
    numbers = (weight / scales.float()[:, None]).round_().to(torch.int8)
    return F.pad(numbers, (0, -weight.shape[1] % _STRIDE)), scales


def _four_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Packed numbers, and scales and offsets of `[O, D]`: w = (q − 8) · scale + offset."""
    groups = weight.view(len(weight), -1, _GROUP)  # [O, G, 32]
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15 * (1 + 2**-7)).clamp(min=1e-30).bfloat16()
    offsets = (low + 8 * scales.float()).bfloat16()  # [O, G]
    numbers = (groups - offsets.float()[..., None]) / scales.float()[..., None] + 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        numbers.round_().clamp_(0, 15).to(torch.int32).view_as(weight), 1
    )
    return packed, torch.stack([scales.t(), offsets.t()], -1).contiguous()


@torch.no_grad()
def quantise(model: Transformer, bits: Bits) -> None:
    """Replace a model's matrices by quantised ones, one after the other; the embeddings and norms
    stay, in float32 on a CPU without bfloat16. For inference: nothing can be trained any more.

    Raises:
        UserError: the model is not on a CPU.
    """
    device = model.tok_embeddings.weight.device
    if device.type != "cpu":
        raise UserError(f"{bits} weights are for decoding on a CPU, not on {device}; use bfloat16")
    model.requires_grad_(False)
    model.output = cast(nn.Linear, QuantisedLinear.of(model.output.weight, "int8"))
    for block in [*model.layers, *model.extra_heads]:
        attention, feed_forward = cast(TransformerBlock, block).attention, block.feed_forward
        _replace(attention, ("wq", "wk", "wv"), bits)
        _replace(attention, ("wo",), bits)
        _replace(cast(nn.Module, feed_forward), ("w1", "w3"), bits)
        _replace(cast(nn.Module, feed_forward), ("w2",), bits)
    if not fast_bfloat16(device):
        for parameter in model.parameters():
            parameter.data = parameter.data.float()


def _replace(module: nn.Module, names: Sequence[str], bits: Bits) -> None:
    """Quantise maps of one input together, so that decoding multiplies by all of them at once;
    each by itself where the kernel for 4 bits would keep outputs of two of them together."""
    maps = [cast(nn.Linear, module.get_submodule(name)) for name in names]
    crossed = bits == "int4" and any(each.out_features % _TOGETHER for each in maps)
    if crossed and len(maps) > 1:
        for name in names:
            _replace(module, (name,), bits)
        return
    bias = None
    if all(each.bias is not None for each in maps):
        bias = torch.cat([each.bias for each in maps])
    whole = QuantisedLinear.of(torch.cat([each.weight for each in maps]), bits, bias)
    start = 0
    for name, each in zip(names, maps, strict=True):
        setattr(module, name, whole.part(start, start + each.out_features))
        start += each.out_features
