"""A checkpoint as it lies on disk: which stored tensors make up each parameter.

Everything that headers tell is checked before the first weight is read. Then parameters come to
be one at a time, straight in their final dtype and on their final device, so that the peak of
memory is the model itself and one tensor.

Letters: D model width, H attention heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING

from weighted_mtp.core.choices import NUMBER_FORMATS
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.sums import Sums, verifying
from weighted_mtp.core.tensors import dtype_name
from weighted_mtp.models.meta_mtp.args import ModelArgs, parameter_shapes
from weighted_mtp.models.meta_mtp.layouts.skeleton import build_skeleton
from weighted_mtp.models.meta_mtp.layouts.tensor_files import (
    TensorFile,
    known_dtype,
    release_pages,
)

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    import torch
    from torch import Tensor

    from weighted_mtp.models.meta_mtp.transformer import Transformer

TIED, EMBEDDING = "output.weight", "tok_embeddings.weight"


@dataclass(frozen=True)
class Part:
    """One stored tensor, or some of its rows.

    Attributes:
        rows: first and one past the last, where several parameters are stored as one tensor.
    """

    file: TensorFile
    key: str
    rows: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        whole = self.file.header[self.key].shape
        if self.rows is None or not whole:
            return whole
        first, end = (min(row, whole[0]) for row in self.rows)
        return (end - first, *whole[1:])

    def view(self) -> Tensor:
        """The tensor on its mapped pages."""
        whole = self.file.view(self.key)
        return whole if self.rows is None else whole[self.rows[0] : self.rows[1]]

    def numbers(self) -> list[float]:
        """The numbers of a short tensor that is a parameter by itself."""
        return self.file.numbers(self.key)

    @property
    def dtype(self) -> str:
        return self.file.header[self.key].dtype

    def __str__(self) -> str:
        return f"{self.file.path}: {self.key}"


@dataclass(frozen=True)
class Stored:
    """Where one parameter comes from: `parts` side by side along `dim`.

    Attributes:
        heads: above 0, the rows are those of this many heads in Hugging Face's rotary order (all
            first halves of the pairs, then all second halves) and are put into Meta's (pairs side
            by side).
        rotary_dim: how many rows of a head are rotated, the first ones; None means all.
    """

    parts: tuple[Part, ...]
    dim: int = 0
    heads: int = 0
    rotary_dim: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole's shape; that of the first part where they do not fit together."""
        first = self.parts[0].shape
        if self.dim >= len(first):
            return first
        whole = sum(part.shape[self.dim] for part in self.parts if len(part.shape) > self.dim)
        return (*first[: self.dim], whole, *first[self.dim + 1 :])

    @property
    def format(self) -> str:
        """Name of the narrowest format that holds all parts exactly."""
        return reduce(wider, (part.dtype for part in self.parts))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `UserError` unless the parts are of a format we read and make up `shape`."""
        for part in self.parts:
            if not known_dtype(part.dtype):
                raise UserError(
                    f"{part} is stored as {part.dtype}, which is not one of "
                    f"{', '.join(NUMBER_FORMATS)}; convert it to one of them first"
                )
            rest = part.shape[: self.dim] + part.shape[self.dim + 1 :]
            if rest != shape[: self.dim] + shape[self.dim + 1 :] or self.shape != shape:
                split = f" in {len(self.parts)} parts" if len(self.parts) > 1 else ""
                raise UserError(
                    f"{part} has shape {list(part.shape)}{split}, but the configuration asks for "
                    f"{list(shape)}; correct the configuration, or copy the checkpoint again"
                )

    def read(self, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """The parameter, in memory of its own.

        Raises:
            UserError: a value is NaN or infinite, or too large for `dtype`.
        """
        import torch

        from weighted_mtp.core.device import DTYPES

        dtype = dtype or DTYPES[self.format]
        whole = torch.empty(self.shape, dtype=dtype, device=device)
        start = 0
        for part in self.parts:
            stored = part.view()
            _check_values(part, stored, dtype)
            extent = stored.shape[self.dim]
            target = whole.narrow(self.dim, start, extent)
            if self.heads:
                copy_to_pairs(target, stored, self.heads, self.rotary_dim)
            else:
                target.copy_(stored)
            start += extent
        return whole


def copy_to_pairs(target: Tensor, stored: Tensor, heads: int, rotary_dim: int | None) -> None:
    """Copy the rows of H heads from Hugging Face's order to Meta's (`Stored.heads`)."""
    d = stored.shape[0] // heads
    r = rotary_dim or d
    target, stored = target.view(heads, d, -1), stored.view(heads, d, -1)
    for j in range(2):  # first halves of the pairs, then second ones
        target[:, j:r:2].copy_(stored[:, j * r // 2 : (j + 1) * r // 2])
    target[:, r:].copy_(stored[:, r:])


def _check_values(part: Part, stored: Tensor, dtype: torch.dtype) -> None:
    import torch

    low, high = (bound.item() for bound in torch.aminmax(stored))  # NaN shows in both
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{part} holds NaN or infinite values; take an earlier checkpoint")
    if max(-low, high) > torch.finfo(dtype).max:
        raise UserError(f"{part} holds values that {dtype_name(dtype)} cannot; use bfloat16")


@dataclass
class Source:
    """A checkpoint found, its headers read and checked, its weights not yet.

    Attributes:
        layout: "native", "meta", "huggingface" or "mtp_llama".
        args: shape of the model.
        weights: for every parameter, where it comes from.
        twin: a stored unembedding that repeats the tied embedding.
        directory: of the checkpoint.
        sums: of the checkpoint's files, where they are stored with it.
        draft_ids: the draft vocabulary that is stored with it.
    """

    layout: str
    args: ModelArgs
    weights: dict[str, Stored]
    files: list[TensorFile]
    twin: Stored | None = None
    directory: Path = Path()
    sums: Sums | None = None
    draft_ids: tuple[int, ...] | None = None

    def attach_sums(self, sums: Sums) -> None:
        """Take note of the stored sums and compare those of all files but the weights, whose sums
        are compared while they are read.

        Raises:
            UserError: a file is missing or not what was written.
        """
        self.sums = sums
        if verifying():
            sums.verify(sums.expected.keys() - set(self._weight_names(sums)))

    def verify(self) -> None:
        """Compare the sums of all files that have one.

        Raises:
            UserError: a file is missing or not what was written.
        """
        if self.sums is not None:
            self.sums.verify()

    def comparing(self, always: bool = False) -> AbstractContextManager[None]:
        """Compare the sums of the weight files while the caller reads them.

        Args:
            always: the sums of all files, even where the environment says not to.
        """
        if self.sums is None or not (always or verifying()):
            return nullcontext()
        names = self.sums.expected.keys() if always else self._weight_names(self.sums)
        return self.sums.verifying(names)

    def _weight_names(self, sums: Sums) -> list[str]:
        return [file.path.relative_to(sums.folder).as_posix() for file in self.files]

    @property
    def formats(self) -> dict[str, str]:
        """Name of the stored number format of every parameter."""
        return {name: stored.format for name, stored in self.weights.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The stored number format of every parameter."""
        from weighted_mtp.core.device import DTYPES

        return {name: DTYPES[found] for name, found in self.formats.items()}

    @property
    def drafts(self) -> Tensor | None:
        """The draft vocabulary as a model has it."""
        import torch

        return None if self.draft_ids is None else torch.tensor(self.draft_ids)

    @cached_property
    def model(self) -> Transformer:
        """On the meta device, built when it is first asked for; `materialise` gives it its weights.

        Raises:
            UserError: this machine cannot build it.
        """
        return build_skeleton(self.args, self.directory)

    def materialise(self, device: torch.device, dtype: torch.dtype | None) -> Transformer:
        """Read every weight into the model. Call once.

        Args:
            dtype: None leaves each weight in its stored format.

        Raises:
            UserError: weights are not finite, or too large for `dtype`.
        """
        from torch import nn

        for name, weight in self.read(device, dtype):
            path, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(path), leaf, nn.Parameter(weight))
        if self.args.tie_embeddings:
            self.model.output.weight = self.model.tok_embeddings.weight
        self.model.draft_ids = self.drafts
        return self.model

    def read(self, device: torch.device, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
        """Every weight with its name, one at a time. They are sound once all are read without an
        error: the sums of the files are compared meanwhile.

        Raises:
            UserError: as `materialise`.
        """
        with self.comparing():
            for name, stored in self.weights.items():
                yield name, stored.read(dtype, device)
                release_pages(self.files)
            self._check_twin()

    def check_values(self) -> None:
        """Read every weight and keep none; raise `UserError` on one that is not finite."""
        import torch

        for stored in self.weights.values():
            for part in stored.parts:
                _check_values(part, part.view(), torch.float64)
            release_pages(self.files)
        self._check_twin()

    def _check_twin(self) -> None:
        import torch

        if self.twin is None:
            return
        for twin, part in zip(self.twin.parts, self.weights[EMBEDDING].parts, strict=True):
            stored, other = twin.view(), part.view()
            wide = torch.promote_types(stored.dtype, other.dtype)
            if not torch.equal(stored.to(wide), other.to(wide)):
                raise UserError(
                    f"{twin} differs from {part.key}, though the configuration ties them; "
                    "set tie_embeddings (tie_word_embeddings) to false"
                )


def wider(one: str, other: str) -> str:
    """The narrowest number format that holds the numbers of both, as `torch.promote_types`."""
    if one == other:
        return one
    return "float64" if "float64" in (one, other) else "float32"


def common_format(formats: Mapping[str, str]) -> str:
    """One number format for a whole model: the narrowest that holds every matrix exactly. Norms and
    biases follow, since float32 norms alone should not double the memory of a bfloat16 model.

    Args:
        formats: of the parameters, by name.
    """
    vectors = ("norm.weight", ".bias")
    return reduce(wider, (found for name, found in formats.items() if not name.endswith(vectors)))


def formats_of(model: Transformer) -> dict[str, str]:
    """Name of the number format of every parameter."""
    return {name: dtype_name(weight.dtype) for name, weight in model.named_parameters()}


def index_parts(files: Sequence[TensorFile]) -> dict[str, tuple[Part, ...]]:
    """Every key that any of `files` holds, with all the tensors stored under it, in file order."""
    found: dict[str, list[Part]] = {}
    for file in files:
        for key in file.header:
            found.setdefault(key, []).append(Part(file, key))
    return {key: tuple(parts) for key, parts in found.items()}


def assemble(
    layout: str,
    args: ModelArgs,
    files: list[TensorFile],
    where: Path,
    name_of: Callable[[str], str] = str,
    ignored: Callable[[str], bool] = lambda key: False,
    store: Callable[[str, tuple[int, ...], tuple[Part, ...]], Stored] = lambda n, s, parts: Stored(
        parts[:1]
    ),
) -> Source:
    """Match the parameters of a model with the stored tensors.

    Args:
        where: the folder to name when keys are missing from several files.
        name_of: the stored key of a parameter.
        ignored: stored keys that hold no weights of ours.
        store: how (parameter name, its shape, parts) become the parameter.

    Raises:
        UserError: keys are missing or left over, or a shape or format is wrong.
    """
    index = {key: parts for key, parts in index_parts(files).items() if not ignored(key)}
    shapes = parameter_shapes(args)
    twin = None
    if args.tie_embeddings and name_of(TIED) in index:
        twin = store(TIED, shapes[EMBEDDING], index.pop(name_of(TIED)))
        twin.check(shapes[EMBEDDING])
    wanted = {name: name_of(name) for name in shapes}
    _compare_keys(list(dict.fromkeys(wanted.values())), index, _place(files, where))
    weights = {}
    for name, key in wanted.items():
        weights[name] = store(name, shapes[name], index[key])
        weights[name].check(shapes[name])
    return Source(layout, args, weights, files, twin)


def _place(files: Sequence[TensorFile], where: Path) -> Path:
    return files[0].path if len(files) == 1 else where


def _compare_keys(
    wanted: Sequence[str], found: Mapping[str, tuple[Part, ...]], where: Path
) -> None:
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    if missing:
        also = f" (and holds unknown {_few(extra)})" if extra else ""
        raise UserError(
            f"{where}: lacks {_few(missing)}{also}; copy the checkpoint again, or correct its "
            "configuration"
        )
    if extra:
        file = found[extra[0]][0].file.path
        raise UserError(
            f"{file}: holds {_few(extra)}, which the configuration has no place for; correct "
            "n_layers or n_future_tokens (or their like) in the configuration"
        )


def _few(keys: Sequence[str]) -> str:
    if len(keys) == 1:
        return f"key {keys[0]}"
    more = ", …" if len(keys) > 3 else ""
    return f"{len(keys)} keys: {', '.join(keys[:3])}{more}"
