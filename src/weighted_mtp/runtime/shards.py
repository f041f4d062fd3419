"""Named tensors in files of their own for each process (PyTorch's distributed checkpoint), read
back by any number of processes.

Its index is a pickle. Ours is opened by a reader that builds nothing but the index's own parts, and
that takes no entry but tensors: a checkpoint from elsewhere can run no code. It checks that the
parts make up each tensor before anything is read.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from weighted_mtp.core.errors import one_line
from weighted_mtp.runtime import distributed

INDEX = ".metadata"
_DCP = "torch.distributed.checkpoint"
_HARMLESS = {
    f"{_DCP}.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_DCP}.filesystem": {"_StorageInfo"},
    "torch": {"Size", "device", "float64", "float32", "bfloat16", "float16"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13's name for it
}


class Writer:
    """Writes checkpoints in the background, one at a time, while training exchanges what it has
    to."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None

    def begin(self, tensors: Mapping[str, Tensor], folder: Path) -> Future[Any]:
        """Copy the tensors to the CPU, then write them while the caller continues. Every process
        calls this; the future is done once all of them have written."""
        self._group = self._group or distributed.another_group()
        begun = async_save(dict(tensors), storage_writer=_Writer(folder), process_group=self._group)
        assert isinstance(begun, Future)  # only a stager of one's own makes it two of them
        return begun


class _Writer(FileSystemWriter):
    def stage(self, state_dict: Any) -> Any:
        """PyTorch 2.6 takes a tensor that is on the CPU for its own copy; then the optimizer would
        change what is being written."""
        return {
            name: copy.clone() if _address(copy) == _address(state_dict[name]) else copy
            for name, copy in super().stage(state_dict).items()
        }


def _address(tensor: Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).data_ptr()


def stored_shapes(folder: Path) -> dict[str, torch.Size]:
    """What is stored, and how large it is.

    Raises:
        OSError, ValueError: the index is missing, damaged, or holds anything but tensors.
    """
    entries = _Reader(folder).read_metadata().state_dict_metadata
    return {
        name: entry.size
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def stored_formats(folder: Path) -> dict[str, torch.dtype]:
    """Number formats of the stored tensors, by name.

    Raises:
        OSError, ValueError: as for `stored_shapes`.
    """
    entries = _Reader(folder).read_metadata().state_dict_metadata
    return {
        name: entry.properties.dtype
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def stored_files(folder: Path) -> set[str]:
    """Names of the files that the index tells of, and its own.

    Raises:
        OSError, ValueError: as for `stored_shapes`.
    """
    stored = _Reader(folder).read_metadata().storage_data.values()
    return {INDEX, *(info.relative_path for info in stored)}


def load(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read the stored tensors of these names into them; each process reads the part that it holds.
    Every process calls this.

    Raises:
        OSError, ValueError: files are missing or damaged, or a tensor of this name and shape is not
            stored.
    """
    shapes = stored_shapes(folder)
    for name, tensor in tensors.items():
        if shapes.get(name) != tensor.shape:
            stored = list(shapes[name]) if name in shapes else "not stored"
            raise ValueError(f"{name} is {stored}, but {list(tensor.shape)} is asked for")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")
        try:
            load_state(dict(tensors), storage_reader=_Reader(folder))
        except (CheckpointException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            if distributed.is_lost(error):
                raise  # that says nothing against the files
            raise ValueError(reason(error)) from error


def reason(error: BaseException) -> str:
    """What went wrong, in one line: what each process met, without the way there."""
    if isinstance(error, CheckpointException):
        met = (f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        return one_line("; ".join(met))
    return one_line(error)


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / INDEX).open("rb") as file:
            try:
                metadata = _IndexUnpickler(file).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
                raise ValueError(f"{INDEX}: {error}") from error
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{INDEX}: is not an index of tensors")
        try:
            _check_files(metadata, Path(self.path))
            for name, entry in metadata.state_dict_metadata.items():
                if not isinstance(entry, TensorStorageMetadata):
                    raise ValueError(f"{INDEX}: is not an index of tensors")
                _check_chunks(name, entry, metadata)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{INDEX}: {error}") from error
        return metadata


def _check_files(metadata: Metadata, folder: Path) -> None:
    """Raise `ValueError` unless every stored part lies in a file of the folder and has its bytes
    for itself."""
    stretches: dict[str, list[tuple[int, int]]] = {}
    for info in metadata.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise ValueError(f"{INDEX}: {info.relative_path} leads out of the folder")
        stretches.setdefault(info.relative_path, []).append((info.offset, info.length))
    for name, found in stretches.items():
        path = folder / name
        if name == INDEX or not path.is_file():
            raise ValueError(f"{name} is missing")
        end = 0
        for offset, length in sorted(found):
            if offset < end or length < 1:
                raise ValueError(f"{INDEX}: parts in {name} overlap")
            end = offset + length
        if end > path.stat().st_size:
            raise ValueError(f"{name} is shorter than {INDEX} says")


def _check_chunks(name: str, entry: TensorStorageMetadata, metadata: Metadata) -> None:
    """Raise `ValueError` unless the chunks of a tensor are stored, lie in it, and make it up: what
    none of them covers would be read as whatever was in memory."""
    size = tuple(entry.size)
    boxes = []
    for chunk in entry.chunks:
        start, extent = tuple(chunk.offsets), tuple(chunk.sizes)
        if not len(start) == len(extent) == len(size) or any(
            a < 0 or n < 0 or a + n > whole for a, n, whole in zip(start, extent, size, strict=True)
        ):
            raise ValueError(f"{INDEX}: a part of {name} lies outside the tensor")
        if math.prod(extent):
            if MetadataIndex(name, torch.Size(start)) not in metadata.storage_data:
                raise ValueError(f"{INDEX}: a part of {name} is in no file")
            boxes.append((start, extent))
    if _overlap(sorted(boxes)):
        raise ValueError(f"{INDEX}: parts of {name} overlap")
    if sum(math.prod(extent) for _, extent in boxes) != math.prod(size):
        raise ValueError(f"{INDEX}: the parts of {name} do not cover it")


def _overlap(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether any two boxes, sorted by their starts, share an element."""
    for i, (start, extent) in enumerate(boxes):
        for other, reach in boxes[i + 1 :]:
            if start and other[0] >= start[0] + extent[0]:
                break  # so do all after it
            if all(
                b < a + n and a < b + m
                for a, n, b, m in zip(start, extent, other, reach, strict=True)
            ):
                return True
    return False


def _member(kind: object, name: object) -> Enum:
    """Look a member of an enumeration up, which Python 3.11.0 to 3.11.3 pickle as a call of
    `getattr`; nothing else is looked up."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[str(name)]
    raise pickle.UnpicklingError("refused, because it carries builtins.getattr")


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"refused, because it carries {module}.{name}")
        return super().find_class(module, name)
