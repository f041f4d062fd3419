"""What `plan_check.py` measures: recipes for a small model, and batches for them."""

from __future__ import annotations

import torch

from weighted_mtp.core.config.recipe import Recipe, load_recipe
from weighted_mtp.data.batches import Batch, Example, pack_batch

VOCAB = 8000
SHAPE = {"dim": 512, "n_layers": 8, "n_heads": 8, "n_future_tokens": 4, "max_seq_len": 512}
BASE = {
    "training.micro_batch_size": 2,
    "training.batch_size": 2,
    "data.max_length": 257,
    "runtime.compute_dtype": "float32",
    "runtime.parallel": "none",
}
BF16 = {"runtime.compute_dtype": "bfloat16"}
RECOMPUTE = {"training.activation_checkpointing": "full"}
SELECT = {"training.activation_checkpointing": "selective"}
LONG = {"data.max_length": 513}
MANY = {**LONG, "training.micro_batch_size": 8, "training.batch_size": 8}
TWICE = {"training.batch_size": 4}  # two micro-batches
BOTH = {"training.batch_size": 4}  # one on each of two ranks
FSDP = {**BOTH, "runtime.parallel": "fsdp"}
HALF = {"runtime.fsdp.param_dtype": "bfloat16"}

SETTINGS: dict[str, tuple[str, int, dict[str, object]]] = {  # recipe, ranks, changes
    "baseline": ("baseline", 1, {}),
    "baseline bf16": ("baseline", 1, BF16),
    "baseline recomputed": ("baseline", 1, RECOMPUTE),
    "baseline bf16 recomputed": ("baseline", 1, {**BF16, **RECOMPUTE}),
    "baseline selective": ("baseline", 1, SELECT),
    "baseline bf16 selective": ("baseline", 1, {**BF16, **SELECT}),
    "baseline two micro-batches": ("baseline", 1, TWICE),
    "baseline long rows": ("baseline", 1, LONG),
    "baseline long rows, selective": ("baseline", 1, {**LONG, **SELECT}),
    "baseline bf16, mostly activations": ("baseline", 1, {**BF16, **MANY}),
    "baseline bf16, mostly activations, selective": ("baseline", 1, {**BF16, **MANY, **SELECT}),
    "baseline dim 1024, short rows": ("baseline", 1, {"dim": 1024, "data.max_length": 65}),
    "baseline packed under a mask": ("baseline", 1, {"data.packing": True, "documents": 3}),
    "baseline packed bf16": ("baseline", 1, {**BF16, "data.packing": True, "documents": 2}),
    "baseline packed bf16 selective": (
        "baseline",
        1,
        {**BF16, **SELECT, "data.packing": True, "documents": 2},
    ),
    "baseline tied muon": (
        "baseline",
        1,
        {"model.architecture.tie_embeddings": True, "training.optimizer": "muon"},
    ),
    "verifiable": ("verifiable", 1, {}),
    "verifiable selective": ("verifiable", 1, SELECT),
    "verifiable bf16 recomputed": ("verifiable", 1, {**BF16, **RECOMPUTE, **TWICE}),
    "critic frozen": ("critic", 1, {}),
    "critic top": ("critic", 1, {"objective.value.trunk": "top"}),
    "rho1": ("rho1", 1, {}),
    "rho1 bf16 reference model": ("rho1", 1, {**BF16, "objective.rho1.reference_model": "same"}),
    "ddp baseline": ("baseline", 2, {**BOTH, "runtime.parallel": "ddp"}),
    "ddp verifiable bf16 recomputed": (
        "verifiable",
        2,
        {**BOTH, **BF16, **RECOMPUTE, "runtime.parallel": "ddp"},
    ),
    "fsdp baseline": ("baseline", 2, FSDP),
    "fsdp baseline recomputed": ("baseline", 2, {**FSDP, **RECOMPUTE}),
    "fsdp baseline selective": ("baseline", 2, {**FSDP, **SELECT}),
    "fsdp baseline bf16, gathers float32": ("baseline", 2, {**FSDP, **BF16}),
    "fsdp baseline bf16": ("baseline", 2, {**FSDP, **BF16, **HALF}),
    "fsdp verifiable bf16 recomputed": ("verifiable", 2, {**FSDP, **BF16, **HALF, **RECOMPUTE}),
    "fsdp rho1 two micro-batches": ("rho1", 2, {**FSDP, "training.batch_size": 8}),
    "fsdp baseline two, reduced each": (
        "baseline",
        2,
        {**FSDP, "training.batch_size": 8, "runtime.fsdp.reduce_gradients": "micro_batch"},
    ),
    "fsdp baseline not resharded": (
        "baseline",
        2,
        {**FSDP, "runtime.fsdp.reshard_after_forward": False},
    ),
}


def make_recipe(name: str, device: str) -> tuple[Recipe, int]:
    """The recipe of a setting, and documents in a packed row (0: not packed)."""
    recipe, _, changes = SETTINGS[name]
    settings = {**BASE, "data.train": "none.jsonl", "runtime.device": device, **changes}
    documents = settings.pop("documents", 0)
    shape = {**SHAPE, **({"dim": settings.pop("dim")} if "dim" in settings else {})}
    settings |= {f"model.architecture.{key}": value for key, value in shape.items()}
    return load_recipe(recipe, None, [f"{k}={v}" for k, v in settings.items()]), int(documents)


def make_batch(recipe: Recipe, documents: int) -> Batch:
    """Random tokens, every one a target, with reference losses; `documents` in each packed row, of
    one length for 2 and of very different ones for 3."""
    rows, S = recipe.training.micro_batch_size, recipe.data.max_length - 1
    if not documents:
        ids = torch.randint(VOCAB, (rows, S + 1))
        right = torch.arange(rows) % 2 == 0
        losses = 10 * torch.rand(rows, S + 1)
        false = torch.zeros(rows, dtype=torch.bool)
        return Batch(
            ids[:, :-1].contiguous(), ids.clone(), false, torch.arange(rows), right, losses
        )
    lengths = [S // 2] * 2 if documents == 2 else [S - 16, 8, 8]
    packed = [
        [Example(torch.randint(VOCAB, (m + 1,)).tolist(), 0, False, row) for m in lengths]
        for row in range(rows)
    ]
    return pack_batch(packed, 0)
