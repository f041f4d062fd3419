"""A model that is decoded many times."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from weighted_mtp.decoding.copies import Copies
from weighted_mtp.decoding.generate import Stream, complete, generate
from weighted_mtp.decoding.report import Report
from weighted_mtp.decoding.rows import Completion
from weighted_mtp.decoding.sampling import Sampling
from weighted_mtp.decoding.speculative import Speculation
from weighted_mtp.decoding.stopping import Stopping
from weighted_mtp.models.meta_mtp.transformer import Transformer


class Decoder:
    """`generate`, `complete` and `Stream` of one model, with the same results. On a CPU these copy
    the weights into a quicker layout at each call for 16 tokens or more; a decoder keeps the last
    copy, which takes as much memory as the weights, until they change or the decoder goes.

    Weights may change between calls, not while a stream is read. Changes through `Tensor.data` or
    NumPy of a few numbers only can go unseen: call `forget` after those. For one thread at a time.

    Example:
        >>> decoder = Decoder(model)
        >>> for prompt in prompts:
        ...     print(decoder.generate([prompt], 32)[0])

    Args:
        model: stays in the decoder's hands as it is; no weight is changed.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._copies = Copies(model)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        eos_id: int | Collection[int] | None = None,
        sampling: Sampling | None = None,
        speculation: Speculation | None = None,
    ) -> list[list[int]]:
        """See `decoding.generate`."""
        return generate(self._copies, prompts, max_new_tokens, eos_id, sampling, speculation)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        stopping: Stopping,
        sampling: Sampling | None = None,
        speculation: Speculation | None = None,
        row_seeds: Sequence[int] | None = None,
        logprobs: bool = False,
    ) -> tuple[list[Completion], Report]:
        """See `decoding.complete`."""
        return complete(self._copies, prompts, stopping, sampling, speculation, row_seeds, logprobs)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        stopping: Stopping,
        sampling: Sampling | None = None,
        speculation: Speculation | None = None,
        row_seeds: Sequence[int] | None = None,
        logprobs: bool = False,
    ) -> Stream:
        """See `decoding.Stream`."""
        return Stream(self._copies, prompts, stopping, sampling, speculation, row_seeds, logprobs)

    def forget(self) -> None:
        """Release the copy of the weights; the next call makes one from the weights as they are."""
        self._copies.forget()
