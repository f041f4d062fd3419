"""Weights from the policy's own loss, against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from weighted_mtp.value_weighting.policy_weighting import (
    probability_weights,
    spread_to_heads,
    surprise_scores,
    surprise_weights,
    token_losses_of_head_one,
)


def case(rows: int = 3, positions: int = 7, heads: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cross-entropies, NaN where not valid; responses with gaps."""
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(rows, positions + 1, generator=g) < 0.7
    target[:, 0] = False
    target[0] = False  # a row that only fills the batch
    ahead = torch.nn.functional.pad(target, (0, heads))
    valid = torch.stack([ahead[:, k : k + positions] for k in range(1, heads + 1)], 2)
    ce = torch.rand(rows, positions, heads, generator=g) * 6
    return ce.where(valid, math.nan), valid


def test_dft_is_the_probability_of_the_target():
    ce, valid = case()
    found = probability_weights(ce.requires_grad_(), valid)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    for b in range(3):
        for t in range(7):
            for k in range(3):
                p = math.exp(-ce[b, t, k].item()) if valid[b, t, k] else 0.0
                assert found[b, t, k].item() == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.7, 30.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_surprise_is_what_a_loop_over_rows_tokens_and_heads_finds(seed, beta):
    ce, valid = case(seed=seed)
    token_ce, mask = token_losses_of_head_one(ce, valid)
    scores = surprise_scores(token_ce, mask)
    found = spread_to_heads(surprise_weights(scores, beta, 0.2, 0.9), valid)
    for b in range(3):
        known = {t + 1: ce[b, t, 0].item() for t in range(7) if valid[b, t, 0]}
        mean = sum(known.values()) / max(1, len(known))
        std = math.sqrt(sum((x - mean) ** 2 for x in known.values()) / max(1, len(known)))
        for t in range(7):
            for k in range(1, 4):
                expected = 0.0
                if valid[b, t, k - 1]:
                    z = (known[t + k] - mean) / std if t + k in known else None
                    expected = 1.0  # nobody's next token within these positions: unknown
                    if z is not None:
                        expected = min(max(math.exp(-beta * max(z, 0.0)), 0.2), 0.9)
                assert found[b, t, k - 1].item() == pytest.approx(expected, rel=1e-6)
    if mask.any():
        assert scores[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert not scores[~mask].any()


def test_rows_without_spread_have_no_surprise():
    ce = torch.tensor([[3.0, 3.0, math.nan], [0.1, 5.0, 9.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [False, True, False], [True, True, True]])
    assert not surprise_scores(ce, mask).any()
    assert (surprise_weights(surprise_scores(ce, mask)) == 1).all()


def test_padding_changes_no_bit():
    ce, valid = case(positions=9, seed=3)
    token_ce, mask = token_losses_of_head_one(ce, valid)
    wide = [torch.nn.functional.pad(x, (0, 5)) for x in (token_ce, mask)]
    weights = [surprise_weights(surprise_scores(*x)) for x in ((token_ce, mask), wide)]
    assert torch.equal(weights[0], weights[1][:, :10])
