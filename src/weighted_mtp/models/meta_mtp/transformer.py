"""Meta's multi-token-prediction LLaMA in pure PyTorch (Gloeckle et al. 2024, arXiv 2404.19737).

A trunk of blocks feeds n heads; each head is one more block on the same trunk state, and all heads
share the final norm and the unembedding. Parameter names are those of the released checkpoints
(`facebook/multi-token-prediction`), so their state dicts load as they are.

Letters: B batch, S sequence (new tokens), T cached and new tokens, n future tokens (heads),
D model width, V vocabulary, H attention heads, K key/value heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.attention import Attention, Documents, RMSNorm, read
from weighted_mtp.models.meta_mtp.fused_ops import swiglu_linear
from weighted_mtp.models.meta_mtp.kv_cache import KVCache, LayerCache, within_window
from weighted_mtp.models.meta_mtp.rotary import precompute_freqs_cis

__all__ = [
    "Attention",
    "Documents",
    "FeedForward",
    "ModelArgs",
    "RMSNorm",
    "Transformer",
    "TransformerBlock",
]


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x) (Shazeer 2020, arXiv 2002.05202).

    Attributes:
        keeps_product: keep w2's input for the backward pass. Otherwise it is computed again, which
            costs little, unless all of the block is: then w2's own product would run twice too.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.keeps_product = False
        bias = args.family.mlp_bias
        self.w1 = nn.Linear(args.dim, args.ffn_dim, bias=bias)
        self.w2 = nn.Linear(args.ffn_dim, args.dim, bias=bias)
        self.w3 = nn.Linear(args.dim, args.ffn_dim, bias=bias)

    def forward(self, x: Tensor, norm: RMSNorm | None = None) -> Tensor:
        """`[…, D]` → `[…, D]`. `norm`: of the input, where it has not been applied yet."""
        gate, up = read(x, norm, self.w1, self.w3)
        return swiglu_linear(gate, up, self.w2, self.keeps_product)


class TransformerBlock(nn.Module):
    """Pre-norm residual block; also the shape of every prediction head."""

    def __init__(self, args: ModelArgs, rotates: bool = True) -> None:
        super().__init__()
        self.residual = args.family.residual_multiplier
        self.attention = Attention(args, rotates)
        self.feed_forward = FeedForward(args)
        self.attention_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)

    def forward(
        self,
        x: Tensor,
        freqs_cis: Tensor,
        mask: Tensor | Documents | None = None,
        cache: LayerCache | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """`[B, S, D]` → `[B, S, D]`, or `[1, R, D]` at the `wanted` `[R]` of the B · S places."""
        attended = self.attention(x, freqs_cis, mask, cache, wanted, self.attention_norm)
        if wanted is not None:
            x = x.flatten(0, 1).index_select(0, wanted)[None]
        h: Tensor = x + scaled(attended, self.residual)
        out: Tensor = h + scaled(self.feed_forward(h, self.ffn_norm), self.residual)
        return out


def scaled(x: Tensor, factor: float) -> Tensor:
    """`x` times `factor`; for 1, as in most families, `x` itself."""
    return x if factor == 1.0 else x * factor


class Transformer(nn.Module):
    """Trunk, heads, shared norm and unembedding.

    `layers` holds the trunk and, last, the next-token head; `extra_heads` the heads for tokens
    2 … n. Build under `torch.device("meta")`, then `to_empty`, then `init_weights` or a state dict.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        args.check_vocabulary()
        self.args = args
        n_extra = args.n_future_tokens - 1
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        rotates = [i not in args.family.no_rope_layers for i in range(args.n_layers - n_extra)]
        self.layers = nn.ModuleList(TransformerBlock(args, each) for each in rotates)
        self.extra_heads = nn.ModuleList(
            TransformerBlock(args, rotates[-1]) for _ in range(n_extra)
        )
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)
        if args.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight
        # Of the residual stream, where the embeddings are coarser; None: as the embeddings.
        self.stream_dtype: torch.dtype | None = None
        # Tokens that heads 2 … n may draft, ascending, on the CPU; None: all (`draft_vocabulary`).
        self.draft_ids: Tensor | None = None
        # A plain attribute: complex tensors have no place in safetensors, and it can be recomputed.
        self.freqs_cis = self._rope_table(torch.float32)

    @property
    def max_positions(self) -> int:
        """Positions the rotary table covers; nothing longer can be read."""
        return self.args.max_positions

    def grouping_plan(self) -> list[str]:
        """Names of the submodules that are units for sharding, checkpointing and compiling, in the
        order they run. Whatever no unit holds (embeddings, norm, unembedding) goes with the root.
        """
        trunk = [f"layers.{i}" for i in range(len(self.layers))]
        return trunk + [f"extra_heads.{i}" for i in range(len(self.extra_heads))]

    @torch.no_grad()
    def init_weights(self, std: float = 0.02) -> None:
        """Initialise every parameter: N(0, std²), the last projection of each residual branch
        narrowed by 1/√(2·n_layers) (Radford et al. 2019), norms at one, biases at zero. Ties what
        `to_empty` untied."""
        if self.args.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight
        narrow = std / math.sqrt(2 * self.args.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
            else:
                residual = name.endswith(("attention.wo.weight", "feed_forward.w2.weight"))
                nn.init.normal_(parameter, std=narrow if residual else std)

    def forward(
        self,
        tokens: Tensor,
        start_pos: int | Tensor = 0,
        return_all_heads: bool = False,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | Documents | None = None,
    ) -> Tensor:
        """Logits of the next token, or of all n future tokens.

        Args:
            tokens: `[B, S]` token ids.
            start_pos: position of `tokens[:, 0]`: one number, or `[B]`, one for each row. Anything
                but 0 needs the `cache` that holds the tokens before it.
            return_all_heads: predict n tokens instead of one.
            cache: keys and values of earlier tokens; extended in place.
            positions: `[B, S]` rotary positions, when they are not `start_pos + 0 … S − 1` (packed
                rows, left padding); below `max_positions`. Without a cache only.
            mask: boolean, broadcastable to `[B, H, S, S]`, True where a query may look, or the
                documents that the rows are packed of; replaces the causal mask. Without a cache
                only.

        Returns:
            `[B, S, n, V]` with all heads, `[B, S, 1, V]` without; `[b, t, k - 1]` predicts the
            token k places after `tokens[b, t]`.

        Raises:
            ValueError: the sequence exceeds `max_positions`, or the cache does not fit the call.
        """
        states = self.head_states(
            tokens, start_pos, return_all_heads, cache=cache, positions=positions, mask=mask
        )
        return torch.stack([self.output(state) for state in states], dim=2)

    def head_states(
        self,
        tokens: Tensor,
        start_pos: int | Tensor = 0,
        return_all_heads: bool = False,
        *,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | Documents | None = None,
        wanted: Tensor | None = None,
    ) -> list[Tensor]:
        """What `forward` unembeds: one normalised hidden state `[B, S, D]` for each head asked for,
        the next-token head first. Other arguments and errors as for `forward`.

        Args:
            wanted: `[R]` places among the B · S. The blocks of the heads, of which nothing reads
                another position, then run there alone but for their keys and values, and the states
                are `[1, R, D]`.
        """
        heads: Sequence[nn.Module] = [self.layers[-1]]
        if return_all_heads:
            heads = [*heads, *self.extra_heads]
        trunk = list(self.layers[:-1])
        slots: list[LayerCache | None] = [None] * (len(trunk) + len(heads))
        if cache is not None:
            slots = [*cache.slots(tokens.shape[0], start_pos, tokens.shape[1], len(slots))]
        freqs_cis, mask = self.context(tokens, start_pos, cache, positions, mask)

        h = self.embed(tokens)  # [B, S, D]
        for block, slot in zip(trunk, slots, strict=False):
            h = block(h, freqs_cis, mask, slot)
        head_slots = slots[len(trunk) :]
        return [
            self.final(head(h, freqs_cis, mask, slot, wanted))
            for head, slot in zip(heads, head_slots, strict=True)
        ]

    def trunk_state(self, tokens: Tensor) -> Tensor:
        """`[B, S]` → `[B, S, D]`, what the block of every head reads."""
        freqs_cis, mask = self.context(tokens, 0, None)
        h = self.embed(tokens)
        for block in self.layers[:-1]:
            h = block(h, freqs_cis, mask)
        return h

    def states_from(
        self,
        trunk: Tensor,
        heads: Sequence[nn.Module],
        positions: Tensor | None = None,
        mask: Tensor | Documents | None = None,
    ) -> list[Tensor]:
        """Normalised states `[B, S, D]` of some heads, the last of `layers` or `extra_heads`, from
        a trunk state `[B, S, D]`. Other arguments and errors as for `forward`."""
        freqs_cis, mask = self.context(trunk[..., 0], 0, None, positions, mask)
        return [self.final(head(trunk, freqs_cis, mask)) for head in heads]

    def embed(self, tokens: Tensor) -> Tensor:
        """`[B, S]` → `[B, S, D]`, what the first block reads."""
        h: Tensor = self.tok_embeddings(tokens)
        if self.stream_dtype is not None:
            h = h.to(self.stream_dtype)
        return scaled(h, self.args.family.embedding_multiplier)

    def final(self, h: Tensor) -> Tensor:
        """A head's output as the unembedding takes it: normalised, and divided by the family's
        scale of logits."""
        return scaled(self.norm(h), 1.0 / self.args.family.logits_scaling)

    def context(
        self,
        tokens: Tensor,
        start_pos: int | Tensor,
        cache: KVCache | None,
        positions: Tensor | None = None,
        mask: Tensor | Documents | None = None,
    ) -> tuple[Tensor, Tensor | Documents | None]:
        """Rotations for these tokens, and their mask (None: plain causal, or all keys if S = 1)."""
        S = tokens.shape[1]
        ragged = isinstance(start_pos, Tensor)
        if cache is None and (ragged or start_pos != 0):
            raise ValueError(f"start_pos={start_pos} needs the cache of the tokens before it")
        if cache is not None and (positions is not None or mask is not None):
            raise ValueError("positions and mask describe a whole sequence; a cache has its own")
        last = S if isinstance(start_pos, Tensor) else start_pos + S
        if positions is None and last > self.max_positions:
            raise ValueError(
                f"a sequence of {last} tokens exceeds the {self.max_positions} positions of this "
                f"model (2 × max_seq_len {self.args.max_seq_len}); raise max_seq_len"
            )
        table = self._rope_on(tokens.device)
        if isinstance(start_pos, Tensor):
            positions = start_pos[:, None] + torch.arange(S, device=tokens.device)  # [B, S]
        freqs_cis = table[last - S : last] if positions is None else table[positions]
        window = self.args.family.sliding_window
        if cache is not None:
            mask = cache.mask(start_pos, S, window)
        elif window is not None and window < S and (mask is None or isinstance(mask, Tensor)):
            mask = within_window(mask, 0, S, window, tokens.device)
        return freqs_cis, mask

    def _rope_on(self, device: torch.device) -> Tensor:
        """The rotary table where the tokens are, moved once and kept, as fine as the weights."""
        wide = self.tok_embeddings.weight.dtype == torch.float64
        if wide != (self.freqs_cis.dtype == torch.complex128):
            self.freqs_cis = self._rope_table(torch.float64 if wide else torch.float32)
        if device.type == "meta":  # shapes only; the table itself must survive
            return self.freqs_cis.to(device)
        if self.freqs_cis.device != device:
            with torch.inference_mode(False):
                self.freqs_cis = self.freqs_cis.to(device)
        return self.freqs_cis

    def _rope_table(self, dtype: torch.dtype) -> Tensor:
        args = self.args
        with torch.inference_mode(False):  # else training after generation could not use it
            return precompute_freqs_cis(
                args.rotary_dim, self.max_positions, args.rope_theta, args.rope_scaling, dtype
            )
