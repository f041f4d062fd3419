"""A transformer with its optional value head, under the two forward passes training needs.

Letters: B batch, S sequence, n future tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.checkpoints import (
    load_meta_mtp_model,
    open_checkpoint,
    value_head_path,
)
from weighted_mtp.models.meta_mtp.layouts.peft_files import Base
from weighted_mtp.models.meta_mtp.layouts.side_files import SideFiles
from weighted_mtp.models.meta_mtp.layouts.source import Source
from weighted_mtp.models.meta_mtp.order_head import OrderHead
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.models.meta_mtp.value_head import HeadType, ValueHead


class MetaLlamaMTPAdapter(nn.Module):
    """Owns a `Transformer` and, for the critic and verifiable stages, a `ValueHead`.

    The value head reads the normalised hidden state of the next-token path.

    Attributes:
        side_files: tokenizer files and generation settings of the folder that the model came from;
            they are saved with it.
        order_head: a second unembedding, which the objective `top` trains; None without it.
        base: what the adapters of the transformer (LoRA) are trained on; None where it has none.
    """

    def __init__(self, transformer: Transformer, value_head: ValueHead | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.side_files = SideFiles()
        self.base: Base | None = None
        self.value_head: ValueHead | None = None
        self.order_head: OrderHead | None = None
        if value_head is not None:
            self.attach_value_head(value_head)

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | Path | Source,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        initialize_value_head: bool = True,
    ) -> MetaLlamaMTPAdapter:
        """Load a checkpoint in any layout and from any place `load_meta_mtp_model` knows.

        Args:
            device: "auto" takes cuda, then mps, then cpu.
            dtype: number format of the weights; None keeps the stored one.
            initialize_value_head: True for critic and verifiable (the checkpoint's own value head
                when it has one, else a fresh one); False for Rho-1 and baseline.

        Raises:
            UserError: the checkpoint is missing, damaged or of an unknown layout.
        """
        source = model_path if isinstance(model_path, Source) else open_checkpoint(model_path)
        directory = source.directory
        transformer = load_meta_mtp_model(source, device=device, dtype=dtype)
        adapter = cls(transformer)
        adapter.side_files = SideFiles.read(directory)
        if initialize_value_head:
            stored = value_head_path(directory)
            adapter.attach_value_head(
                ValueHead.load_checkpoint(stored) if stored.is_file() else None
            )
        return adapter

    @property
    def args(self) -> ModelArgs:
        """The transformer's shape."""
        return self.transformer.args

    def attach_value_head(
        self, value_head: ValueHead | None = None, head_type: HeadType = "linear"
    ) -> ValueHead:
        """Give the adapter a value head (a fresh one by default), on the transformer's device, in
        float32: it is one row of numbers, and the critic's error lives in its small digits.

        Raises:
            ValueError: the head was made for another width.
        """
        if value_head is None:
            value_head = ValueHead(self.args.dim, head_type)
        if value_head.hidden_size != self.args.dim:
            raise ValueError(
                f"value head of width {value_head.hidden_size} on a model of width {self.args.dim}"
            )
        weight = self.transformer.output.weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.value_head = value_head.to(device=weight.device, dtype=wide)
        return self.value_head

    def attach_order_head(self, std: float = 0.02) -> OrderHead:
        """Give the adapter a fresh second unembedding, on the transformer's device."""
        weight = self.transformer.output.weight
        head = OrderHead(self.args.dim, weight.shape[0], std)
        self.order_head = head.to(device=weight.device, dtype=weight.dtype)
        return self.order_head

    def trunk_forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Next-token path and values; no unembedding, no extra head is computed.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]`, 0 on padding. Right padding needs none: attention is causal.

        Returns:
            `hidden_states` `[B, S, D]` (normalised) and `value_logits` `[B, S, 1]`.

        Raises:
            ValueError: there is no value head.
        """
        if self.value_head is None:
            raise ValueError(
                "Value head not initialized: load with initialize_value_head=True or call "
                "attach_value_head() first"
            )
        hidden = self._states(input_ids, attention_mask, all_heads=False)[0]
        return {"hidden_states": hidden, "value_logits": self.value_head(hidden)}

    def full_forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """All heads: `hidden_states` `[B, S, D]`, `logits` `[B, S, n, V]` and, if there is a value
        head, `value_logits` `[B, S, 1]`. Arguments as for `trunk_forward`."""
        states = self._states(input_ids, attention_mask, all_heads=True)
        logits = torch.stack([self.transformer.output(h) for h in states], dim=2)
        out = {"hidden_states": states[0], "logits": logits}
        if self.value_head is not None:
            out["value_logits"] = self.value_head(states[0])
        return out

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """The same as `full_forward`."""
        return self.full_forward(input_ids, attention_mask)

    def _states(
        self, input_ids: Tensor, attention_mask: Tensor | None, all_heads: bool
    ) -> list[Tensor]:
        positions, mask = None, None
        if attention_mask is not None:
            positions, mask = _padding_context(attention_mask)
        return self.transformer.head_states(
            input_ids, return_all_heads=all_heads, positions=positions, mask=mask
        )


def _padding_context(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions `[B, S]` that count real tokens only, and the mask `[B, 1, S, S]`: causal, no key
    on padding. Every token sees itself, so that a padding row has something to average."""
    real = attention_mask.bool()
    S = real.shape[1]
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    causal = torch.ones(S, S, dtype=torch.bool, device=real.device).tril()
    own = torch.eye(S, dtype=torch.bool, device=real.device)
    return positions, (causal & real[:, None, None, :]) | own
