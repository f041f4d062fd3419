"""A model as what was trained of it, and the name of the model it was trained on.

DIR/adapter_config.json, adapter_model.safetensors    PEFT's own layout
DIR/mtp/trained.safetensors     all that was trained, by our names, in Meta's order of rows
DIR/mtp/base.json               where the base is, what it looks like, scale of the adapters
DIR/mtp/value_head.safetensors  DIR/mtp/sums.json  DIR/tokenizer/

`PeftModel.from_pretrained(base, DIR)` reads the first two, which hold the trunk and the next-token
head. This project reads `mtp/` instead and merges, matrix by matrix, while it loads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import is_hub_id
from weighted_mtp.core.sums import Sums, fields_digest, sums_of, verifying, write_sums
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.atomic import copy_files
from weighted_mtp.models.meta_mtp.layouts.huggingface import (
    MTP_FOLDER,
    SUMS_FILE,
    hf_name,
    rotary_heads,
    stored_rows,
    to_halves,
)
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
from weighted_mtp.models.meta_mtp.layouts.params import read_params, write_params
from weighted_mtp.models.meta_mtp.layouts.side_files import CONFIG_FIELDS
from weighted_mtp.models.meta_mtp.layouts.skeleton import build_skeleton
from weighted_mtp.models.meta_mtp.layouts.source import EMBEDDING, Part, Source, Stored
from weighted_mtp.models.meta_mtp.layouts.tensor_files import (
    SafetensorsFile,
    write_safetensors_file,
)
from weighted_mtp.models.meta_mtp.lora import LoRA, adapted_modules, merged, plain_name

BASE_FILE, TRAINED_FILE = f"{MTP_FOLDER}/base.json", f"{MTP_FOLDER}/trained.safetensors"
_PLACES = ("path", "relative", "digest")
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


@dataclass(frozen=True)
class Merged(Stored):
    """A matrix with its adapter added.

    Attributes:
        base: the matrix.
        adapter: where A and B are.
        scale: s.
    """

    base: Stored = field(kw_only=True)
    adapter: tuple[Stored, Stored] = field(kw_only=True)
    scale: float = field(kw_only=True)

    def read(self, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        a, b = (part.read(torch.float32, device) for part in self.adapter)
        wide = torch.promote_types(self.dtype, torch.float32)
        whole = merged(self.base.read(wide, device), a, b, self.scale)
        return whole.to(dtype or self.dtype)


@dataclass
class AdaptedSource(Source):
    """What was trained, on its base.

    Attributes:
        base: the opened base.
        described: what `base.json` says.
        trained: the tensors of `trained.safetensors` by name.
    """

    base: Source = field(kw_only=True)
    described: Base = field(kw_only=True)
    trained: Mapping[str, Stored] = field(kw_only=True)

    def comparing(self, always: bool = False) -> AbstractContextManager[None]:
        return self.base.comparing(always)  # its own were compared when it was opened


def is_adapted_folder(directory: Path) -> bool:
    """Whether a folder is of this layout."""
    return (directory / BASE_FILE).is_file()


def fingerprint(source: Source) -> str:
    """SHA-256 over names, formats, shapes and 64 numbers of each stored weight."""
    digest = hashlib.sha256()
    for name in sorted(source.weights):
        for part in source.weights[name].parts:
            stored = part.view()
            digest.update(f"{name} {part.dtype} {list(stored.shape)}\n".encode())
            flat = stored.reshape(-1) if stored.is_contiguous() else stored.flatten()
            places = sampled_places(flat.numel())
            digest.update(flat[places].float().numpy().tobytes())
    return digest.hexdigest()


def sampled_places(numbers: int) -> Tensor:
    """64 places, evenly from the first number to the last."""
    return torch.arange(_SAMPLES) * (numbers - 1) // (_SAMPLES - 1)


def write_base(base: Base, args: ModelArgs, folder: Path) -> None:
    """Write `mtp/base.json` into a folder.

    Its digest leaves out the two places, which a person may correct when the base has moved.
    """
    fields = {
        "path": base.path,
        "relative": os.path.relpath(base.path, folder.absolute()),
        "fingerprint": base.fingerprint,
        "params": write_params(args),
        "rank": base.lora.rank,
        "alpha": base.lora.alpha,
        "dropout": base.lora.dropout,
        "rslora": base.lora.rslora,
    }
    (folder / MTP_FOLDER).mkdir(exist_ok=True)
    write_json(folder / BASE_FILE, {**fields, "digest": _digest(fields)})


def _digest(fields: Mapping[str, Any]) -> str:
    return fields_digest({key: value for key, value in fields.items() if key not in _PLACES})


def read_base(folder: Path, open_model: Callable[[Path], Source]) -> tuple[Base, ModelArgs, Source]:
    """Read `mtp/base.json` and open the base that it names.

    Returns:
        What it says, the shape of the adapted model, and the opened base.

    Raises:
        UserError: the file is damaged, the base is not there or is another model.
    """
    file = JsonFile.read(folder / BASE_FILE)
    if verifying() and file.fields.get("digest") != _digest(file.fields):
        raise UserError(f"{file.path}: is damaged; copy the folder again")
    lora = LoRA(
        file.count("rank"),
        file.count("alpha"),
        float(file.fields.get("dropout") or 0.0),
        file.get("rslora", bool, False),
    )
    base = Base(file.get("path", str), file.get("fingerprint", str), lora)
    places = [Path(base.path), folder / str(file.get("relative", str, base.path))]
    if is_hub_id(base.path):
        places = [Path(base.path)]
    place = next((place for place in places if place.exists() or is_hub_id(place)), None)
    if place is None:
        raise UserError(
            f"{base.path}: the model that {folder} was trained on is not there; put it back, or "
            f'write its new place into "path" of {file.path}'
        )
    if place.resolve() == folder.resolve():
        raise UserError(f"{file.path}: names itself as its base")
    source = open_model(place)
    if fingerprint(source) != base.fingerprint:
        raise UserError(
            f"{place}: is not the model that {folder} was trained on: its weights are others; "
            f'write the place of the right one into "path" of {file.path}'
        )
    params = file.nested("params")
    if params is None:
        raise file.error("params", "is missing; copy the folder again")
    return base, read_params(params, source.model.args.vocab_size), source


def read_adapted(directory: Path, open_model: Callable[[Path], Source]) -> AdaptedSource:
    """What an adapted model holds, its base with it.

    Args:
        open_model: opens a checkpoint of any layout.

    Raises:
        UserError: anything is missing, damaged or does not fit together.
    """
    if verifying():
        Sums.read(directory, SUMS_FILE).verify()
    described, args, base = read_base(directory, open_model)
    file = SafetensorsFile(directory / TRAINED_FILE)
    trained = {key: Stored((Part(file, key),)) for key in file.header}
    model = build_skeleton(args, directory / BASE_FILE, len(base.weights) + len(trained))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    weights, used = dict(base.weights), set()
    for name, shape in shapes.items():
        if name not in weights:
            raise UserError(f"{base.directory}: lacks {name}, which {directory} adapts")
        stem = name.removesuffix("weight")
        keys = (f"{stem}lora_A.weight", f"{stem}lora_B.weight")
        if name in trained:
            weights[name] = trained[name]
            weights[name].check(shape)
            used.add(name)
        elif any(key in trained for key in keys):
            weights[name] = _merged(weights[name], keys, trained, described, file.path)
            used |= set(keys)
    extra = sorted(trained.keys() - used)
    if extra:
        raise UserError(f"{file.path}: holds {extra[0]}, which the model has no place for")
    twin = None if EMBEDDING in trained else base.twin
    return AdaptedSource(
        "adapted",
        model,
        weights,
        [*base.files, file],
        twin,
        directory,
        base.sums,
        base=base,
        described=described,
        trained=trained,
    )


def _merged(
    base: Stored,
    keys: tuple[str, str],
    trained: Mapping[str, Stored],
    described: Base,
    path: Path,
) -> Merged:
    rank, (rows, columns) = described.lora.rank, base.shape
    for key, shape in zip(keys, ((rank, columns), (rows, rank)), strict=True):
        if key not in trained:
            raise UserError(f"{path}: lacks {key}; copy the folder again")
        trained[key].check(shape)
    adapter = trained[keys[0]], trained[keys[1]]
    scale = described.lora.scale
    return Merged(base.parts, base.dim, base=base, adapter=adapter, scale=scale)


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
        tensors = {
            plain_name(name): parameter.detach()
            for name, parameter in transformer.named_parameters()
            if parameter.requires_grad
        }
        return cls(base, args, tensors, [name for name, _ in adapted_modules(transformer)])


def _peft_adapters(trained: Trained) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The adapters of trunk and next-token head under Hugging Face's names, rows in its order; and
    the rank of each module. Where a family fuses projections, their adapters stand side by side."""
    args, tensors, groups = trained.args, trained.tensors, dict[str, list[str]]()
    for module in trained.modules:
        if not module.startswith("extra_heads."):
            key = hf_name(f"{module}.weight", args).removesuffix(".weight")
            groups.setdefault(key, []).append(f"{module}.weight")
    found, ranks = dict[str, Tensor](), dict[str, int]()
    for key, names in groups.items():
        stems = [name.removesuffix("weight") for name in names]
        a = torch.cat([tensors[f"{stem}lora_A.weight"] for stem in stems])
        parts = [tensors[f"{stem}lora_B.weight"] for stem in stems]
        heads = [rotary_heads(name, args) for name in names]
        parts = [
            to_halves(b, count, args.rotary_dim) if count else b
            for b, count in zip(parts, heads, strict=True)
        ]
        rows = [stored_rows(name, args) for name in names]
        b = parts[0] if rows[0] is None else _beside(parts, rows, _fused_rows(names[0], args))
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


