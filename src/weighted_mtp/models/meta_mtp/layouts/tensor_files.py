"""Files of named tensors (safetensors, PyTorch zip archives), memory-mapped a stretch at a time.

A mapped page that was read stays in the process's resident memory until its mapping goes. So
a reader of a whole file releases it now and then (`release_pages`); otherwise reading would
cost a second copy of the weights.
"""

from __future__ import annotations

import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from weighted_mtp.core.choices import NUMBER_FORMATS
from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.core.input_files import check_regular, shown_value
from weighted_mtp.core.logging import get_logger, warn_once
from weighted_mtp.core.tensors import dtype_name, save_file
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile, write_json
from weighted_mtp.models.meta_mtp.layouts.tensor_header import (
    NAMES,
    TensorInfo,
    decode,
    read_header,
)

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    from torch import Tensor

log = get_logger(__name__)

_WEIGHTS = re.compile(r".*\.safetensors|pytorch_model.*\.bin|consolidated.*\.pth")
_SMALLEST_STRETCH = 4 * 2**20
_NOT_TENSORS = "get a copy that holds tensors alone (safetensors is safest)"


class TensorFile(ABC):
    """One file of named tensors, open for reading.

    Raises:
        UserError: the file is missing, unreadable, truncated, or no such file.
    """

    header: dict[str, TensorInfo]

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_regular(path)
            self.size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        self._closed = True
        self.touched = 0  # bytes read since the file was mapped
        self.header = self._read_header()

    def view(self, key: str) -> Tensor:
        """The tensor on its mapped pages, which stay as long as it does."""
        if self._closed:
            self._open()
            self._closed = False
        tensor = self._get(key)
        self.touched += tensor.nbytes
        return tensor

    def numbers(self, key: str) -> list[float]:
        """The numbers of a short tensor, exactly."""
        found: list[float] = self.view(key).flatten().tolist()
        return found

    def release(self) -> None:
        """Unmap the file; the next `view` maps it again."""
        self._close()
        self._closed = True
        self.touched = 0

    @abstractmethod
    def _read_header(self) -> dict[str, TensorInfo]: ...

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _get(self, key: str) -> Tensor: ...


class SafetensorsFile(TensorFile):
    """A safetensors file; opening it checks that it is as long as its header says.

    A sound header is read here. On any other safetensors itself has the last word, and it checks
    again before the first weight is read.
    """

    _handle: Any

    def _read_header(self) -> dict[str, TensorInfo]:
        header = read_header(self.path, self.size)
        if header is not None:
            return header
        self._open()
        self._closed = False
        return {key: self._describe(key) for key in self._handle.keys()}  # noqa: SIM118

    def numbers(self, key: str) -> list[float]:
        found = decode(self.path, self.header[key])
        return super().numbers(key) if found is None else found

    def _open(self) -> None:
        try:
            self._handle = safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{self.path}: truncated or damaged safetensors file ({error}); copy it again"
            ) from error

    def _describe(self, key: str) -> TensorInfo:
        stored = self._handle.get_slice(key)
        dtype = str(stored.get_dtype())
        return TensorInfo(tuple(stored.get_shape()), NAMES.get(dtype, dtype))

    def _close(self) -> None:
        self._handle = None

    def _get(self, key: str) -> Tensor:
        tensor: Tensor = self._handle.get_tensor(key)
        return tensor


class PickleFile(TensorFile):
    """A state dict written by `torch.save`; read with `weights_only`, so no code in it can run."""

    def _read_header(self) -> dict[str, TensorInfo]:
        self._open()
        self._closed = False
        return {
            key: TensorInfo(tuple(t.shape), dtype_name(t.dtype)) for key, t in self._state.items()
        }

    def _open(self) -> None:
        state = self._load()
        if not isinstance(state, dict):
            found = type(state).__name__
            raise UserError(f"{self.path}: holds a {found}, not named tensors; {_NOT_TENSORS}")
        for key, value in state.items():
            if not isinstance(key, str):
                raise UserError(f"{self.path}: {key!r:.60} is not a name; {_NOT_TENSORS}")
            found = _unusual(value)
            if found:
                raise UserError(f"{self.path}: {key!r:.200} is {found}; {_NOT_TENSORS}")
        self._state: dict[str, Tensor] = {key: value.detach() for key, value in state.items()}

    def _load(self) -> object:
        import torch

        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = f"code or objects ({named[1]})" if named else "more than tensors"
            raise UserError(
                f"{self.path}: refused, because its pickle carries {what}; {_NOT_TENSORS}"
            ) from error
        except Exception as error:  # the unpickler raises anything on damaged bytes
            if "mmap can only be used" in str(error):
                raise UserError(
                    f"{self.path}: not a PyTorch zip archive (damaged, or saved before PyTorch "
                    "1.6); copy it again, or load and torch.save it with a newer PyTorch"
                ) from error
            raise UserError(
                f"{self.path}: truncated or damaged PyTorch file ({_first_words(error)}); "
                "copy it again"
            ) from error

    def _close(self) -> None:
        self._state.clear()

    def _get(self, key: str) -> Tensor:
        return self._state[key]


