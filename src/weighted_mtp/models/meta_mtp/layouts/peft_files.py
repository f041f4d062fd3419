"""What a training of adapters leaves, and its files in PEFT's own layout.

`adapter_config.json` and `adapter_model.safetensors` hold the adapters of the trunk and the
next-token head under Hugging Face's names, for `PeftModel.from_pretrained`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weighted_mtp.core.model_folder import is_hub_id
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.huggingface import (
    fused_rows,
    hf_name,
    in_hf_order,
    stored_rows,
)
from weighted_mtp.models.meta_mtp.layouts.source import EMBEDDING, Source
from weighted_mtp.models.meta_mtp.layouts.tensor_files import write_safetensors_file

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    from torch import Tensor, nn

    from weighted_mtp.models.meta_mtp.lora import LoRA

_SAMPLES = 64


@dataclass(frozen=True)
class Base:
    """The model that adapters were trained on.

    Attributes:
        path: as it was named, or its absolute path.
        fingerprint: of its weights.
        lora: size and scale of the adapters.
    """

    path: str
    fingerprint: str
    lora: LoRA

    @classmethod
    def of(cls, source: Source, lora: LoRA, named: Path | None = None) -> Base:
        """Describe an opened checkpoint as the base of adapters.

        Args:
            named: how a person named it. A GGUF file or a model of the hub is remembered by that
                name; of a run, the checkpoint that was opened.
        """
        place = str(source.directory.absolute())
        if named is not None and is_hub_id(named):
            place = str(named)
        elif named is not None and named.is_file():
            place = str(named.absolute())
        return cls(place, fingerprint(source), lora)


def fingerprint(source: Source) -> str:
    """SHA-256 over names, formats, shapes and 64 numbers of each stored weight."""
    digest = hashlib.sha256()
    for name in sorted(source.weights):
        for part in source.weights[name].parts:
            stored = part.view()
            digest.update(f"{name} {part.dtype} {list(stored.shape)}\n".encode())
            flat = stored.reshape(-1)
            places = sampled_places(flat.numel())
            digest.update(flat[places].float().numpy().tobytes())
    return digest.hexdigest()


def sampled_places(numbers: int) -> Tensor:
    """64 places, evenly from the first number to the last."""
    import torch

    return torch.arange(_SAMPLES) * (numbers - 1) // (_SAMPLES - 1)


@dataclass(frozen=True)
class Trained:
    """What a training of adapters has to save.

    Attributes:
        base: what it was trained on.
        args: shape of the model.
        tensors: what was trained, by plain names (`lora.plain_name`), whole.
        modules: names of the adapted linears.
    """

    base: Base
    args: ModelArgs
    tensors: Mapping[str, Tensor]
    modules: Sequence[str]

    @classmethod
    def of(cls, transformer: nn.Module, args: ModelArgs, base: Base) -> Trained:
        """What of a transformer was trained."""
        from weighted_mtp.models.meta_mtp.lora import adapted_modules, trained_tensors

        tensors = trained_tensors(transformer.named_parameters())
        return cls(base, args, tensors, [name for name, _ in adapted_modules(transformer)])


def write_peft(trained: Trained, directory: Path) -> None:
    """Write PEFT's two files into a folder."""
    import peft

    base, lora = trained.base, trained.base.lora
    adapters, ranks = _adapters(trained)
    whole = _whole(trained)
    factors = {name: rank / lora.rank for name, rank in ranks.items() if rank != lora.rank}
    peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=_shortened(ranks, trained.args),
        rank_pattern={name: ranks[name] for name in factors},
        alpha_pattern={  # so that the scale stays what it is
            name: lora.alpha * (factor**0.5 if lora.rslora else factor)
            for name, factor in factors.items()
        },
        modules_to_save=sorted({name.rpartition(".")[0] for name in whole}) or None,
        base_model_name_or_path=base.path,
        task_type="CAUSAL_LM",
        inference_mode=True,
        bias="none",
    ).save_pretrained(str(directory))
    tensors = {f"base_model.model.{name}": x for name, x in {**adapters, **whole}.items()}
    write_safetensors_file(tensors, directory / "adapter_model.safetensors")


def _adapters(trained: Trained) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The adapters of trunk and next-token head under Hugging Face's names, rows in its order; and
    the rank of each module. Where a family fuses projections, their adapters stand side by side."""
    import torch

    args, tensors = trained.args, trained.tensors
    groups: dict[str, list[str]] = {}
    for module in trained.modules:
        if not module.startswith("extra_heads."):
            key = hf_name(f"{module}.weight", args).removesuffix(".weight")
            groups.setdefault(key, []).append(f"{module}.weight")
    found: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, names in groups.items():
        stems = [name.removesuffix("weight") for name in names]
        a = torch.cat([tensors[f"{stem}lora_A.weight"] for stem in stems])
        parts = [
            in_hf_order(tensors[f"{stem}lora_B.weight"], name, args)
            for stem, name in zip(stems, names, strict=True)
        ]
        rows = [stored_rows(name, args) for name in names]
        b = parts[0] if rows[0] is None else _beside(parts, rows, fused_rows(names[0], args))
        found |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        ranks[key] = a.shape[0]
    return found, ranks


def _beside(parts: Sequence[Tensor], rows: Sequence[tuple[int, int] | None], total: int) -> Tensor:
    """B of a fused matrix `[total, Σ r]`: each part in its rows and its columns, zero elsewhere."""
    whole = parts[0].new_zeros(total, sum(part.shape[1] for part in parts))
    column = 0
    for part, place in zip(parts, rows, strict=True):
        assert place is not None  # all of a fused matrix
        whole[place[0] : place[1], column : column + part.shape[1]] = part
        column += part.shape[1]
    return whole


def _whole(trained: Trained) -> dict[str, Tensor]:
    """Norms and embeddings that were trained, as `_adapters` has the adapters."""
    args = trained.args
    found: dict[str, Tensor] = {}
    for name, tensor in trained.tensors.items():
        if ".lora_" in name or name.startswith("extra_heads."):
            continue
        whole = in_hf_order(tensor, name, args)
        found[hf_name(name, args)] = whole
        if name == EMBEDDING and args.tie_embeddings:
            found["lm_head.weight"] = whole.clone()
    return found


def _shortened(modules: Iterable[str], args: ModelArgs) -> list[str]:
    """Names of modules; last parts alone where every layer has them."""
    leaves: dict[str, list[str]] = {}
    for name in modules:
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    layers = args.n_layers - (args.n_future_tokens - 1)
    short = [[leaf] if len(names) == layers else names for leaf, names in leaves.items()]
    return [name for names in short for name in names]
