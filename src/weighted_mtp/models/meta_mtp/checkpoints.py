"""Checkpoints in and out: five layouts read by one function, four written whole or not at all.

- native: `configs/params.json`, `safetensors/model*.safetensors`, `tokenizer/`, `metadata.json`
  (format, dtype, SHA-256 of every file), `value_head.safetensors` where a critic was trained;
- Meta's: `params.json`, `consolidated*.pth`;
- adapted: what LoRA trained, and the name of its base (layouts/adapted.py); merged while it loads;
- Hugging Face's Llama: `config.json`, `model*.safetensors` or `pytorch_model*.bin`; ours have
  the extra heads and the value head in `mtp/`;
- Fast-LLM's `mtp_llama`: as Hugging Face's, with all heads in the same files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighted_mtp.core.choices import SPECULATORS
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger, warn_once
from weighted_mtp.core.model_folder import MARKER, find_model, listing
from weighted_mtp.models.meta_mtp.args import ModelArgs, parameter_shapes
from weighted_mtp.models.meta_mtp.draft_vocabulary import (
    read_draft_vocabulary,
    write_draft_vocabulary,
)
from weighted_mtp.models.meta_mtp.layouts.adapted import (
    AdaptedSource,
    is_adapted_folder,
    read_adapted,
    write_adapted,
)
from weighted_mtp.models.meta_mtp.layouts.atomic import check_absent, new_directory
from weighted_mtp.models.meta_mtp.layouts.eagle3 import (
    Speculator,
    check_speculator,
    write_speculator,
)
from weighted_mtp.models.meta_mtp.layouts.hf_config import SUMS_KEY
from weighted_mtp.models.meta_mtp.layouts.huggingface import (
    MTP_FOLDER,
    SUMS_FILE,
    VALUE_HEAD_FILE,
    WEIGHT_FILES,
    own_file,
    read_huggingface,
    write_huggingface,
)
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile
from weighted_mtp.models.meta_mtp.layouts.meta import PATTERN, read_meta
from weighted_mtp.models.meta_mtp.layouts.mtp_llama import (
    check_llama,
    is_mtp_llama,
    read_mtp_llama,
    write_mtp_llama,
)
from weighted_mtp.models.meta_mtp.layouts.native import (
    METADATA,
    ORDER_HEAD_FILE,
    read_native,
    write_native,
)
from weighted_mtp.models.meta_mtp.layouts.peft_files import Trained
from weighted_mtp.models.meta_mtp.layouts.side_files import (
    find_side_files,
    read_config_fields,
    tokenizer_file,
)
from weighted_mtp.models.meta_mtp.layouts.source import Source, common_format

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    import torch

    from weighted_mtp.models.meta_mtp.transformer import Transformer

log = get_logger(__name__)

CARD = "README.md"
MAX_SHARD_BYTES = 5 * 2**30
_FOLDERS = ("configs", "safetensors", "tokenizer", "mtp", "custom_generate", ".cache", *SPECULATORS)
"""Subfolders of the layouts, and of what the hub's client downloads: replaced with a checkpoint."""
_READERS: dict[str, Callable[[Path], Source]] = {
    "native": read_native,
    "meta": read_meta,
    "huggingface": read_huggingface,
    "mtp_llama": read_mtp_llama,
}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's headers say.

    Attributes:
        layout: "native", "meta", "huggingface" or "mtp_llama".
        dtype: name of the stored format; several, comma-separated, when mixed.
        loaded_dtype: name of the format that it is loaded in.
        parameters: how many numbers the model has; tied embeddings count once.
        bytes: size of the weight files together.
        files: the weight files.
        tokenizer: name of the file that the tokenizer is loaded from, "" without one.
        side_files: names of the tokenizer's and generation files, of chat templates.
        config_fields: token ids and generation settings that the configuration names.
        draft_tokens: size of the draft vocabulary, None without one.
        verified: what `verify=True` compared, "" without it.
    """

    layout: str
    args: ModelArgs
    dtype: str
    loaded_dtype: str
    parameters: int
    bytes: int
    files: tuple[Path, ...]
    tokenizer: str
    side_files: tuple[str, ...]
    config_fields: Mapping[str, Any]
    has_value_head: bool
    draft_tokens: int | None = None
    verified: str = ""

    @property
    def has_tokenizer(self) -> bool:
        return bool(self.tokenizer)


def detect_layout(directory: Path) -> str | None:
    """Name the layout ("native", "meta", "huggingface", "mtp_llama" or "adapted") by the files that
    are there; None for none of them."""
    if is_adapted_folder(directory):
        return "adapted"
    if (directory / "configs" / "params.json").is_file() or (directory / "safetensors").is_dir():
        return "native"
    config = (directory / "config.json").is_file()
    stems = [name for stem in WEIGHT_FILES for name in (stem, f"{stem}.index.json")]
    if config and any((directory / name).is_file() for name in stems):
        return _config_layout(directory)  # also where Meta's files are beside them
    if any(directory.glob(PATTERN)):
        return "meta"
    if config:
        return _config_layout(directory)
    return "meta" if (directory / "params.json").is_file() else None


def _config_layout(directory: Path) -> str:
    return "mtp_llama" if is_mtp_llama(directory / "config.json") else "huggingface"


def load_meta_mtp_model(
    model_dir: str | Path | Source,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    *,
    verify: bool = False,
    keep_formats: bool = False,
) -> Transformer:
    """Load a checkpoint in any of the four layouts; the log says which it was.

    `model_dir` may also be a run, a checkpoint of one, a model of the hub (`find_model`), or a
    checkpoint that `open_checkpoint` has opened, which can be loaded once.

    Keys, shapes and formats are checked before any weight is read, and the SHA-256 sums that are
    stored with a checkpoint are compared meanwhile (core/sums.py). Peak memory is the model in its
    final `dtype`, one tensor, and a fortieth of the files.

    Args:
        device: where to; "auto" takes cuda, then mps, then cpu.
        dtype: number format of the weights; None keeps the stored one. Where the weights have
            several, it takes the narrowest that holds every matrix exactly.
        keep_formats: with a `dtype` of None, leave each weight in its own format, to be written
            again as it was; a model of several formats may not run.
        verify: compare all stored SHA-256 sums, even if `WEIGHTED_MTP_VERIFY=0` is set.

    Raises:
        UserError: the checkpoint is missing, damaged, of an unknown layout or another
            architecture; the one line names file and key.
    """
    from weighted_mtp.core.device import resolve_device, resolve_dtype

    target, number_format = resolve_device(device), resolve_dtype(dtype)
    source = model_dir if isinstance(model_dir, Source) else open_checkpoint(model_dir)
    directory = source.directory
    if verify:
        source.verify()
    formats = sorted(set(source.formats.values()))
    if number_format is None and not keep_formats and len(formats) > 1:
        common = common_format(source.formats)
        number_format = resolve_dtype(common)
        warn_once(
            log,
            f"{directory}: its weights have several number formats ({', '.join(formats)}); loaded "
            f"as {common}, which holds every matrix exactly",
        )
    model = source.materialise(target, number_format)
    log.info("%s: loaded, %s layout, %d files", directory, source.layout, len(source.files))
    return model


def inspect_checkpoint(path: str | Path, verify: bool = False) -> CheckpointInfo:
    """Describe a checkpoint from its headers alone, checking keys, shapes and formats.

    Args:
        verify: also read everything: compare the SHA-256 sums, which what this project wrote must
            have, and check that every weight is finite.

    Raises:
        UserError: as for `load_meta_mtp_model`.
    """
    source = open_checkpoint(path)
    directory, verified = source.directory, ""
    if verify:
        verified = _verified(directory, source)
    parts = [part for stored in source.weights.values() for part in stored.parts]
    return CheckpointInfo(
        layout=source.layout,
        args=source.args,
        dtype=", ".join(sorted({part.dtype for part in parts})),
        loaded_dtype=common_format(source.formats),
        parameters=sum(map(prod, parameter_shapes(source.args).values())),
        bytes=sum(file.size for file in source.files),
        files=tuple(file.path for file in source.files),
        tokenizer=tokenizer.name if (tokenizer := tokenizer_file(directory)) else "",
        side_files=tuple(find_side_files(directory)),
        config_fields=read_config_fields(directory),
        has_value_head=value_head_path(directory).is_file(),
        draft_tokens=None if source.draft_ids is None else len(source.draft_ids),
        verified=verified,
    )


def save_native(
    model: Transformer,
    directory: str | Path,
    *,
    tokenizer_files: Sequence[Path] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    extra_metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    value_head_file: Path | None = None,
    order_head_file: Path | None = None,
    config_fields: Mapping[str, Any] | None = None,
) -> None:
    """Write the native layout, bit for bit; `directory` appears whole or not at all.

    Args:
        tokenizer_files: files and folders, copied into `tokenizer/`.
        max_shard_bytes: above it the weights are split over several files.
        extra_metadata: kept under `extra` in `metadata.json`.
        overwrite: replace a checkpoint that is there, once the new one is whole.
        value_head_file: copied to `value_head.safetensors`.
        order_head_file: copied to `order_head.safetensors`.
        config_fields: token ids and generation settings, see `read_config_fields`.

    Raises:
        UserError: `directory` exists (or, with `overwrite`, is not a checkpoint), or cannot be
            written; nothing was changed.
    """
    with _destination(directory, overwrite, value_head_file) as partial:
        _write_draft_ids(model, partial)
        if order_head_file is not None:
            shutil.copyfile(order_head_file, partial / ORDER_HEAD_FILE)
        write_native(
            model,
            partial,
            tokenizer_files,
            max_shard_bytes,
            extra_metadata or {},
            config_fields or {},
        )


def save_huggingface(
    model: Transformer,
    directory: str | Path,
    *,
    tokenizer_files: Sequence[Path] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    value_head_file: Path | None = None,
    config_fields: Mapping[str, Any] | None = None,
    speculator: Speculator | None = None,
    card: str | None = None,
) -> None:
    """Write Hugging Face's Llama layout: trunk and next-token head as
    `LlamaForCausalLM.from_pretrained` loads them. Extra heads and value head go into the subfolder
    `mtp/`, which other readers do not enter and from where `load_meta_mtp_model` takes them back.

    Arguments and errors as for `save_native`; tokenizer files are put beside the weights.

    Args:
        speculator: write head 2 for serving engines as well, into a subfolder of that form's name.
        card: text of `README.md`.
    """
    if speculator is not None:
        check_speculator(model.args, speculator)
    with _destination(directory, overwrite, value_head_file, MTP_FOLDER, card) as partial:
        _write_draft_ids(model, partial)
        if speculator is not None:
            write_speculator(model, partial / speculator.form, speculator, config_fields or {})
        write_huggingface(model, partial, tokenizer_files, max_shard_bytes, config_fields or {})


def save_adapted(
    trained: Trained,
    directory: str | Path,
    *,
    tokenizer_files: Sequence[Path] = (),
    overwrite: bool = False,
    value_head_file: Path | None = None,
    config_fields: Mapping[str, Any] | None = None,
) -> None:
    """Write what was trained of a model and the name of its base, in PEFT's layout and ours.

    Arguments and errors as for `save_native`.
    """
    with _destination(directory, overwrite, value_head_file, MTP_FOLDER) as partial:
        write_adapted(trained, partial, tokenizer_files, config_fields or {})


def save_mtp_llama(
    model: Transformer,
    directory: str | Path,
    *,
    tokenizer_files: Sequence[Path] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    value_head_file: Path | None = None,
    config_fields: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write Fast-LLM's `mtp_llama` layout: trunk and all heads, without loss.

    Arguments as for `save_huggingface`.

    Raises:
        UserError: as for `save_native`, or the model is of another family than Llama.
    """
    check_llama(model.args, "mtp_llama")
    with _destination(directory, overwrite, value_head_file, MTP_FOLDER, card) as partial:
        _write_draft_ids(model, partial)
        write_mtp_llama(model, partial, tokenizer_files, max_shard_bytes, config_fields or {})


