"""Plain decoding with the next-token head: one prompt at a time, one token at a time.

V is the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vendor.meta_llama.model import Transformer


def sample_top_p(probs: Tensor, top_p: float) -> int:
    """Draw from the likeliest tokens: each is kept if those before it hold at most `top_p`."""
    sorted_probs, token_ids = torch.sort(probs, descending=True)  # [V], [V]
    mass_before = torch.cumsum(sorted_probs, dim=0) - sorted_probs
    kept = torch.where(mass_before > top_p, 0.0, sorted_probs)
    # multinomial takes unnormalised weights, so the kept mass need not be rescaled.
    return int(token_ids[torch.multinomial(kept, num_samples=1)])


class Llama:
    def __init__(self, model: Transformer, eos_id: int | None = None) -> None:
        self.model = model
        self.eos_id = eos_id

    def generate(
        self,
        prompt_tokens: list[list[int]],
        max_gen_len: int,
        temperature: float = 0.6,
        top_p: float = 0.9,
    ) -> list[list[int]]:
        """The new tokens of each prompt, without the prompt and without the final EOS.

        Temperature 0 is greedy. A continuation also ends where the sequence would exceed
        `max_seq_len`.
        """
        return [
            self._generate_one(prompt, max_gen_len, temperature, top_p) for prompt in prompt_tokens
        ]

    def _generate_one(
        self, prompt: Sequence[int], max_gen_len: int, temperature: float, top_p: float
    ) -> list[int]:
        max_seq_len = self.model.args.max_seq_len
        if not 1 <= len(prompt) <= max_seq_len:
            raise ValueError(f"prompt of {len(prompt)} tokens; needs 1 … {max_seq_len}")
        tokens = list(prompt)
        start_pos = 0  # tokens before this are in the cache
        while len(tokens) < min(len(prompt) + max_gen_len, max_seq_len):
            new = torch.tensor([tokens[start_pos:]], device=self.model.output.weight.device)
            logits = self.model(new, start_pos)[0, -1, 0]  # [V]
            start_pos = len(tokens)
            if temperature == 0:
                token = int(torch.argmax(logits))
            else:
                token = sample_top_p(torch.softmax(logits.double() / temperature, dim=-1), top_p)
            if token == self.eos_id:
                break
            tokens.append(token)
        return tokens[len(prompt) :]
