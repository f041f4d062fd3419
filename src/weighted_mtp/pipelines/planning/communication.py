"""What a step sends, and whether its compute hides it: formulas alone, nothing is measured.

A collective takes what NCCL's own cost model says of its ring: a start, hops, and the bytes each
GPU receives over the slower of its NVLink and its group's share of the node's network. Every GPU
has a network card of its own, and a ring that spans nodes uses all of them. All-reduces across
nodes take a tree's hops.

Not counted: packets and congestion, what communication takes from the compute units, copies of
offloaded weights, the scalars that processes agree on, tensors whose size the shards do not divide.

Letters: G GPUs, W of them share a copy of the weights, R = G / W replicas, M micro-batches of a
rank in a step, N positions of a micro-batch, S row length, D model width, V vocabulary, H attention
heads, d head width. Sizes are in bytes, rates in bytes or FLOP a second, times in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from weighted_mtp.pipelines.planning.memory_inputs import HALF, WIDE, Counts, Setting

Kind = Literal["all-gather", "reduce-scatter", "all-reduce"]
Phase = Literal["start", "forward", "backward", "end"]

BUCKET = 25 * 2**20
"""Of DDP's gradients, all but the first."""


@dataclass(frozen=True)
class Hardware:
    """Assumptions about the machines; the defaults are an H100 SXM's with 400 Gb/s InfiniBand.

    Attributes:
        flops: dense bfloat16 peak.
        utilisation: share of it that a step's model FLOPs reach while nothing waits for the
            network (recomputed work does not count as work).
        nvlink, network: of one GPU, each way.
        start, nvlink_hop, network_hop: latency of a collective, and of each of its hops (those of
            NCCL's tuning table for Hopper, protocol Simple).
    """

    flops: float = 989e12
    utilisation: float = 0.4
    nvlink: float = 450e9
    network: float = 50e9
    start: float = 8.4e-6
    nvlink_hop: float = 3.4e-6
    network_hop: float = 14e-6

    @property
    def rate(self) -> float:
        """FLOP a second."""
        return self.flops * self.utilisation


@dataclass(frozen=True)
class Collective:
    """Equal collectives of a step, in all groups at once.

    Attributes:
        phase: where in a micro-batch they run; start and end have no compute to hide behind.
        size: of the whole tensor of one call.
        calls: in a step.
        ranks, per_node: of the group, and those of them in one node.
        last: only the last micro-batch of a step has them.
    """

    kind: Kind
    phase: Phase
    size: float
    calls: int
    ranks: int
    per_node: int
    last: bool = False

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.per_node)

    @property
    def received(self) -> float:
        """Bytes that one GPU receives in a step."""
        passes = 2 if self.kind == "all-reduce" else 1
        return self.calls * passes * self.size * (self.ranks - 1) / self.ranks

    def into_node(self, gpus_per_node: int) -> float:
        """Bytes that a node's network receives in a step, of all groups it takes part in."""
        groups = gpus_per_node / self.per_node
        return groups * self.received if self.nodes > 1 else 0.0

    def seconds(self, hardware: Hardware) -> float:
        """All calls of a step."""
        if self.ranks == 1:
            return 0.0
        bandwidth = hardware.nvlink
        if self.nodes > 1:
            bandwidth = self.per_node * hardware.network
            if self.per_node > 1:
                bandwidth = min(bandwidth, hardware.nvlink)
        if self.kind == "all-reduce" and self.nodes > 1:
            across = 2 * math.ceil(math.log2(self.nodes))
            inside = 2 * (self.per_node - 1)
        else:
            passes = 2 if self.kind == "all-reduce" else 1
            across = passes * (self.nodes - 1)
            inside = passes * (self.ranks - 1) - across
        hops = across * hardware.network_hop + inside * hardware.nvlink_hop
        return self.calls * (hardware.start + hops) + self.received / bandwidth


