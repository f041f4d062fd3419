"""What a step's memory depends on: numbers of the model, and how a rank runs it.

Letters: N positions of a micro-batch, n heads that predict, D model width, V vocabulary, C rows in
a chunk of logits, s bytes of a number in the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from weighted_mtp.models.meta_mtp.args import ModelArgs

WIDE, HALF = 4, 2
"""float32 (weights, gradients, optimizer, residual stream, normaliser of the loss), bfloat16."""

Mode = Literal["none", "ddp", "fsdp", "hsdp"]
Checkpointing = Literal["none", "selective", "full"]


class Adapters(NamedTuple):
    """What LoRA makes different in a block of the trunk.

    Attributes:
        trained: numbers that have a gradient.
        columns: Σ r, what all A give for one position.
        dropped: Σ of the widths of the inputs that dropout copies; 0 without dropout.
        keeps_normed: how many of the two normed inputs an A reads.
        keeps_product: w2 is adapted, whose input is the product of the feed-forward.
        float32: numbers in float32 matrices of all blocks that learn, but for those whose copies
            the backward pass makes again (`fused_ops`).
        root, trained_root: numbers outside the blocks, and those of them that are trained.
    """

    trained: int
    columns: int
    dropped: int
    keeps_normed: int
    keeps_product: bool
    float32: int
    root: int
    trained_root: int


@dataclass(frozen=True)
class Counts:
    """How many numbers a model has under an objective, and what of it runs and learns.

    Attributes:
        parameters, trained: all of the model's, and those that have a gradient.
        states: what the optimizer keeps.
        block, matrices: of one block, and those of them that are in matrices.
        run: blocks that a step runs.
        trunk, heads: those of them that keep something for the backward pass. The head of the
            next token counts, though a critic predicts nothing with it.
        predicting: n, heads under the language-model loss.
        value_copies: how many times the value head keeps a float32 state of every position.
        halved: numbers of frozen matrices that are kept in bfloat16.
        trains_vocabulary: the unembedding has a gradient.
        adapters: of LoRA; None without.
        state_bytes: size of the optimizer's state, where it is not float32.
        together, gram: numbers that Muon multiplies together, and of their Gram matrices.
    """

    args: ModelArgs
    parameters: int
    trained: int
    states: int
    block: int
    matrices: int
    run: int
    trunk: int
    heads: int
    predicting: int
    value_copies: int = 0
    halved: int = 0
    trains_vocabulary: bool = True
    adapters: Adapters | None = None
    state_bytes: int | None = None
    together: int = 0
    gram: int = 0

    @property
    def learning(self) -> int:
        """Blocks that keep something for the backward pass."""
        return self.trunk + self.heads

    @property
    def root(self) -> int:
        """Numbers outside the blocks: embeddings, final norm, unembedding, value head."""
        if self.adapters is not None:
            return self.adapters.root
        total = self.args.n_layers  # trunk, next-token head and extra heads
        return self.parameters - total * self.block

    @property
    def trained_root(self) -> int:
        if self.adapters is not None:
            return self.adapters.trained_root
        return self.trained - self.learning * self.block

    @property
    def block_trained(self) -> int:
        """Numbers of a block that have a gradient."""
        return self.block if self.adapters is None else self.adapters.trained

    @property
    def weight_bytes(self) -> int:
        """Of the weights, whole."""
        return WIDE * self.parameters - (WIDE - HALF) * self.halved

    @property
    def vocabulary_gradient(self) -> int:
        """Bytes of the gradient of the unembedding, where there is one."""
        return WIDE * self.vocabulary if self.predicting and self.trains_vocabulary else 0

    @property
    def vocabulary(self) -> int:
        """Numbers of the unembedding: V · D."""
        return self.args.vocab_size * self.args.dim


class Documents(NamedTuple):
    """How attention keeps the documents of packed rows apart: in `rows` rows of `length`, one for
    each document; or one by one, where they lie (`runs`); under a mask, if there are no rows."""

    rows: int = 0
    length: int = 0
    runs: bool = False


@dataclass(frozen=True)
class Setting:
    """How a step runs on one rank.

    Attributes:
        rows, length: of a micro-batch; N is their product.
        documents: None if every row is one.
        half: bfloat16 compute (autocast).
        gpu: CUDA's way through the loss, which takes the softmax of a whole chunk at a time.
        accumulate: a rank has several micro-batches in a step.
        shards: how many ranks FSDP spreads a copy of the weights over.
        gather_half, reduce_half: FSDP's formats. reshard: blocks go after their forward pass.
        reduce_each: FSDP reduces the gradient after every micro-batch.
        offload: what a rank keeps of weights, gradient and optimizer is in the host's memory.
        chunk_rows: C; None is `CHUNK_BYTES` worth.
        distils: head 1 teaches the others, so that a chunk has its logits too.
        compared: tokens of the vocabulary whose logits are computed; None for all.
        reference: numbers of a reference model that scores online.
    """

    rows: int
    length: int
    documents: Documents | None = None
    half: bool = False
    gpu: bool = False
    checkpointing: Checkpointing = "none"
    accumulate: bool = False
    mode: Mode = "none"
    shards: int = 1
    gather_half: bool = False
    reduce_half: bool = False
    reshard: bool = True
    reduce_each: bool = False
    offload: bool = False
    chunk_rows: int | None = None
    distils: bool = False
    compared: int | None = None
    reference: int = 0

    @property
    def positions(self) -> int:
        """N."""
        return self.rows * self.length

    @property
    def size(self) -> int:
        """s."""
        return HALF if self.half else WIDE

    @property
    def sharded(self) -> bool:
        return self.mode in ("fsdp", "hsdp")
