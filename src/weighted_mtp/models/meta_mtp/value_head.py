"""The critic's head: one unbounded number for each hidden state.

Letters: B batch, S sequence, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.tensors import save_file

HeadType = Literal["linear", "mlp"]


class ValueHead(nn.Module):
    """Predicts the expected reward from a (normalised) hidden state.

    Args:
        hidden_size: model width D.
        head_type: "linear" is one affine map; "mlp" puts a hidden layer of width D and a SiLU
            before it.

    The output layer starts at zero, so a fresh critic says 0 everywhere and its first TD errors
    hold the reward alone.
    """

    def __init__(self, hidden_size: int, head_type: HeadType = "linear") -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.head_type: HeadType = head_type
        self.hidden = nn.Linear(hidden_size, hidden_size) if head_type == "mlp" else None
        self.value = nn.Linear(hidden_size, 1)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise every parameter; the last layer to zero."""
        if self.hidden is not None:
            nn.init.normal_(self.hidden.weight, std=0.02)
            nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, S, D]` → `[B, S, 1]`, unbounded; in the format of the weights under autocast too,
        because TD errors are differences of nearly equal values."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            h = hidden_states.to(self.value.weight.dtype)
            if self.hidden is not None:
                h = F.silu(self.hidden(h))
            values: Tensor = self.value(h)
        return values

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the head to one safetensors file, replacing it only once it is whole."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        state = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        meta = {"hidden_size": str(self.hidden_size), "head_type": self.head_type}
        save_file(state, partial, metadata=meta)
        partial.replace(path)

    @classmethod
    def load_checkpoint(cls, path: str | Path, device: torch.device | str = "cpu") -> ValueHead:
        """Read a head written by `save_checkpoint`.

        Raises:
            UserError: the file is missing, damaged, or no value head.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such value head; train one with the critic recipe first")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                meta = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(
                f"{path}: damaged value head ({error}); copy or train it again"
            ) from error
        head_type = meta.get("head_type")
        if head_type not in ("linear", "mlp") or not meta.get("hidden_size", "").isdigit():
            raise UserError(
                f"{path}: not a value head (its header names no hidden_size, head_type)"
            )
        head = cls(int(meta["hidden_size"]), "mlp" if head_type == "mlp" else "linear").to(device)
        try:
            head.load_state_dict(state)
        except RuntimeError as error:
            summary = one_line(error)
            raise UserError(f"{path}: does not match its own header: {summary}") from error
        return head
