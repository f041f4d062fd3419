"""What one more token in a forward pass costs here: the number that adaptive drafting goes by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch

from weighted_mtp.decoding.batch import first_heads
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.products import FEWEST_STEPS
from weighted_mtp.decoding.speculative import Speculation
from weighted_mtp.models.meta_mtp.transformer import Transformer

WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # measured for an automatic tree; between them lines


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


@torch.inference_mode()
def measure_pass_costs(
    model: Transformer, k: int | None = None, widths: Sequence[int] = WIDTHS, context: int = 32
) -> tuple[float, ...]:
    """`Speculation.pass_costs` for this model on this machine, of one row.

    Steps of all widths take turns, each with the guesses that follow it, after warming up; medians
    of seven. It takes about nine forward passes for each width.

    Args:
        k: heads in use, at least 2; None is n.
        widths: tokens read at once, rising from 1; those between are interpolated.
        context: tokens read before.

    Returns:
        Time of a pass over 1, 2, … `widths[-1]` tokens ÷ that over one; it never falls. Shorter
        where the model has no positions for the widest.

    Raises:
        ValueError: k exceeds the heads, or widths that do not rise from 1.
    """
    k = model.args.n_future_tokens if k is None else k
    if not 2 <= k <= model.args.n_future_tokens:
        raise ValueError(f"k={k} must be 2 … {model.args.n_future_tokens}, the model's heads")
    if widths[0] != 1 or any(a >= b for a, b in pairwise(widths)):
        raise ValueError(f"widths must rise from 1, got {widths}")
    context = max(1, min(context, model.max_positions - widths[-1]))
    widths = [width for width in widths if context + width <= model.max_positions]
    step = _Step(model, k, 1, context, widths[-1])
    turns = [[step.seconds(width, guess=True) for width in widths] for _ in range(9)]
    times = [statistics.median(times) for times in zip(*turns[2:], strict=True)]
    costs = [1.0]
    for i, width in enumerate(widths[1:], 1):
        before, share = widths[i - 1], (times[i] - times[i - 1]) / (width - widths[i - 1])
        costs += [(times[i - 1] + share * j) / times[0] for j in range(1, width - before + 1)]
    return tuple(accumulate(costs, max))


def measured_tree(model: Transformer, speculation: Speculation) -> Speculation:
    """`speculation` with a number of nodes: where its tree is "auto", adaptive by costs that are
    measured now.

    Raises:
        ValueError: as `measure_pass_costs`.
    """
    if speculation.tree != "auto":
        return speculation
    costs = measure_pass_costs(model, speculation.k)
    return replace(speculation, tree=len(costs), pass_costs=costs, adaptive=True)


class _Step:
    """A decoding step that can be timed."""

    def __init__(
        self, model: Transformer, k: int, batch_size: int, context: int, widest: int
    ) -> None:
        self._fast = FastModel(first_heads(model, k), FEWEST_STEPS, model.draft_ids)
        self._k = k
        device, length = model.tok_embeddings.weight.device, context + widest
        self._cache = self._fast.cache(batch_size, length)
        self._tokens = torch.zeros(batch_size, length, dtype=torch.long, device=device)
        self._context = context
        self._fast.read(self._tokens[:, :context], 0, self._cache)

    def seconds(self, width: int, guess: bool = False) -> float:
        """Read `width` tokens; guess after several, or always."""
        start, fast, context = time.perf_counter(), self._fast, self._context
        tokens = self._tokens[:, context : context + width]
        states, window = fast.read(tokens, context, self._cache)
        best = fast.output(states).argmax(-1)
        if guess or width > 1:
            last = [width - 1] * len(tokens)
            drafts = fast.drafts.logits(fast.guess(window, last, self._k - 1))
            best = torch.cat([best, drafts.argmax(-1)], 1)
        best.tolist()  # waits for the device
        return time.perf_counter() - start
