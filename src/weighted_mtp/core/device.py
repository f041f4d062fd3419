"""Names of devices and number formats, resolved in one place."""

from __future__ import annotations

import os

import torch

from weighted_mtp.core.choices import NUMBER_FORMATS
from weighted_mtp.core.errors import UserError

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in NUMBER_FORMATS}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device meant: "auto" takes CUDA (this process's card under torchrun), then MPS, then CPU.

    Raises:
        UserError: no such device, or it is not there.
    """
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(
            f"device {device!r} is not one; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {device!r} is not supported; use auto, cpu, cuda, cuda:1 or mps")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: this PyTorch sees no CUDA device; use auto or cpu")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {device!r}: MPS is not available here; use auto or cpu")
    return chosen


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices at least as fast as float32 ones.

    A CPU without AVX-512, as most laptops have it, takes 50 to 100 times as long; GPUs before
    Ampere emulate it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True
    try:  # what PyTorch's own products ask before they take oneDNN's kernels
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return torch.backends.cpu.get_cpu_capability() != "AVX2"


def resolve_compute_dtype(name: str, device: torch.device) -> str:
    """Name of the format of matrix products: "auto" is bfloat16 where it is fast, else float32."""
    if name != "auto":
        return name
    return "bfloat16" if fast_bfloat16(device) else "float32"


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating-point format by its name; None stays None ("as stored").

    Raises:
        UserError: not one of float32, bfloat16, float16, float64.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]
