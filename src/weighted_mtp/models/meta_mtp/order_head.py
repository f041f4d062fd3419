"""The second unembedding of the objective `top`, stored beside a model's own weights.

`order_head.safetensors` holds `weight`, `[V, D]`. Checkpoints of a run have it, so that training
goes on with it; exports do not: nothing that decodes uses it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.tensors import save_file
from weighted_mtp.models.meta_mtp.layouts.native import ORDER_HEAD_FILE

__all__ = ["ORDER_HEAD_FILE", "OrderHead", "read_order_head"]


class OrderHead(nn.Module):
    """`weight` `[V, D]`, N(0, std²) at first; the loss multiplies states by it, chunk by chunk."""

    def __init__(self, hidden_size: int, vocab_size: int, std: float = 0.02) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[…, D]` → `[…, V]`, the score of each token: the higher, the sooner it comes."""
        return nn.functional.linear(hidden_states, self.weight)

    def save_checkpoint(self, path: Path) -> None:
        """Write the head to one safetensors file."""
        save_file({"weight": self.weight.detach().cpu().contiguous()}, path)


def read_order_head(path: Path, shape: torch.Size) -> Tensor:
    """Read the weights that `OrderHead.save_checkpoint` wrote.

    Raises:
        UserError: the file is damaged, or belongs to a model of another shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weight: Tensor = file.get_tensor("weight")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: damaged order head ({error}); remove it to begin with a fresh one"
        ) from error
    if weight.shape != shape:
        raise UserError(
            f"{path}: has the shape {list(weight.shape)}, the model needs {list(shape)}; remove it "
            "to begin with a fresh one"
        )
    return weight