def _write_draft_ids(model: Transformer, partial: Path) -> None:
    if model.draft_ids is not None:
        write_draft_vocabulary(model.draft_ids, model.args.vocab_size, partial)


def check_destination(directory: str | Path, overwrite: bool = False) -> None:
    """Raise `UserError` where a checkpoint must not be written: something is there and `overwrite`
    is not set, or what is there is neither a checkpoint nor an empty folder, holds other folders
    (another checkpoint, an evaluation), or belongs to a run."""
    destination = Path(directory)
    if not overwrite:
        check_absent(destination)
    if not destination.exists():
        return
    if not destination.is_dir():
        raise UserError(f"{destination}: is a file; choose the name of a directory")
    if detect_layout(destination) is None and any(destination.iterdir()):
        raise UserError(
            f"{destination}: is not a checkpoint, so it is not overwritten; choose another name"
        )
    if (destination.parent / MARKER).exists():
        raise UserError(
            f"{destination}: is the model of a checkpoint that a run resumes from, so it is not "
            "overwritten; choose another name"
        )
    for path in sorted(destination.iterdir()):
        if path.is_dir() and path.name not in _FOLDERS:
            raise UserError(
                f"{path}: is not part of the checkpoint {destination}, with which it would be "
                "deleted; move it away, or choose another destination"
            )


