"""What heads 2 … n unembed with: all rows of the unembedding, or those of a draft vocabulary.

Letters: D model width, V vocabulary, V' draft vocabulary (V where there is none).
"""

from __future__ import annotations

from torch import Tensor, nn

from weighted_mtp.decoding.products import Layout, Product, product


class DraftOutput:
    """Logits over the tokens that may be drafted, and the way back to the model's tokens.

    Only here do places in the draft vocabulary and token ids differ.

    Args:
        output: the model's unembedding. A draft vocabulary is used if it is a plain linear map
            whose weight is in one piece; otherwise all V tokens are drafted from.
        whole: its product, over all V.
        ids: of the draft vocabulary, `[V']`, ascending; None for all V.
        layout: as `product` takes it.

    Attributes:
        ids: those in use, on the model's device; None for all V.
    """

    def __init__(
        self, output: nn.Module, whole: Product, ids: Tensor | None, layout: Layout
    ) -> None:
        self._product, self.ids = whole, None
        if (
            ids is None
            or type(output) is not nn.Linear
            or getattr(output, "bias", None) is not None
        ):
            return
        weight = output.weight
        if type(weight) is not nn.Parameter or len(ids) == len(weight):
            return
        self._V, self.ids = len(weight), ids.to(weight.device)
        narrow = nn.Linear(weight.shape[1], len(ids), bias=False, device="meta")
        narrow.weight = nn.Parameter(weight.detach()[self.ids], requires_grad=False)
        self._product = product([narrow], layout)

    def logits(self, states: Tensor) -> Tensor:
        """`[..., D]` → `[..., V']`."""
        return self._product(states)

    def tokens(self, places: Tensor) -> Tensor:
        """Token ids of places in the draft vocabulary; any shape."""
        return places if self.ids is None else self.ids[places]

    def narrowed(self, x: Tensor | None) -> Tensor | None:
        """Of `[..., V]`, what concerns tokens that may be drafted, `[..., V']`."""
        return x if x is None or self.ids is None else x[..., self.ids]

    def spread(self, x: Tensor, rest: float = 0.0) -> Tensor:
        """`[..., V']` → `[..., V]`, with `rest` at tokens that are never drafted."""
        if self.ids is None:
            return x
        return x.new_full((*x.shape[:-1], self._V), rest).index_copy_(-1, self.ids, x)
