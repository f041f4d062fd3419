"""Token weights from the policy's own loss: no critic, no reference model.

    DFT:       w[b, t, k] = p(x_{t+k}) = exp(−CE[b, t, k])
    surprise:  z_j = (CE_j − mean) / std over the response of its row, CE_j under head 1
               w_j = clamp(exp(−β · max(z_j, 0)))

DFT is Dynamic Fine-Tuning (Wu et al. 2025, arXiv 2508.05629). Pure tensor functions without a
gradient. Cross-entropies are in nats. Sums and exponentials are taken in float64: in float32 they
depend on the padding, and so on how a step is cut.

Letters: B batch, S sequence, n future tokens (heads).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def probability_weights(ce: Tensor, valid: Tensor) -> Tensor:
    """The probability that the policy gives each target.

    Args:
        ce: `[B, S, n]` the policy's cross-entropy of each head; anything where not valid.
        valid: `[B, S, n]` bool, whether there is a target.

    Returns:
        `[B, S, n]` float32 in [0, 1], detached; 0 where not valid.
    """
    probability = ce.detach().double().neg().exp()
    return torch.where(valid, probability, 0.0).float()


def surprise_scores(ce: Tensor, mask: Tensor) -> Tensor:
    """How far the loss of a token lies above the mean of its row, in standard deviations.

    Args:
        ce: `[B, S]` the cross-entropy of each token; anything off the mask.
        mask: `[B, S]` bool, the tokens whose loss is known.

    Returns:
        `[B, S]` float64 z with mean 0 and (population) variance 1 over the mask of each row,
        detached; 0 off the mask, and in rows whose tokens all have the same loss.
    """
    known = torch.where(mask, ce.detach().double(), 0.0)
    count = mask.sum(1, keepdim=True).clamp(min=1)
    centred = torch.where(mask, known - known.sum(1, keepdim=True) / count, 0.0)
    std = (centred.square().sum(1, keepdim=True) / count).sqrt()
    # Below this the differences are rounding errors of the losses.
    flat = std <= 1e-6 * known.abs().amax(1, keepdim=True)
    return torch.where(flat, 0.0, centred / std.masked_fill(flat, 1.0))


def surprise_weights(
    scores: Tensor, beta: float = 1.0, min_weight: float = 0.1, max_weight: float = 1.0
) -> Tensor:
    """Weights that fall with the surprise of a token, and are 1 up to the mean.

    Args:
        scores: z of any shape.
        beta: how fast they fall; 0 gives every token the weight 1.
        min_weight, max_weight: bounds.

    Returns:
        float32 of the same shape.
    """
    falling = (-beta * scores.detach().clamp(min=0)).exp()
    return falling.clamp(min_weight, max_weight).float()


def token_losses_of_head_one(ce: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Move the losses of head 1 from the positions that predict to the tokens.

    Args:
        ce: `[B, S, n]`.
        valid: `[B, S, n]` bool.

    Returns:
        ce and mask `[B, S + 1]` of each token; token 0 is predicted by no head.
    """
    return F.pad(ce[:, :, 0], (1, 0)), F.pad(valid[:, :, 0], (1, 0))


def spread_to_heads(weights: Tensor, valid: Tensor) -> Tensor:
    """Give every head the weight of the token it predicts.

    Args:
        weights: `[B, S + 1]` of each token.
        valid: `[B, S, n]` bool.

    Returns:
        `[B, S, n]`, `out[b, t, k − 1]` is the weight of token t + k, 1 if that lies past the end of
        `weights` (head 1 did not predict it), and 0 where not valid.
    """
    S, n = valid.shape[1:]
    ahead = F.pad(weights, (0, n - 1), value=1.0)
    aligned = torch.stack([ahead[:, k : k + S] for k in range(1, n + 1)], dim=2)
    return torch.where(valid, aligned, 0.0)