def find_tokenizer_files(model_dir: str | Path) -> list[Path]:
    """The files of tokenizer, chat templates and generation settings: all in `tokenizer/`, else
    those of known names beside the weights. A folder of templates is one entry."""
    found = find_side_files(Path(model_dir))
    return sorted(
        {path.parents[name.count("/") - 1] if "/" in name else path for name, path in found.items()}
    )


def value_head_path(model_dir: str | Path) -> Path:
    """Where a checkpoint's value head is, if it has one: in `mtp/`, or beside the weights."""
    directory = Path(model_dir)
    inner = own_file(directory, VALUE_HEAD_FILE)
    return inner if inner.is_file() else directory / VALUE_HEAD_FILE


@contextmanager
def _destination(
    directory: str | Path,
    overwrite: bool,
    value_head_file: Path | None,
    head_folder: str = ".",
    card: str | None = None,
) -> Iterator[Path]:
    destination = Path(directory).expanduser().resolve()
    check_destination(destination, overwrite)
    with new_directory(destination, overwrite) as partial:
        if value_head_file:
            (partial / head_folder).mkdir(exist_ok=True)
            shutil.copyfile(value_head_file, partial / head_folder / VALUE_HEAD_FILE)
        yield partial
        if card is not None:  # after the sums, which do not list it: a card is there to be edited
            (partial / CARD).write_text(card, encoding="utf-8")