def collectives(
    counts: Counts, setting: Setting, gpus: int, per_node: int, micro_batches: int
) -> list[Collective]:
    """What the engine sends in a step; nothing on one GPU. Frozen bfloat16 weights under a float32
    `param_dtype` are counted as float32.

    Args:
        gpus, per_node: G, and those of a node.
        micro_batches: M.
    """
    M, per_node = micro_batches, min(gpus, per_node)
    if gpus == 1 or setting.mode == "none":
        return []
    if not setting.sharded:
        whole = WIDE * counts.trained
        calls = -(-whole // BUCKET)
        size = whole / max(1, calls)
        return [Collective("all-reduce", "backward", size, calls, gpus, per_node, last=True)]
    W, near = setting.shards, min(setting.shards, per_node)
    unit = (HALF if setting.gather_half else WIDE) * counts.block
    again = counts.learning if setting.reshard else 0
    found = [
        Collective("all-gather", "start", WIDE * counts.root, 1, W, near),
        Collective("all-gather", "forward", unit, M * counts.run, W, near),
        Collective("all-gather", "backward", unit, M * again, W, near),
    ]
    times, last = (M, False) if setting.reduce_each else (1, True)
    block = (HALF if setting.reduce_half else WIDE) * counts.block_trained
    root = WIDE * counts.trained_root
    reduced: tuple[tuple[Phase, int, int], ...] = (
        ("backward", block, times * counts.learning),
        ("end", root, times),
    )
    R, far = gpus // W, max(1, per_node // W)
    for phase, size, calls in reduced:
        found.append(Collective("reduce-scatter", phase, size, calls, W, near, last))
        if R > 1:
            found.append(Collective("all-reduce", phase, size / W, calls, R, far, last))
    return [each for each in found if each.calls and each.size]


def flops_per_token(counts: Counts, setting: Setting) -> tuple[float, float]:
    """Model FLOPs of a token's forward and backward pass, every position under the loss. Attention
    counts all S keys, masked or not, and recomputation nothing, as in the usual MFU."""
    args = counts.args
    products = 4 * setting.length * args.n_heads * args.head_dim  # q·k and p·v
    vocabulary = 2 * counts.vocabulary
    heads = counts.predicting
    learning_heads = min(heads, counts.heads)
    forward = counts.run * (2 * counts.matrices + products) + heads * vocabulary
    trained = min(counts.matrices, counts.block_trained)
    backward = counts.learning * (2 * counts.matrices + 2 * trained + 2 * products)
    backward += (learning_heads + heads * counts.trains_vocabulary) * vocabulary
    return forward, backward


@dataclass(frozen=True)
class Step:
    """A step on paper: what is sent, what is computed, what of the one the other hides.

    Attributes:
        forward, backward: FLOPs of one token.
        tokens: N.
        micro_batches: M.
    """

    collectives: tuple[Collective, ...]
    forward: float
    backward: float
    tokens: int
    micro_batches: int
    per_node: int
    hardware: Hardware

    def received(self, kind: Kind) -> float:
        """Bytes that one GPU receives by one kind of collective."""
        return sum(each.received for each in self.collectives if each.kind == kind)

    @property
    def into_node(self) -> float:
        """Bytes into a node over its network."""
        return sum(each.into_node(self.per_node) for each in self.collectives)

    @property
    def flops(self) -> float:
        """Of one rank."""
        return (self.forward + self.backward) * self.tokens * self.micro_batches

    @property
    def compute(self) -> float:
        return self.flops / self.hardware.rate

    @property
    def communication(self) -> float:
        """As if nothing else ran."""
        return sum(each.seconds(self.hardware) for each in self.collectives)

    @property
    def bare(self) -> float:
        """What nothing can hide: the root's weights before the first block, its gradient after the
        last."""
        outer = [each for each in self.collectives if each.phase in ("start", "end")]
        return sum(each.seconds(self.hardware) for each in outer)

    @property
    def exposed(self) -> float:
        """What compute does not hide, if all that can overlap does."""
        rate, M = self.hardware.rate, self.micro_batches
        forward = self.tokens * self.forward / rate
        backward = self.tokens * self.backward / rate
        early = max(0.0, self._phase("forward") - forward)
        each = self._phase("backward", last=False)
        most = max(0.0, each - backward)
        final = max(0.0, each + self._phase("backward", last=True) - backward)
        return self.bare + M * early + (M - 1) * most + final

    @property
    def hides_above(self) -> float:
        """Positions in a rank's micro-batch above which compute hides what can be hidden; rows as
        long as they are."""
        final = self._phase("backward", last=False) + self._phase("backward", last=True)
        needs = ((self._phase("forward"), self.forward), (final, self.backward))
        rate = self.hardware.rate
        return max((rate * time / work for time, work in needs if time), default=0.0)

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU, optimizer and data not counted."""
        return self.tokens * self.micro_batches / (self.compute + self.exposed)

    def _phase(self, phase: Phase, last: bool = False) -> float:
        """Seconds of what one micro-batch sends in a phase, or what the last one sends besides."""
        chosen = [c for c in self.collectives if c.phase == phase and c.last == last]
        share = 1 if last else self.micro_batches
        return sum(each.seconds(self.hardware) for each in chosen) / share


def step_on_paper(
    counts: Counts,
    setting: Setting,
    gpus: int,
    per_node: int,
    micro_batches: int,
    hardware: Hardware | None = None,
) -> Step:
    """Estimate what a step of this setting sends and computes. Arguments as for `collectives`."""
    sent = collectives(counts, setting, gpus, per_node, micro_batches)
    forward, backward = flops_per_token(counts, setting)
    per_node, hardware = min(gpus, per_node), hardware or Hardware()
    return Step(
        tuple(sent), forward, backward, setting.positions, micro_batches, per_node, hardware
    )
