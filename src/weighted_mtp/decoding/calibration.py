"""What one more token in a forward pass costs here: the number that adaptive drafting goes by."""

from __future__ import annotations

import statistics
import time

import torch

from weighted_mtp.decoding.batch import first_heads
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.products import MANY_STEPS
from weighted_mtp.models.meta_mtp.transformer import Transformer


@torch.inference_mode()
def measure_token_cost(
    model: Transformer, k: int | None = None, batch_size: int = 1, context: int = 32
) -> float:
    """`Speculation.token_cost` for this model on this machine.

    A step of k tokens (with its guesses) and one of a single token take turns, after warming up;
    medians of nine. It takes about 24 forward passes.

    Args:
        k: tokens read at once; None is n, the model's heads.
        batch_size: rows that are decoded together: the more, the dearer a token.
        context: tokens read before.

    Returns:
        (time of k ÷ time of one − 1) ÷ (k − 1), at least 0; 0 for k = 1.

    Raises:
        ValueError: k exceeds the heads, or context and k the model's positions.
    """
    k = model.args.n_future_tokens if k is None else k
    if not 1 <= k <= model.args.n_future_tokens:
        raise ValueError(f"k={k} must be 1 … {model.args.n_future_tokens}, the model's heads")
    if k == 1:
        return 0.0
    step = _Step(model, k, batch_size, context, k)
    for _ in range(3):
        step.seconds(1), step.seconds(k)
    pairs = [(step.seconds(1), step.seconds(k)) for _ in range(9)]
    one, many = statistics.median(pair[0] for pair in pairs), statistics.median(p[1] for p in pairs)
    return max(0.0, (many / one - 1) / (k - 1))


class _Step:
    """A decoding step that can be timed."""

    def __init__(
        self, model: Transformer, k: int, batch_size: int, context: int, widest: int
    ) -> None:
        self._fast = FastModel(first_heads(model, k), MANY_STEPS, model.draft_ids, 2 * batch_size)
        self._k = k
        device, length = model.tok_embeddings.weight.device, context + widest
        self._cache = self._fast.cache(batch_size, length)
        self._tokens = torch.zeros(batch_size, length, dtype=torch.long, device=device)
        self._context = context
        self._fast.read(self._tokens[:, :context], 0, self._cache)

    def seconds(self, width: int) -> float:
        """Read `width` tokens; guess after several."""
        start, fast, context = time.perf_counter(), self._fast, self._context
        tokens = self._tokens[:, context : context + width]
        states, window = fast.read(tokens, context, self._cache)
        best = fast.output(states).argmax(-1)
        if width > 1:
            last = [width - 1] * len(tokens)
            drafts = fast.drafts.logits(fast.guess(window, last, self._k - 1))
            best = torch.cat([best, drafts.argmax(-1)], 1)
        best.tolist()  # waits for the device
        return time.perf_counter() - start
