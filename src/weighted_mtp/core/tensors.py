"""Writing tensors, and naming their formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" of `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions of any new file.

    safetensors itself writes a private temporary file (mode 0600) and renames it, so that other
    users could read everything of a checkpoint but its weights.
    """
    from safetensors import torch as safetensors  # which imports PyTorch

    path.touch()
    mode = path.stat().st_mode  # what the umask gives
    safetensors.save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    path.chmod(mode)
