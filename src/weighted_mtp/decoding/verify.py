"""Judging drafts: which of them stay, and the token that follows them. Pure functions.

A window holds a row's newest token and its drafts; p is the first head's distribution after each.
p[j] judges draft j, and the token after a drafts comes from p[a], so W distributions decide up to W
tokens. A row may take part in less than the whole window: `limit` tokens at most.

Letters: B batch, W window, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weighted_mtp.decoding.dice import Dice
from weighted_mtp.decoding.sampling import residual


@dataclass(frozen=True)
class Judged:
    """Tokens `[B, W]`, of which the first `count` `[B]` of a row are decided."""

    tokens: Tensor
    count: Tensor


@dataclass(frozen=True)
class LossyTypical:
    """**Lossy** typical acceptance (Cai et al. 2024, Medusa, arXiv 2401.10774): keep a draft whose
    probability exceeds min(`epsilon`, `delta`·exp(−entropy of p)), whatever the best token is.

    More drafts stay, and the text is no longer the model's: neither greedy's nor its distribution.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.epsilon <= 1 and 0 < self.delta <= 1):
            raise ValueError(
                f"epsilon and delta must be in (0, 1], got {self.epsilon} and {self.delta}"
            )


def matches(best: Tensor, drafts: Tensor, limit: Tensor) -> Judged:
    """Greedy: drafts stay while they are the best tokens.

    Args:
        best: `[B, W]` most likely tokens.
        drafts: `[B, W - 1]`.
        limit: `[B]`, 1 … W.
    """
    return Judged(best, 1 + _leading(drafts == best[:, :-1], limit))


def rejection(
    p: Tensor, q: Tensor, drafts: Tensor, limit: Tensor, dice: Dice, chances: Tensor, draws: Tensor
) -> Judged:
    """Speculative sampling (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, 2302.01318):
    draft x stays with probability min(1, p(x)/q(x)), the first that does not is replaced from
    (p − q)⁺, and after the last comes a token of p. Every token then has exactly distribution p,
    given those before it, if the drafts were drawn from q.

    Args:
        p: `[B, W, V]`, given the drafts before.
        q: `[B, W - 1, V]`.
        drafts: `[B, W - 1]` drawn from q.
        limit: `[B]`, 1 … W, settled before the drafts were seen.
        dice: turns uniform numbers into decisions.
        chances, draws: `[B, W - 1]` and `[B, W]` uniform numbers of each position, for judging and
            for drawing.
    """
    at = drafts[..., None]
    ratio = (p[:, :-1].gather(-1, at) / q.gather(-1, at))[..., 0].clamp(max=1)  # [B, W - 1]
    kept = _leading(dice.accepts(ratio, chances), limit)  # [B]
    rows = torch.arange(len(p), device=p.device)
    after = p[rows, kept]  # [B, V]
    if q.shape[1]:
        judged = (kept < limit - 1)[:, None]  # else all drafts stayed: nothing to take away
        draft = q[rows, kept.clamp(max=q.shape[1] - 1)]
        after = torch.where(judged, residual(after, draft), after)
    return _followed(drafts, kept, dice.pick(after, draws[rows, kept]))


def typical(
    p: Tensor, drafts: Tensor, limit: Tensor, rule: LossyTypical, dice: Dice, draws: Tensor | None
) -> Judged:
    """Lossy: drafts stay while they are typical of p `[B, W, V]`; what follows is drawn from p, or
    is its best token where `draws` is None."""
    judged = p[:, :-1]
    entropy = torch.special.entr(judged).sum(-1)  # [B, W - 1]
    least = (rule.delta * torch.exp(-entropy)).clamp(max=rule.epsilon)
    kept = _leading(judged.gather(-1, drafts[..., None])[..., 0] > least, limit)
    rows = torch.arange(len(p), device=p.device)
    after = p[rows, kept]
    token = after.argmax(-1) if draws is None else dice.pick(after, draws[rows, kept])
    return _followed(drafts, kept, token)


def _leading(right: Tensor, limit: Tensor) -> Tensor:
    """How many drafts `[B]` stay: all before the first wrong one, below the limit."""
    within = torch.arange(right.shape[1], device=right.device) < (limit - 1)[:, None]
    return (right & within).long().cumprod(1).sum(1)


def _followed(drafts: Tensor, kept: Tensor, token: Tensor) -> Judged:
    tokens = torch.cat([drafts, token[:, None]], 1)
    return Judged(tokens.scatter(1, kept[:, None], token[:, None]), kept + 1)
