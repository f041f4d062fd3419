"""Decoding as it is defined, and as slow: one row at a time, no cache, all read again every time.

The tests hold the other decoders against this one. With the same seeds it also draws the same text
as plain decoding, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weighted_mtp.decoding.dice import Dice, Use
from weighted_mtp.decoding.greedy import by_definition, whole_logits
from weighted_mtp.decoding.plain import token_logprobs
from weighted_mtp.decoding.rows import Completion, Finish
from weighted_mtp.decoding.sampling import Sampling, penalise, probabilities
from weighted_mtp.decoding.stopping import Stopping
from weighted_mtp.models.meta_mtp.transformer import Transformer


@torch.inference_mode()
def complete_naively(
    model: Transformer,
    prompt: Sequence[int],
    stopping: Stopping,
    sampling: Sampling | None = None,
    row_seed: int = 0,
) -> Completion:
    """Continue one prompt; arguments and result as for `complete`."""
    sampling = sampling or Sampling()
    dice = Dice(sampling.seed, [row_seed], model.output.weight.device)
    tokens, scores, text = list(prompt), [], ""
    finish: Finish = "length"
    for _ in range(stopping.max_new_tokens):
        token = next_token(model, tokens, sampling, dice)
        if stopping.ends(token):
            finish = "eos"
            break
        logits = whole_logits(model, tokens)
        scores.append(float(token_logprobs(logits, torch.tensor(token, device=logits.device))))
        tokens.append(token)
        if stopping.decode is not None:
            text = stopping.decode(tokens[len(prompt) :])
        places = [text.find(string) for string in stopping.strings if string in text]
        if places:
            text, finish = text[: min(places)], "stop"
            break
    return Completion(tokens[len(prompt) :], text, scores, finish)


def next_token(model: Transformer, tokens: Sequence[int], sampling: Sampling, dice: Dice) -> int:
    """The token after `tokens`."""
    if sampling.greedy:
        return by_definition(model, tokens, sampling)
    logits = whole_logits(model, tokens)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[torch.tensor(list(tokens), device=logits.device)] = True
    probs = probabilities(penalise(logits, seen, sampling.repetition_penalty), sampling)
    uniforms = dice.uniforms([len(tokens)], 1, Use.SAMPLE)[0, 0]
    return int(dice.pick(probs, uniforms))