def _fused_rows(name: str, args: ModelArgs) -> int:
    """How many rows the stored matrix has that a parameter is a part of."""
    path = name.rsplit(".", 2)[0]
    last = stored_rows(f"{path}.{'wv' if path.endswith('attention') else 'w3'}.weight", args)
    assert last is not None
    return last[1]


def _peft_whole(trained: Trained) -> dict[str, Tensor]:
    """Norms and embeddings that were trained, as `_peft_adapters` has the adapters."""
    args, found = trained.args, dict[str, Tensor]()
    for name, tensor in trained.tensors.items():
        if ".lora_" in name or name.startswith("extra_heads."):
            continue
        heads = rotary_heads(name, args)
        whole = to_halves(tensor, heads, args.rotary_dim) if heads else tensor
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


def write_adapted(
    trained: Trained,
    directory: Path,
    tokenizer_files: Sequence[Path],
    config_fields: Mapping[str, Any],
) -> None:
    """Write the layout into `directory`, and the sums of its files."""
    import peft

    base, lora = trained.base, trained.base.lora
    write_base(base, trained.args, directory)
    write_safetensors_file(trained.tensors, directory / TRAINED_FILE)
    adapters, ranks = _peft_adapters(trained)
    whole = _peft_whole(trained)
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
    if tokenizer_files or config_fields:
        (directory / "tokenizer").mkdir()
        copy_files(tokenizer_files, directory / "tokenizer")
    if config_fields:
        write_json(directory / CONFIG_FIELDS, dict(config_fields))
    files = (p for p in directory.rglob("*") if p.is_file() and p != directory / BASE_FILE)
    write_sums(directory, sums_of(directory, files), SUMS_FILE)
