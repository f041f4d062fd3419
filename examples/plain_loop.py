"""The loss alone in a plain PyTorch loop: accumulation over micro-batches, weights for tokens.

Any model works that gives n hidden states `[B, S, D]` and shares one unembedding `[V, D]`; here it
is a small one of ours, from scratch, on this very file.

    python examples/plain_loop.py --steps 20

Letters: B rows, S positions, n heads, D width, V vocabulary.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import weighted_mtp as wm

ROWS, LENGTH, HEADS = 8, 64, 3


def batch(text: bytes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and labels `[B, S]`; labels are the tokens, −100 where there is no target."""
    starts = torch.randint(len(text) - LENGTH, (ROWS,), generator=generator).tolist()
    tokens = torch.tensor([list(text[start : start + LENGTH]) for start in starts])
    labels = tokens.clone()
    labels[:, :8] = -100  # a prompt, say
    return tokens, labels


def token_weights(targets: Tensor) -> Tensor:
    """`[B, S, n]`: spaces count half. Put your own signal here; it gets no gradient."""
    return torch.where(targets == ord(" "), 0.5, 1.0)


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batches", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = wm.Transformer(
        wm.ModelArgs(dim=64, n_layers=4, n_heads=4, vocab_size=256, n_future_tokens=HEADS)
    )
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = Path(__file__).read_bytes()
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(args.steps):
        tokens, labels = batch(text, generator)
        targets = wm.shift_labels(labels, HEADS)  # [B, S, n]
        counts = wm.count_targets(targets)  # [n], of the whole step: no mean of means
        total = 0.0
        for part in torch.arange(ROWS).chunk(args.micro_batches):
            states = model.head_states(tokens[part], return_all_heads=True)  # n × [B, S, D]
            weights = token_weights(targets[part])
            out = wm.mtp_loss(states, model.output.weight, targets[part], counts, weights)
            out.loss.backward()
            total += out.loss.item()  # parts add up to the loss of the step, however it is cut
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        if step % 5 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {total:.3f}")
    return losses


if __name__ == "__main__":
    main()
