"""What a training step holds in memory, moment by moment: arithmetic alone.

Memory of a step peaks in the loss of a micro-batch, in the first block that the backward pass
reaches, in the last one, or in the embedding. Each moment is counted by itself; the peak is the
largest.
What is kept for the backward pass is exact to the byte (a test compares it with what autograd
saved). What comes and goes is counted where it is as large as a row of hidden states.

Not counted: the interpreter and its libraries, buffers for communication, what an allocator holds
back, what `torch.compile` moves, and attention in kernels that write out S × S scores.

Letters: N positions of a micro-batch, n heads that predict, D model width, F feed-forward width,
K key/value heads, H attention heads, d head width, V vocabulary, C rows in a chunk of logits,
s bytes of a number in the compute dtype. Sizes are in bytes, everything else is a count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from weighted_mtp.losses.linear_cross_entropy import SOFTMAX_BYTES, rows_of_chunk
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.pipelines.planning.memory_inputs import HALF, WIDE, Adapters, Counts, Setting


@dataclass(frozen=True)
class Memory:
    """What one rank holds at one moment.

    Attributes:
        activations: kept for the backward pass, and a block's own work in it.
        loss: chunk of logits, states of the heads, their gradient and that of the unembedding.
        buffers: bfloat16 copies of weights (autocast), what FSDP has gathered, and Muon's copies.
        reference: a reference model's weights.
        moment: which; the backward pass begins with its first block, the model's last.
    """

    moment: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    buffers: int
    reference: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Sizes by name."""
        names = ("weights", "gradients", "optimizer", "activations", "loss", "buffers", "reference")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def peak_memory(counts: Counts, setting: Setting) -> Memory:
    """The peak of a step, once the optimizer has its state."""
    return max(moments(counts, setting), key=lambda memory: memory.total)