def _unusual(value: object) -> str:
    """Why a value is not a tensor whose numbers all lie in the file; "" if it is one."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}, not a tensor"
    if value.is_nested or value.layout != torch.strided:
        return "a nested or sparse tensor"
    if value.is_quantized:
        return "a quantised tensor"
    if value.is_meta or value.device.type != "cpu":
        return "a tensor without numbers (of the meta device)"
    if value.is_complex() or value.is_conj() or value.is_neg():
        return "a complex tensor"
    reach = sum(
        (size - 1) * abs(step) for size, step in zip(value.shape, value.stride(), strict=True)
    )
    if reach + 1 < value.numel():
        return "a tensor whose numbers overlap (expanded)"
    return ""


def _first_words(error: Exception) -> str:
    text = one_line(error) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def release_pages(files: Sequence[TensorFile]) -> None:
    """Unmap `files` if more than a fortieth of them was read since the last time."""
    stretch = max(_SMALLEST_STRETCH, sum(file.size for file in files) // 40)
    if sum(file.touched for file in files) > stretch:
        for file in files:
            file.release()


def open_tensor_file(path: Path) -> TensorFile:
    """The file at `path`, by its suffix: `.safetensors`, or a PyTorch archive otherwise."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path)


def open_indexed(index: Path) -> list[TensorFile]:
    """The shards that `index` (`*.index.json`) lists, each checked to hold what it promises.

    Raises:
        UserError: the file is not an index, or a shard is missing or lacks a key.
    """
    weight_map = JsonFile.read(index).get("weight_map", dict)
    for key, name in weight_map.items():
        if not isinstance(name, str) or not _is_file_name(name):
            raise UserError(
                f"{index}: weight_map[{key!r:.200}] is not a file name: {shown_value(name)}; "
                "correct it"
            )
    names = sorted(set(weight_map.values()))
    if not names:
        raise UserError(f"{index}: its weight_map is empty; copy the checkpoint again")
    files = {name: open_tensor_file(index.parent / name) for name in names}
    for key, name in weight_map.items():
        if key not in files[name].header:
            raise UserError(
                f"{index.parent / name}: holds no {key!r}, which {index.name} promises; "
                "copy the checkpoint again"
            )
    return list(files.values())


def _is_file_name(name: str) -> bool:
    """Whether this names a file in the same directory, and nothing else."""
    plain = name.isprintable() and len(name.encode("utf-8", "replace")) <= 255
    return plain and "\\" not in name and name not in ("", ".", "..") and Path(name).name == name


def open_weights(directory: Path, *stems: str, ours: Collection[str] = ()) -> list[TensorFile]:
    """Open `STEM`, else the shards of `STEM.index.json`, for the first of `stems` that is there:
    the order of transformers. A warning names other weight files in the directory.

    Args:
        ours: weight files that someone else reads.

    Raises:
        UserError: none is there, or what is there is damaged.
    """
    files = _first_weights(directory, stems)
    read = {file.path.name for file in files}
    others = sorted(
        path.name
        for path in directory.iterdir()
        if _WEIGHTS.fullmatch(path.name) and path.name not in read and path.name not in ours
    )
    if others:
        used = files[0].path.name if len(files) == 1 else f"the {len(files)} shards of the index"
        warn_once(log, f"{directory}: read {used}, as transformers does; not read: {_few(others)}")
    return files


def _first_weights(directory: Path, stems: Sequence[str]) -> list[TensorFile]:
    for stem in stems:
        if (directory / stem).is_file():
            return [open_tensor_file(directory / stem)]
        if (directory / f"{stem}.index.json").is_file():
            return open_indexed(directory / f"{stem}.index.json")
    wanted = " nor ".join(f"{stem} (or {stem}.index.json)" for stem in stems)
    raise UserError(f"{directory}: holds no weights, neither {wanted}; copy the checkpoint again")


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def write_safetensors(
    tensors: Mapping[str, Tensor],
    directory: Path,
    max_shard_bytes: int,
    transform: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    always_index: bool = False,
) -> None:
    """Write `model.safetensors`, or numbered shards and their index when that would be too large.

    Args:
        max_shard_bytes: no shard is larger, unless one tensor alone is.
        always_index: write the index of a single file too.
        transform: applied to each (name, tensor) when its shard is written.
    """
    shards = _shards(tensors, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = several if len(shards) > 1 else "model.safetensors"
        state = {name: transform(name, tensors[name]) for name in names}
        write_safetensors_file(state, directory / file)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1 or always_index:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def write_safetensors_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one file, from tensors on any device."""
    # transformers wants to be told that they come from PyTorch.
    save_file({n: _own(t) for n, t in tensors.items()}, path, metadata={"format": "pt"})


def _shards(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= tensor.nbytes
    return shards


def _own(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and alone in its storage, as safetensors wants it."""
    tensor = tensor.detach().to("cpu").contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def known_dtype(name: str) -> bool:
    """Whether weights stored in this format can be loaded."""
    return name in NUMBER_FORMATS
