"""Greedy choices that do not depend on how the logits came about.

The same logits, computed one token at a time, several at a time or in a batch, differ in their
last bits, and where two tokens are as good as tied that can change which is chosen. So greedy
decoding has one definition, here and everywhere in this room: **the likeliest token when the row's
whole text is read at once, alone and without a cache** (lowest id first). A cached reading is
trusted only where one token leads by more than rounding can explain; elsewhere the definition is
carried out.

If no two readings of one text differ, in the difference of two logits, by the margin or more, then
plain and speculative decoding, at any k and in any batch, give the very tokens of the definition:
a lead of at least the margin in one reading is a lead in every other, and what leads by less is
decided by the definition itself.

Measured (random models of 6 and 12 blocks, the demo's model and SmolLM2-135M on a CPU; windows of
1 … 7 tokens and ragged rows by `FastModel`, its weights copied or not, against whole readings): the
difference of any two logits changes by at most 126 units of the last place, relative to the largest
logit, in float32 and float64 (of the two best: 49), and by 9 in bfloat16 and float16 (the two best:
4). (From float16 copies a logit of SmolLM2-135M is at most 25 and 1.3 units off that of float64;
from the weights as they lie 15 and 3.4.) The margins are 1024 and 16. In float32 about one token in
a thousand needs a second reading, so there it is always done. In bfloat16 a quarter of a trained
model's tokens are within the margin and three quarters of a random one's: there `ties="exact"`
costs a reading of the whole text for each, several times the work, and must be asked for. Without
it plain and speculative bfloat16 texts differed in 0 of 64 rows of the trained model (27 tokens
each) and in 20 of 32 of the random one (64 tokens each).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weighted_mtp.decoding.sampling import Sampling, penalise
from weighted_mtp.models.meta_mtp.transformer import Transformer

FINE_UNITS, COARSE_UNITS = 1024, 16


def tie_margin(model: Transformer, sampling: Sampling) -> float:
    """Lead, as a share of the largest logit, from which a cached reading is trusted; 0: always.

    `auto` asks for it in float32 and float64 (with full-precision matrix products), `exact` in
    every format, `fast` in none.
    """
    weight = model.output.weight
    kind, dtype = weight.device.type, weight.dtype
    if not weight.is_floating_point():  # quantised: its products are rounded to bfloat16
        dtype = torch.bfloat16
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.bfloat16
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    unit, coarse = torch.finfo(dtype).eps, dtype in (torch.bfloat16, torch.float16)
    if sampling.ties == "fast" or (sampling.ties == "auto" and coarse):
        return 0.0
    penalty = max(sampling.repetition_penalty, 1 / sampling.repetition_penalty)
    return unit * penalty * (COARSE_UNITS if coarse else FINE_UNITS)


def contested(logits: Tensor, margin: float) -> Tensor:
    """Where `[...]` the best of `[..., V]` leads by no more than `margin` of the largest logit.

    True as well where a logit is not a number.
    """
    low, high = torch.aminmax(logits, dim=-1, keepdim=True)
    lead = margin * torch.maximum(high.abs(), low.abs())
    return (logits >= high - lead).sum(-1) != 1


def whole_logits(model: Transformer, tokens: Sequence[int]) -> Tensor:
    """Logits `[V]` of the token after `tokens`: the row alone, no cache, one unembedding."""
    ids = torch.tensor([list(tokens)], device=model.output.weight.device)
    logits: Tensor = model.output(model.head_states(ids)[0][:, -1])
    return logits[0]


def by_definition(model: Transformer, tokens: Sequence[int], sampling: Sampling) -> int:
    """The greedy token after `tokens`."""
    logits = whole_logits(model, tokens)
    seen = None
    if sampling.repetition_penalty != 1:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[torch.tensor(list(tokens), device=logits.device)] = True
    return int(penalise(logits, seen, sampling.repetition_penalty).argmax())
