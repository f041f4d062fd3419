"""One step of an EAGLE-3 speculator, from its files alone, as serving engines compute it.

Position t has the target model's hidden states of token t and the embedding of token t + 1, and
proposes token t + 2.

Letters: S sequence, D model width, L blocks of the target model, H attention heads, d head width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile
from weighted_mtp.models.meta_mtp.layouts.tensor_files import SafetensorsFile

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


class SpeculatorStep:
    """A speculator's weights and settings, in either form.

    Args:
        folder: with `config.json` and `model.safetensors`.
        blocks: L of the target model.

    Attributes:
        ids: the tokens that its logits are of, `[V']`.

    Raises:
        UserError: a file cannot be read, or lacks what a step needs.
    """

    def __init__(self, folder: Path, blocks: int, device: torch.device) -> None:
        from transformers import LlamaConfig  # slow to import
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self._folder, config = folder, JsonFile.read(folder / "config.json")
        fields: dict[str, Any] = config.fields
        layer = config.get("transformer_layer_config", dict, fields)
        ids = config.get(LAYER_IDS, list, (fields.get("eagle_config") or {}).get(LAYER_IDS, []))
        if not ids or not all(type(i) is int and 0 <= i < blocks for i in ids):
            raise config.error(LAYER_IDS, f"= {ids} are not layers of a base of {blocks} blocks")
        # SGLang adds one to what it is told; vLLM and llama.cpp do not.
        shift = int(ids[-1] == blocks - 2)
        self.engine = "SGLang" if shift else "vLLM"
        self._layers = [i + shift for i in ids]
        stored = SafetensorsFile(folder / "model.safetensors")
        weights = {key: stored.view(key).to(device) for key in stored.header}
        self._w = {key.replace("layers.0.", "midlayer."): value for key, value in weights.items()}
        described = {k: v for k, v in layer.items() if k not in ("model_type", "auto_map")}
        try:
            settings = LlamaConfig(**described)
        except Exception as error:  # transformers raises many kinds
            raise UserError(f"{config.path}: {one_line(error, 120)}") from error
        self._eps = float(settings.rms_norm_eps)
        heads = settings.num_attention_heads
        self._d = getattr(settings, "head_dim", None) or settings.hidden_size // heads
        self._rope = LlamaRotaryEmbedding(settings).to(device)
        rows = len(self._weight("lm_head.weight"))
        self.ids = torch.arange(rows, device=device)
        if "d2t" in self._w:
            if self._w["d2t"].shape != self.ids.shape:
                raise UserError(f"{folder}: d2t does not have a number for each row of lm_head")
            self.ids = self.ids + self._w["d2t"]

    def _weight(self, key: str) -> Tensor:
        if key not in self._w:
            raise UserError(f"{self._folder}: lacks key {key}; write the export again")
        return self._w[key].float()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self._weight(f"{name}.weight"), self._eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weight(f"{name}.weight"))

    @torch.no_grad()
    def logits(self, states: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
        """`[S - 1, V']` in float32.

        Args:
            states: what enters block 0, 1, … of the target model, `[1, S, D]` each.
            embeddings: of the text, `[1, S, D]`.

        Raises:
            UserError: a tensor is missing, or of a shape that does not fit.
        """
        try:
            return self._logits(states, embeddings)
        except (RuntimeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{self._folder}: its tensors do not fit together; write the export again"
            ) from error

    def _logits(self, states: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
        h = torch.cat([states[i].float() for i in self._layers], -1)[:, :-1]
        h = self._linear(h, "fc")
        S, block = h.shape[1], "midlayer."
        token = self._norm(embeddings[:, 1:].float(), block + "input_layernorm")
        x = torch.cat([token, self._norm(h, block + "hidden_norm")], -1)
        q, k, v = (
            self._linear(x, f"{block}self_attn.{p}_proj").view(1, S, -1, self._d).transpose(1, 2)
            for p in "qkv"
        )
        cos, sin = (part[:, None] for part in self._rope(h, torch.arange(S, device=h.device)[None]))
        q, k = (each * cos + _turned(each) * sin for each in (q, k))
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        h = h + self._linear(mixed.flatten(2), block + "self_attn.o_proj")
        x = self._norm(h, block + "post_attention_layernorm")
        gate, up = (self._linear(x, f"{block}mlp.{p}_proj") for p in ("gate", "up"))
        h = h + self._linear(F.silu(gate) * up, block + "mlp.down_proj")
        return self._linear(self._norm(h, "norm"), "lm_head")[0]


def _turned(x: Tensor) -> Tensor:
    """Halves of each head exchanged, the first negated: Hugging Face's order of rows."""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)
