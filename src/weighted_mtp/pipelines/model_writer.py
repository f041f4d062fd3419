"""A checkpoint that writes: model, tokenizer and decoding, as every evaluation loads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weighted_mtp.core.config import load_recipe_file
from weighted_mtp.core.device import resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokenizers import check_vocabulary, load_tokenizer
from weighted_mtp.decoding import Sampling, generate
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.checkpoint_utils import resolve_model_dir


class ModelWriter:
    """Continues prompts.

    Args:
        path: a run, a checkpoint or a model directory.
        dtype: as `MetaLlamaMTPAdapter.from_pretrained` takes it; None keeps the stored one.

    Raises:
        UserError: the checkpoint or its tokenizer is missing or damaged, or they do not match.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        sampling: Sampling,
        max_new_tokens: int,
        dtype: str | None = None,
    ) -> None:
        self.model_dir = resolve_model_dir(path)
        self.tokenizer = load_tokenizer(self.model_dir)
        self._model = MetaLlamaMTPAdapter.from_pretrained(
            self.model_dir, resolve_device(device), dtype, initialize_value_head=False
        ).transformer
        check_vocabulary(self.tokenizer, self._model.args.vocab_size, str(self.model_dir))
        self._sampling, self._max_new_tokens = sampling, max_new_tokens

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt that leaves room for the answer."""
        return self._model.max_positions - self._max_new_tokens

    def encode(self, text: str) -> list[int]:
        """A prompt: BOS, if the model has one, and the text."""
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return bos + self.tokenizer.encode(text)

    def write(self, prompts: Sequence[Sequence[int]], start: int) -> list[list[int]]:
        """The new tokens of each prompt, without EOS.

        Args:
            start: number of the first among all prompts, which moves the seed.

        Raises:
            UserError: a prompt leaves no room for the answer.
        """
        sampling = replace(self._sampling, seed=self._sampling.seed + start)
        try:
            return generate(
                self._model, prompts, self._max_new_tokens, self.tokenizer.eos_id, sampling
            )
        except ValueError as error:
            raise UserError(f"{error}; lower --max-new-tokens") from error


def run_data(path: Path) -> dict[str, Any]:
    """The data section of the recipe that `path` (a run, or a directory in it) was trained by."""
    for folder in (path, *path.resolve().parents[:3]):
        config = folder / "config.yaml"
        if config.exists():
            return load_recipe_file(config).data.model_dump()
    return {}


def trained_template(path: Path) -> str | None:
    """The prompt template a run was trained with; None for a bare model and for plain text."""
    data = run_data(path)
    return None if not data or data["source"] == "text" else str(data["template"])


def model_identity(path: Path) -> dict[str, Any]:
    """What tells a checkpoint from another, without reading its weights.

    Raises:
        UserError: nothing is there.
    """
    folder = resolve_model_dir(path)
    weights = sorted(f for f in folder.rglob("*") if f.suffix in (".safetensors", ".pth", ".bin"))
    return {
        "path": folder.relative_to(path).as_posix(),
        "files": {
            file.relative_to(folder).as_posix(): [status.st_size, status.st_mtime_ns]
            for file in weights
            for status in (file.stat(),)
        },
    }
