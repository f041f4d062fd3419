"""Compare a model with its export, head by head: logits, weights, and what is wrong where they
differ. Nothing is opened here; the caller gives both models and what other readers said.

Letters: S sequence, n future tokens (heads), V vocabulary, H attention heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from weighted_mtp.core.choices import EXPORT_TOLERANCE
from weighted_mtp.models.meta_mtp.layouts.huggingface import to_halves
from weighted_mtp.models.meta_mtp.layouts.source import copy_to_pairs
from weighted_mtp.models.meta_mtp.transformer import Transformer


@dataclass
class HeadCheck:
    """One head as one reader has it, against MODEL's.

    Attributes:
        head: 1 is the next-token head.
        reader: who read the export: "weighted-mtp", "transformers", "eagle3", "speculators".
        largest: max |Δlogit|.
        scale: max |logit| of MODEL.
        same, places: positions where both have the same best token, and all positions.
        kept: drafts kept and drafts judged, of MODEL and of the export; None where the reader
            does not decode, and for head 1, which drafts nothing.
        notes: what is wrong, or worth knowing.
        differs: the verdict.
    """

    head: int
    reader: str
    largest: float = 0.0
    scale: float = 0.0
    same: int = 0
    places: int = 0
    kept: tuple[tuple[int, int], tuple[int, int]] | None = None
    notes: list[str] = field(default_factory=list)
    differs: bool = False

    def add(self, ours: Tensor, theirs: Tensor, tolerance: float = EXPORT_TOLERANCE) -> None:
        """Add the logits of one text, `[S, V]` each, and judge by all so far."""
        ours, theirs = ours.float(), theirs.to(ours.device).float()
        largest = (ours - theirs).abs().max().item()
        # max() of Python would drop a NaN that comes second.
        self.largest = largest if largest != largest else max(self.largest, largest)
        self.scale = max(self.scale, ours.abs().max().item())
        self.same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        self.places += len(ours)
        self.differs |= not self.largest <= tolerance * max(1.0, self.scale)

    def fail(self, note: str) -> None:
        """Record a difference that needs no logits."""
        self.notes.append(note)
        self.differs = True


@dataclass
class ExportCheck:
    """All that was compared.

    Attributes:
        heads: one for every head and reader.
        failures: differences that belong to no head (tokenizer, shape, shared weights).
        notes: what was done and is no difference.
    """

    heads: list[HeadCheck] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.failures and not any(check.differs for check in self.heads)


@torch.no_grad()
def round_alike(model: Transformer, formats: Mapping[str, torch.dtype]) -> None:
    """Round a float32 model's weights to the formats that the export stores, so that what is left
    between the two is no rounding.

    Args:
        formats: of the export's parameters, by name; others stay.
    """
    for name, weight in model.named_parameters():
        stored = formats.get(name, weight.dtype)
        if stored.itemsize < weight.dtype.itemsize:
            weight.copy_(weight.to(stored))


def block_of(model: Transformer, head: int) -> nn.Module:
    """The block that is head 1 … n."""
    return model.layers[-1] if head == 1 else model.extra_heads[head - 2]


def copies(model: Transformer) -> dict[int, int]:
    """Heads whose weights are those of an earlier head, and which."""
    n, found = model.args.n_future_tokens, {}
    for head in range(2, n + 1):
        block = block_of(model, head)
        same = (k for k in range(1, head) if _equal(block, block_of(model, k)))
        earlier = next(same, None)
        if earlier is not None:
            found[head] = earlier
    return found


def explain_heads(model: Transformer, export: Transformer, tolerance: float) -> dict[int, str]:
    """What is wrong with the weights of each head that both have, in words; heads whose weights
    agree are left out."""
    found, clones = {}, copies(export)
    n = min(model.args.n_future_tokens, export.args.n_future_tokens)
    for head in range(1, n + 1):
        ours, theirs = block_of(model, head), block_of(export, head)
        wrong = _wrong(model, ours, theirs, tolerance)
        if not wrong:
            continue
        others = (k for k in range(1, model.args.n_future_tokens + 1) if k != head)
        other = next((k for k in others if _equal(block_of(model, k), theirs)), None)
        parts = [] if other is None else [f"is head {other} of MODEL"]
        if head in clones:
            start = " (an untrained start)" if clones[head] == 1 else ""
            parts.append(f"is a copy of the export's head {clones[head]}{start}")
        found[head] = "; ".join(parts) or _few(wrong)
    return found


def explain_shared(model: Transformer, export: Transformer, tolerance: float) -> str:
    """What is wrong with the trunk, the embeddings and the final norm, "" if nothing is."""
    wrong = []
    for name in ("tok_embeddings", "norm", "output"):
        wrong += _wrong(model, getattr(model, name), getattr(export, name), tolerance, name + ".")
    for i, (ours, theirs) in enumerate(zip(model.layers[:-1], export.layers[:-1], strict=True)):
        wrong += _wrong(model, ours, theirs, tolerance, f"layers.{i}.")
    return _few(wrong) if wrong else ""


def _equal(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def _wrong(
    model: Transformer, ours: nn.Module, theirs: nn.Module, tolerance: float, prefix: str = ""
) -> list[str]:
    """The parameters of one module that differ, each in words."""
    wrong, others = [], dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        found = others[name]
        if weight.shape != found.shape:
            wrong.append(f"{prefix}{name} has shape {list(found.shape)}, not {list(weight.shape)}")
            continue
        scale = max(weight.abs().max().item(), torch.finfo(weight.dtype).tiny)
        if bool((weight - found).abs().max() <= tolerance * scale):
            continue
        wrong.append(prefix + name + _remark(model, name, weight.detach(), found.detach()))
    return wrong


def _remark(model: Transformer, name: str, ours: Tensor, theirs: Tensor) -> str:
    if name.endswith("norm.weight") and bool((theirs == 1).all()):
        return " is lost (all ones)"
    args = model.args
    heads = {"attention.wq": args.n_heads, "attention.wk": args.kv_heads}.get(name[:12], 0)
    if heads:
        pairs = torch.empty_like(ours)
        rows = (heads, args.rotary_dim)
        copy_to_pairs(pairs.view(len(ours), -1), ours.view(len(ours), -1), *rows)
        if torch.equal(theirs, to_halves(ours, *rows)) or torch.equal(theirs, pairs):
            return " has its rows in the wrong rotary order"
    return " differs"


def _few(words: list[str]) -> str:
    more = f", and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(words[:3]) + more
