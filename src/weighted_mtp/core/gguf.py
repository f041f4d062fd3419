"""GGUF files (of llama.cpp), dequantised once by transformers and kept as folders in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from weighted_mtp.core.cache import cache_root, kept
from weighted_mtp.core.errors import UserError, in_brief
from weighted_mtp.core.logging import get_logger

log = get_logger(__name__)
_VERSION = 1


def is_gguf(path: Path) -> bool:
    """Whether a file is one, by its first bytes or its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix == ".gguf"


def unpacked(path: Path) -> Path:
    """The model of a GGUF file as a folder in Hugging Face's layout, tokenizer included.

    Weights become float32, which takes four bytes each on the disk. The folder is made when the
    file is first used, and kept in the cache under the file's path, size and time of change.

    Raises:
        UserError: the file cannot be read, or its architecture is not one that transformers reads.
    """
    if find_spec("gguf") is None:
        raise UserError(f"{path}: reading GGUF files needs a package: pip install gguf")
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    depends = f"{_VERSION} {path.resolve()} {status.st_size} {status.st_mtime_ns}"
    folder = cache_root() / "gguf" / hashlib.sha256(depends.encode()).hexdigest()[:24]

    def make(partial: Path) -> None:
        with _as_user_error(path):
            _check_header(path)
            log.info("%s: dequantising it into %s", path, folder)
            _unpack(path, partial)

    return kept(folder, _whole, make, f"the weights of {path.name}")


def _whole(folder: Path) -> Path:
    (folder / "config.json").stat()
    return folder


def _unpack(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with redirect_stdout(StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, torch_dtype=torch.float32, trust_remote_code=False
        )
        # Dequantised by now; transformers would refuse to save what it takes for quantised.
        setattr(model, "hf_quantizer", None)  # noqa: B010 (declared as a module or a tensor)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        del model
        tokenizer = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )
        tokenizer.save_pretrained(folder)


def _check_header(path: Path) -> None:
    from gguf import GGUFReader

    if "general.architecture" not in GGUFReader(path).fields:
        raise ValueError("its header names no architecture")


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any of the libraries that take part
        raise UserError(
            f"{path}: this GGUF file cannot be read ({in_brief(error, 200)}); give the directory "
            "of the original model with its safetensors files"
        ) from error