def moments(counts: Counts, setting: Setting) -> list[Memory]:
    """The last micro-batch of a step: its loss, then three moments of its backward pass."""
    shards = setting.shards if setting.sharded else 1
    resident = 0 if setting.offload else 1
    weights = -(-resident * counts.weight_bytes // shards)
    states = WIDE * counts.states if counts.state_bytes is None else counts.state_bytes
    optimizer = -(-resident * states // shards)
    loss, gathered = _loss(counts, setting), _gathered(counts, setting)
    kept = activation_bytes(counts, setting)
    block = block_bytes(counts.args, setting, counts.adapters)
    casts = cast_bytes(counts, setting)
    one_cast = casts // max(1, counts.learning)
    # A matrix that is narrowed again, for as long as its product takes:
    passing = HALF * counts.args.dim * counts.args.ffn_dim if casts and not counts.adapters else 0
    recomputes = setting.checkpointing != "none"
    work = _block_work(counts, setting)
    # Of the block that is computed again:
    again = block - kept_bytes(counts.args, setting, counts.adapters)
    if recomputes and counts.adapters is None:  # w2 keeps its input and its copy, for a moment
        wide = setting.size * setting.positions * counts.args.ffn_dim
        again, block, one_cast = again + wide, block + wide, one_cast + passing
    again, block = (again, block) if counts.learning else (0, 0)

    names = ("loss", "backward, first block", "backward, last block", "backward, embedding")
    activations = (kept, kept + again + work, block + work, 0)
    losses = (loss.forward, loss.backward, 0, 0)
    buffers = (
        gathered.idle + (0 if recomputes else casts),
        gathered.busy + passing + (one_cast if recomputes else casts),
        gathered.busy + passing + one_cast,
        gathered.end,
    )
    columns = zip(names, _gradients(counts, setting), activations, losses, buffers, strict=True)
    found = [
        Memory(name, weights, gradient, optimizer, kept, loss, buffer, WIDE * setting.reference)
        for name, gradient, kept, loss, buffer in columns
    ]
    if counts.together:
        found.append(_of_muon(counts, setting, found[-1]))
    return found


def _of_muon(counts: Counts, setting: Setting, end: Memory) -> Memory:
    """Muon's step: in float32 what it begins with, and all on a CPU; else products in bfloat16."""
    narrow = HALF if setting.gpu else WIDE
    scratch = WIDE * counts.together + 2 * narrow * (counts.together + counts.gram)
    gradients = WIDE * counts.trained
    return replace(end, moment="optimizer", gradients=gradients, buffers=end.buffers + scratch)


def activation_bytes(counts: Counts, setting: Setting) -> int:
    """What autograd keeps of a whole forward pass, but for weights, copies of weights and loss:
    the blocks, the input and 1/rms of the final norm of each head, and what the
    value head reads. All heads read one trunk state."""
    args, N = counts.args, setting.positions
    state = WIDE * N * args.dim
    value = counts.value_copies * state
    if not counts.learning:
        return value
    norms = counts.heads * (state + WIDE * N)
    rotations = WIDE * args.rotary_dim * N if setting.documents is not None else 0
    blocks = (
        counts.learning * kept_bytes(args, setting, counts.adapters) - (counts.heads - 1) * state
    )
    return blocks + norms + rotations + value


def kept_bytes(args: ModelArgs, setting: Setting, adapters: Adapters | None = None) -> int:
    """What one block keeps from its forward pass: all that its backward pass reads, its input, or
    (selective) its input, the products D wide or less (queries, keys, values, attention's part of
    the residual), and what attention gives."""
    if setting.checkpointing == "none":
        return block_bytes(args, setting, adapters)
    N, s, documents = setting.positions, setting.size, setting.documents
    state = WIDE * N * args.dim
    if setting.checkpointing == "full":
        return state
    unpacked = documents is not None and documents.rows and not documents.runs
    rows = documents.rows * documents.length if documents is not None and unpacked else N
    heads = args.n_heads * args.head_dim
    products = s * N * (args.dim + heads + 2 * args.kv_heads * args.head_dim)
    return state + products + rows * (s * heads + WIDE * args.n_heads)


def block_bytes(args: ModelArgs, setting: Setting, adapters: Adapters | None = None) -> int:
    """What autograd keeps of one block: two residual inputs and 1/rms of each; in the compute dtype
    q, k, v, the attention's output, and gate and up of the feed-forward; the attention's
    log-sum-exp. Packed rows and sliding windows add a mask in the compute dtype, or the indices of
    their documents' rows; where documents go one by one or have rows, the attention's output packed
    again.
    Norms of queries and keys add what they read, and 1/rms of each head. An adapter keeps its input
    (a normed one, or the product of gate and up) and what A gives."""
    N, s, documents = setting.positions, setting.size, setting.documents
    heads, keys = args.n_heads * args.head_dim, args.kv_heads * args.head_dim
    attention = s * (2 * heads + 2 * keys) + WIDE * args.n_heads
    kept = N * (2 * WIDE * (args.dim + 1) + 2 * s * args.ffn_dim)
    if args.family.qk_norm:
        kept += N * (s * (heads + keys) + WIDE * (args.n_heads + args.kv_heads))
    if adapters is not None:
        kept += N * s * (adapters.columns + adapters.keeps_normed * args.dim)
        kept += N * s * args.ffn_dim if adapters.keeps_product else 0
        which = 1 if setting.gpu else s  # the CPU multiplies by zeros and scales
        kept += N * (s + which) * adapters.dropped
    window = args.family.sliding_window
    if documents is None:
        banded = window is not None and setting.length > window
        return kept + N * attention + (s * setting.length**2 if banded else 0)
    if not documents.rows:
        return kept + N * attention + N * setting.length * s
    unpacked, index = documents.rows * documents.length, 8
    banded = window is not None and documents.length > window
    if documents.runs:
        kept += s * documents.rows * documents.length**2 if banded else 0
        return kept + N * (attention + s * heads)
    kept += s * documents.length**2 if banded else 0
    return kept + unpacked * (attention + 3 * index) + N * (s * heads + index)


def cast_bytes(counts: Counts, setting: Setting) -> int:
    """bfloat16 copies of the blocks' float32 matrices that stay for the backward pass, whole even
    where the weights are sharded: of wo, and of what peft's layers hold. Others are made again."""
    gathered_as_such = setting.sharded and setting.gather_half
    if not setting.half or gathered_as_such:
        return 0
    if counts.adapters is not None:
        return HALF * counts.adapters.float32
    args = counts.args
    return HALF * counts.learning * args.n_heads * args.head_dim * args.dim


def _block_work(counts: Counts, setting: Setting) -> int:
    """A block's backward pass: three more tensors as wide as the feed-forward (four gradients, one
    of which takes the place of the product), two of the residual stream."""
    if not counts.learning:
        return 0
    args = counts.args
    return setting.positions * (3 * setting.size * args.ffn_dim + 2 * WIDE * args.dim)


class _Loss(NamedTuple):
    """Bytes of the fused loss: in its forward pass, and when its backward pass has run (then the
    unembedding's gradient is one of the weights')."""

    forward: int
    backward: int


def _loss(counts: Counts, setting: Setting) -> _Loss:
    args, s = counts.args, setting.size
    if not counts.predicting:  # all there is beside what is kept: a frozen block at work
        return _Loss(setting.positions * (3 * s * args.ffn_dim + 3 * WIDE * args.dim), 0)
    rows = min(counts.predicting, counts.heads) * setting.positions  # of heads that learn
    states = s * rows * args.dim  # also of their gradient
    gradient = counts.vocabulary_gradient
    is_half = counts.halved and not counts.trains_vocabulary  # autocast needs no copy
    copy = HALF * counts.vocabulary if setting.half and not is_half else 0
    if setting.distils:
        V = min(args.vocab_size, setting.compared or args.vocab_size)
        C = min(setting.positions, setting.chunk_rows or rows_of_chunk(2 * V, s))
        # The teacher's distribution and a student's (some rows of them), its logits, its gradient
        # and work on the way there; a sum of several losses takes up to two more.
        chunk = C * (5 * WIDE * V + 3 * WIDE * args.dim)
        chunk += s * setting.positions * args.dim  # the teacher's states
        if setting.compared is not None:
            chunk += (WIDE + s) * V * args.dim  # rows of the unembedding
    else:
        C = min(rows, setting.chunk_rows or rows_of_chunk(args.vocab_size, s))
        chunk = C * (s * args.vocab_size + 3 * WIDE * args.dim)  # logits, rows gathered and scaled
        if setting.half:
            wide_rows = C if setting.gpu else min(C, SOFTMAX_BYTES // (WIDE * args.vocab_size) or 1)
            chunk += WIDE * wide_rows * args.vocab_size
    chunk += copy
    return _Loss(3 * states + gradient + chunk, 2 * states)


def _gradients(counts: Counts, setting: Setting) -> tuple[int, int, int, int]:
    """The gradient of the weights at each moment. DDP's buckets are always there, and what earlier
    micro-batches left; a gradient that meets another one exists twice until it is added."""
    whole, block = WIDE * counts.trained, WIDE * counts.block_trained
    unembedding = counts.vocabulary_gradient
    embedding = unembedding  # of the same shape, and trained with it
    if not setting.sharded:
        if setting.accumulate or setting.mode == "ddp":
            return whole, whole + unembedding, whole, whole + embedding
        if counts.args.tie_embeddings:
            return 0, unembedding, whole - block, whole + embedding
        return 0, unembedding, max(0, whole - embedding - block), whole
    root = WIDE * counts.trained_root  # reduced last of all
    late = max(0, whole - root - 2 * block)  # one is at work, one not yet reduced
    shards = math.inf if setting.offload else setting.shards
    if setting.accumulate and not setting.reduce_each:
        waiting = (HALF if setting.reduce_half else WIDE) * counts.trained
        last = math.ceil(late / shards) + unembedding + block + root
        return waiting, waiting + unembedding, last, math.ceil((whole - root) / shards) + 2 * root
    before = math.ceil(whole / shards) if setting.accumulate else 0
    last = before or math.ceil(late / shards)
    end = before or math.ceil((whole - root) / shards)
    return before, before + unembedding, last + unembedding, end + root


class _Gathered(NamedTuple):
    """Bytes FSDP has gathered, or has yet to reduce: in the loss, while a block's backward pass
    runs, and at the end of the backward pass. The root stays gathered throughout."""

    idle: int
    busy: int
    end: int


def _gathered(counts: Counts, setting: Setting) -> _Gathered:
    """The block gathered last is there twice, in one piece and cut into weights. While a block's
    backward pass runs, the next one is arriving in one piece, the gradient of the one before is
    being reduced, in one piece too, and that of w2 is already there. A micro-batch that is reduced
    by itself leaves such a piece of the root to the next."""
    if not setting.sharded:
        return _Gathered(0, 0, 0)
    unit = (HALF if setting.gather_half else WIDE) * counts.block
    root, standing = WIDE * counts.root, 0 if setting.reshard else counts.run * unit
    if not counts.learning:  # a block is at work, and the next one arriving
        return _Gathered(root + (standing or unit) + 2 * unit, root, root)
    reduced = (HALF if setting.reduce_half else WIDE) * counts.block_trained
    left = WIDE * counts.trained_root if setting.accumulate and setting.reduce_each else 0
    w2 = unit * counts.args.dim * counts.args.ffn_dim // counts.block
    busy = root + (standing or 2 * unit) + max(reduced, left) + w2
    return _Gathered(root + standing + unit + left, busy, root + reduced)
