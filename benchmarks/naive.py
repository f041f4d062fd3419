"""The peer of `train_step.py`: what Meta's published forward pass gives under autograd.

Textbook blocks (explicit scores, float32 softmax, complex rotary), the logits of all heads in one
`[B, S, n, V]` tensor, cross-entropy head by head on shifted slices. Nothing is chunked or fused.

Letters: B batch, S sequence, n future tokens, D model width, V vocabulary, H heads, d head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.rotary import apply_rotary, precompute_freqs_cis


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


class Block(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        D, self.H, self.d = args.dim, args.n_heads, args.head_dim
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.w1, self.w3 = (nn.Linear(D, args.ffn_dim, bias=False) for _ in range(2))
        self.w2 = nn.Linear(args.ffn_dim, D, bias=False)
        self.attention_norm, self.ffn_norm = Norm(D, args.norm_eps), Norm(D, args.norm_eps)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        B, S, _ = x.shape
        y = self.attention_norm(x)
        q, k, v = (w(y).view(B, S, self.H, self.d) for w in (self.wq, self.wk, self.wv))
        q = apply_rotary(q, freqs_cis).transpose(1, 2)
        k = apply_rotary(k, freqs_cis).transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.d) + mask  # [B, H, S, S]
        probs = F.softmax(scores.float(), dim=-1).type_as(q)
        x = x + self.wo((probs @ v.transpose(1, 2)).transpose(1, 2).reshape(B, S, -1))
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class NaiveTransformer(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        n_extra = args.n_future_tokens - 1
        self.layers = nn.ModuleList(Block(args) for _ in range(args.n_layers - n_extra))
        self.extra_heads = nn.ModuleList(Block(args) for _ in range(n_extra))
        self.norm = Norm(args.dim, args.norm_eps)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)
        self.freqs_cis = precompute_freqs_cis(args.head_dim, args.max_seq_len)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        S = tokens.shape[1]
        mask = torch.full((S, S), float("-inf")).triu(1)
        h = self.tok_embeddings(tokens)
        for layer in self.layers[:-1]:
            h = layer(h, self.freqs_cis[:S], mask)
        states = [
            head(h, self.freqs_cis[:S], mask) for head in [self.layers[-1], *self.extra_heads]
        ]
        return self.output(self.norm(torch.stack(states, dim=-2))).float()  # [B, S, n, V]


def naive_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over heads of the mean cross-entropy of token t + k."""
    n, V = logits.shape[2:]
    losses = [
        F.cross_entropy(logits[:, :-k, k - 1].reshape(-1, V), tokens[:, k:].reshape(-1))
        for k in range(1, n + 1)
    ]
    return torch.stack(losses).mean()
