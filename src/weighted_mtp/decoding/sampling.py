"""From logits to the distribution that a token is drawn from: pure functions, and their settings.

The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p, each on what the
one before left over, renormalised at the end.

Letters: B batch, V vocabulary; `...` any leading dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["auto", "exact", "fast"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_p: keep the smallest set of likeliest tokens whose probability reaches it (Holtzman et
            al. 2020, arXiv 1904.09751); 1 keeps all.
        seed: the same seed (and row seeds) gives the same text.
        top_k: keep this many of the likeliest tokens; None keeps all.
        min_p: drop tokens less likely than `min_p` times the likeliest (Nguyen et al. 2024,
            arXiv 2407.01082); 0 drops none.
        repetition_penalty: logits of tokens in the prompt or the text so far are divided by it
            where positive, multiplied where negative (Keskar et al. 2019, arXiv 1909.05858); 1 is
            none.
        ties: what greedy decoding does where two tokens are as good as tied (`decoding.greedy`).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    ties: Ties = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1 (or None, for all), got {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty must be above 0 (1: none), got {self.repetition_penalty}"
            )
        if self.ties not in ("auto", "exact", "fast"):
            raise ValueError(f"ties must be auto, exact or fast, got {self.ties!r}")

    @property
    def greedy(self) -> bool:
        """No chance is involved."""
        return self.temperature == 0


def penalise(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """Logits `[..., V]` with tokens marked in `seen` (bool, same shape) made less likely."""
    if seen is None or penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution `[..., V]` that a token is drawn from, in float32 or better.

    The repetition penalty is `penalise`'s, before. Temperature 0 puts all on the likeliest token,
    the one with the lowest id if several are.
    """
    if sampling.greedy:
        best = logits.argmax(-1, keepdim=True)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return torch.zeros(logits.shape, dtype=dtype, device=logits.device).scatter_(-1, best, 1.0)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    probs = torch.softmax((wide - wide.amax(-1, keepdim=True)) / sampling.temperature, -1)
    if sampling.top_k is not None and sampling.top_k < probs.shape[-1]:
        probs = keep_top_k(probs, sampling.top_k)
    if sampling.top_p < 1:
        probs = keep_top_p(probs, sampling.top_p)
    if sampling.min_p > 0:
        probs = keep_min_p(probs, sampling.min_p)
    return probs / probs.sum(-1, keepdim=True)


def keep_top_k(probs: Tensor, k: int) -> Tensor:
    """Zero all but the `k` likeliest; exactly k stay, ties or not."""
    values, ids = probs.topk(k, -1)
    return torch.zeros_like(probs).scatter_(-1, ids, values)


def keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Zero all that is outside the smallest nucleus holding `top_p` of the whole."""
    ordered, order = probs.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # probability of all that is likelier
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(probs).scatter_(-1, order, ordered)


def keep_min_p(probs: Tensor, min_p: float) -> Tensor:
    """Zero all that is less likely than `min_p` times the likeliest."""
    return probs.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), 0.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """(p − q)⁺ `[..., V]`, renormalised: what a rejected draft from q is replaced from so that the
    outcome follows p (Leviathan et al. 2023, arXiv 2211.17192). Where p = q it is p: there nothing
    is rejected, save by rounding."""
    left = (p - q).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, p)
