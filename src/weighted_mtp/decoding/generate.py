"""Plain decoding with a KV cache, for batches of prompts of any lengths.

Prompts are padded on the right and read in one pass. From then on every row writes at its own
position; what padding left in the cache is overwritten before any query can see it (`kv_cache`).

Letters: B batch, S longest prompt, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weighted_mtp.models.meta_mtp.kv_cache import KVCache
from weighted_mtp.models.meta_mtp.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_p: sample from the smallest set of tokens whose probability reaches it (Holtzman et al.
            2020, arXiv 1904.09751).
        seed: of the generator; the same seed gives the same text.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_id: int | None = None,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens` tokens, or to its EOS.

    Args:
        prompts: token ids, at least one each; lengths may differ.
        eos_id: ends a row; it is not part of the result.
        sampling: greedy by default.

    Returns:
        The new tokens of each row, in order.

    Raises:
        ValueError: an empty prompt, or prompt plus new tokens exceed the model's positions.
    """
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    sampling = sampling or Sampling()
    weight = model.tok_embeddings.weight
    B, S, device = len(prompts), max(map(len, prompts)), weight.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)  # [B]
    tokens = torch.zeros(B, S, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt, device=device)
    cache = KVCache(model.args, B, S + max_new_tokens, device, weight.dtype)
    generator = torch.Generator(device).manual_seed(sampling.seed)

    hidden = model.head_states(tokens, 0, cache=cache)[0]  # [B, S, D]
    last = hidden[torch.arange(B, device=device), lengths - 1]  # [B, D]
    new = torch.zeros(B, max_new_tokens, dtype=torch.long, device=device)
    done = torch.zeros(B, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        chosen = choose(model.output(last), sampling, generator)  # [B]
        new[:, step] = chosen
        if eos_id is not None:
            done |= chosen == eos_id
            if bool(done.all()):
                break
        if step + 1 < max_new_tokens:
            last = model.head_states(chosen[:, None], lengths + step, cache=cache)[0][:, 0]
    return [_until(row, eos_id) for row in new[:, : step + 1].tolist()]


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token `[B]` from logits `[B, V]`, in float32."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.float() / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, order = probs.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of all that is likelier
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ordered)
    return torch.multinomial(probs, 1, generator=generator).squeeze(-1)


def _until(row: list[int], eos_id: int | None) -> list[int]:
    return row[: row.index(eos_id)] if eos_id in row else row
