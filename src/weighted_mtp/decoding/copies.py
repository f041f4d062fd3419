"""A model's weights in the layout that decoding reads, kept from call to call while they are true.

Copying takes a second or more a gigabyte (`products`), which a short answer does not win back.
Whoever decodes many times keeps the copy, and asks before each use whether the weights are still
those that were copied.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from weakref import ref

import torch
from torch import Tensor

from weighted_mtp.decoding.batch import first_heads
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.decoding.products import prefers_halves, worth_copying
from weighted_mtp.models.meta_mtp.transformer import Transformer

_PLACES = 16  # of each weight that are compared


class Copies:
    """Gives a model as decoding reads it; the last copy of its weights is kept, and made again when
    they have changed.

    Seen are other weights, number formats, modules or shapes, changes in place that PyTorch counts
    (`Tensor._version`: optimizers, `load_state_dict`, merged adapters), and of those that it does
    not count (through `Tensor.data` or NumPy) all that touch one of 16 places in each weight.

    Args:
        model: of any device and format; only some are copied (`worth_copying`).
        keep: False for a single call, which need not know what the weights were.
    """

    def __init__(self, model: Transformer, keep: bool = True) -> None:
        self.model, self._keep = model, keep
        self._kept: tuple[FastModel, int, Tensor | None, bool, _Weights] | None = None

    def fast(
        self, k: int, steps: int, draft_ids: Tensor | None = None, width: int = 1
    ) -> FastModel:
        """The model with its first `k` heads, for so many forward passes at most, most of them over
        `width` tokens of all rows together."""
        narrow = first_heads(self.model, k)
        if not (self._keep and worth_copying(narrow, steps)):
            return FastModel(narrow, steps, draft_ids, width)
        halves = prefers_halves(narrow, steps, width)
        if self._kept is not None:
            fast, heads, ids, wished, weights = self._kept
            # A float32 text is the same to rounding in either; in bfloat16 what a call writes must
            # not depend on those before it.
            finer = fast.layout == "halves" and fast.definition.output.weight.dtype == torch.float32
            suits = halves == wished or (wished and (finer or fast.layout != "halves"))
            if suits and heads == k and ids is draft_ids and weights.still_of(self.model):
                return fast
        self._kept = None  # before the next one, so that there are never two
        weights = _Weights(self.model)
        fast = FastModel(narrow, steps, draft_ids, width)
        self._kept = fast, k, draft_ids, halves, weights
        return fast

    def forget(self) -> None:
        """Release the copy; the next call makes one."""
        self._kept = None


class _Weights:
    """What a model's weights were at one time."""

    def __init__(self, model: Transformer) -> None:
        self._args = replace(model.args)
        self._modules = [(ref(module), type(module)) for module in model.modules()]
        self._tensors = [(ref(tensor), _state(tensor)) for tensor in _tensors(model)]
        self._sample = _sample(model)

    def still_of(self, model: Transformer) -> bool:
        """Whether they are what was seen."""
        modules, tensors = list(model.modules()), _tensors(model)
        return (
            self._args == model.args
            and len(modules) == len(self._modules)
            and len(tensors) == len(self._tensors)
            and all(
                was() is module and kind is type(module)
                for (was, kind), module in zip(self._modules, modules, strict=True)
            )
            and all(
                was() is tensor and state is not None and state == _state(tensor)
                for (was, state), tensor in zip(self._tensors, tensors, strict=True)
            )
            and torch.equal(self._sample, _sample(model))
        )


def _tensors(model: Transformer) -> list[Tensor]:
    ids = [] if model.draft_ids is None else [model.draft_ids]
    return [*model.parameters(), *model.buffers(), model.freqs_cis, *ids]


def _state(tensor: Tensor) -> tuple[object, ...] | None:
    """Differs after a change that PyTorch counts; None where it counts none."""
    if tensor.is_inference():
        return None
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _sample(model: Transformer) -> Tensor:
    """Some numbers of each weight."""
    weights = chain(model.parameters(), model.buffers())
    flat = (weight.detach().reshape(-1) for weight in weights)
    return torch.cat([x[:: max(1, x.numel() // _PLACES)].float() for x in flat])