def open_checkpoint(directory: str | Path) -> Source:
    """Find a checkpoint's weights, in any layout, and check its headers; no weight is read yet.

    Raises:
        UserError: as for `load_meta_mtp_model`.
    """
    directory = find_model(directory)
    layout = detect_layout(directory)
    if layout is None:
        raise UserError(
            f"{directory}: no checkpoint found; looked for configs/params.json and safetensors/ "
            "(native), params.json and consolidated*.pth (Meta), config.json and "
            f"model*.safetensors (Hugging Face), but the folder holds {listing(directory)}"
        )
    if layout == "adapted":
        source: Source = read_adapted(directory, open_checkpoint)
    else:
        source = _READERS[layout](directory)
    source.directory = directory
    own = read_draft_vocabulary(directory, source.args.vocab_size)
    if own is None and isinstance(source, AdaptedSource):
        own = source.base.draft_ids
    source.draft_ids = own
    return source


def _verified(directory: Path, source: Source) -> str:
    """Read everything; say what was compared, and which files have no sum."""
    with source.comparing(always=True):
        source.check_values()
    found = _summed(directory, source)
    if isinstance(source, AdaptedSource):
        found += f"; base: {_summed(source.base.directory, source.base)}"
    return found


def _summed(directory: Path, source: Source) -> str:
    """Which files of a folder have sums.

    Raises:
        UserError: there are none, though it was written with them.
    """
    if source.sums is None:
        always = source.layout in ("native", "adapted")
        others = source.layout in ("huggingface", "mtp_llama")
        if always or (others and SUMS_KEY in JsonFile.read(directory / "config.json").fields):
            raise UserError(
                f"{directory}: the SHA-256 sums with which it was written are missing "
                f"({METADATA if source.layout == 'native' else SUMS_FILE}); copy it again"
            )
        return "no SHA-256 sums are stored with it"
    count = len(source.sums.expected)
    known = {source.sums.listing, *(directory / name for name in source.sums.expected)}
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path not in known)
    rest = [path.relative_to(directory).as_posix() for path in files]
    without = f"; without a sum: {', '.join(rest)}" if rest else ""
    return f"SHA-256 of {count} files{without}"
