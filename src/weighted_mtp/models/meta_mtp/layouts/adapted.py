"""A model as what was trained of it, and the name of the model it was trained on.

DIR/adapter_config.json, adapter_model.safetensors    PEFT's own layout
DIR/mtp/trained.safetensors     all that was trained, by our names, in Meta's order of rows
DIR/mtp/base.json               where the base is, what it looks like, scale of the adapters
DIR/mtp/value_head.safetensors  DIR/mtp/sums.json  DIR/tokenizer/

`PeftModel.from_pretrained(base, DIR)` reads the first two, which hold the trunk and the next-token
head. This project reads `mtp/` instead and merges, matrix by matrix, while it loads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import is_hub_id
from weighted_mtp.core.sums import Sums, fields_digest, sums_of, verifying, write_sums
from weighted_mtp.models.meta_mtp.args import ModelArgs, parameter_shapes
from weighted_mtp.models.meta_mtp.layouts.huggingface import MTP_FOLDER, SUMS_FILE
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
from weighted_mtp.models.meta_mtp.layouts.params import read_params, write_params
from weighted_mtp.models.meta_mtp.layouts.peft_files import (
    Base,
    Trained,
    fingerprint,
    write_peft,
)
from weighted_mtp.models.meta_mtp.layouts.side_files import write_tokenizer_folder
from weighted_mtp.models.meta_mtp.layouts.skeleton import check_size
from weighted_mtp.models.meta_mtp.layouts.source import EMBEDDING, Part, Source, Stored, wider
from weighted_mtp.models.meta_mtp.layouts.tensor_files import (
    SafetensorsFile,
    write_safetensors_file,
)

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    import torch
    from torch import Tensor

BASE_FILE, TRAINED_FILE = f"{MTP_FOLDER}/base.json", f"{MTP_FOLDER}/trained.safetensors"
_PLACES = ("path", "relative", "digest")


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
        import torch

        from weighted_mtp.core.device import DTYPES
        from weighted_mtp.models.meta_mtp.lora import merged

        a, b = (part.read(torch.float32, device) for part in self.adapter)
        wide = DTYPES[wider(self.format, "float32")]
        whole = merged(self.base.read(wide, device), a, b, self.scale)
        return whole.to(dtype or DTYPES[self.format])


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
        """Compare the base's while the caller reads; its own few files were compared when it was
        opened, unless the environment said not to."""
        if always and self.sums is not None:
            self.sums.verify()
        return self.base.comparing(always)

    def verify(self) -> None:
        super().verify()
        self.base.verify()


def is_adapted_folder(directory: Path) -> bool:
    """Whether a folder is of this layout."""
    return (directory / BASE_FILE).is_file()


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
    from weighted_mtp.models.meta_mtp.lora import LoRA

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
    places = [Path(base.path), folder / file.get("relative", str, base.path)]
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
    return base, read_params(params, source.args.vocab_size), source


def read_adapted(directory: Path, open_model: Callable[[Path], Source]) -> AdaptedSource:
    """What an adapted model holds, its base with it.

    Args:
        open_model: opens a checkpoint of any layout.

    Raises:
        UserError: anything is missing, damaged or does not fit together.
    """
    sums = None
    if verifying() or (directory / SUMS_FILE).is_file():
        sums = Sums.read(directory, SUMS_FILE)
    if verifying() and sums is not None:
        sums.verify()
    described, args, base = read_base(directory, open_model)
    file = SafetensorsFile(directory / TRAINED_FILE)
    trained = {key: Stored((Part(file, key),)) for key in file.header}
    check_size(args, directory / BASE_FILE, len(base.weights) + len(trained))
    weights, used = dict(base.weights), set()
    for name, shape in parameter_shapes(args).items():
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
        args,
        weights,
        [*base.files, file],
        twin,
        directory,
        sums,
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


def write_adapted(
    trained: Trained,
    directory: Path,
    tokenizer_files: Sequence[Path],
    config_fields: Mapping[str, Any],
) -> None:
    """Write the layout into `directory`, and the sums of its files."""
    write_base(trained.base, trained.args, directory)
    write_safetensors_file(trained.tensors, directory / TRAINED_FILE)
    write_peft(trained, directory)
    write_tokenizer_folder(directory, tokenizer_files, config_fields)
    files = (p for p in directory.rglob("*") if p.is_file() and p != directory / BASE_FILE)
    write_sums(directory, sums_of(directory, files), SUMS_FILE)
