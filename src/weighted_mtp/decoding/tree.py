"""Drafts as a tree: which candidate paths one forward pass reads.

Node 0 is the newest token, the only node that is no guess; a node at depth d is a guess of head
d + 1. The heads guess independently of each other, so a path is as likely as the product of its
tokens' probabilities, and of all trees with N nodes the N likeliest paths give the one whose drafts
are right most often: a path is at most as likely as its beginning, so its parent is always there
(Cai et al. 2024, arXiv 2401.10774, build the same tree once; here each pass has its own).

Letters: S nodes, T slots of the cache in use, V vocabulary.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from weighted_mtp.models.meta_mtp.transformer import Transformer

Guesses = Sequence[Sequence[tuple[int, float]]]  # a head's tokens and their chances, best first
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Sizes that adaptive trees choose from: kernels are prepared for each, and its time is learnt."""


class Tree:
    """A tree of drafts; every parent comes before its children.

    Args:
        newest: the token at the root, decided but not read yet.

    Attributes:
        tokens, parents, depths: of each node; the root's parent is -1.
        children: of each node, from a token to the node that holds it.
        gains: chance that the node is on the path that will be kept, estimated; the root's is 1.
    """

    def __init__(self, newest: int) -> None:
        self.tokens, self.parents, self.depths = [newest], [-1], [0]
        self.children: list[dict[int, int]] = [{}]
        self.gains = [1.0]

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, gain: float) -> int:
        """Add a guess behind `parent`; its node."""
        node = self.children[parent][token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.children.append({})
        self.gains.append(gain)
        return node

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`, both included."""
        nodes = [node]
        while nodes[-1] > 0:
            nodes.append(self.parents[nodes[-1]])
        return nodes[::-1]

    def cut(self, count: int) -> None:
        """Keep the first `count` nodes, at least the root."""
        for node in range(len(self) - 1, count - 1, -1):
            del self.children[self.parents[node]][self.tokens[node]]
        for column in (self.tokens, self.parents, self.depths, self.children, self.gains):
            del column[count:]

    def context(
        self, model: Transformer, start: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Rotations `[S, r/2]` of the nodes, which lie in the slots from `start` on, and what each
        may look at, `[S, T]`: the text before `start`, itself and its ancestors, as far as the
        model's window reaches."""
        depths = torch.tensor(self.depths)
        ids = torch.zeros(1, len(self), dtype=torch.long, device=device)
        positions = (start + depths).to(device)
        freqs_cis, _ = model.context(ids, 0, None, positions[None])
        sees = torch.ones(len(self), start + len(self), dtype=torch.bool)
        sees[:, start:] = self._ancestry()
        window = model.args.family.sliding_window
        if window is not None:
            of_slots = torch.cat([torch.arange(start), start + depths])
            sees &= start + depths[:, None] - of_slots < window
        return freqs_cis[0], sees.to(device)

    def mark(self, seen: Tensor) -> Tensor:
        """Tokens seen at each node, `[S, V]`: those of the text, `seen` `[V]`, and of its path."""
        places = [(node, self.tokens[on]) for node in range(len(self)) for on in self.path(node)]
        nodes, tokens = torch.tensor(places, device=seen.device).unbind(1)
        marked = seen.repeat(len(self), 1)
        marked[nodes, tokens] = True
        return marked

    def _ancestry(self) -> Tensor:
        """Whether a node `[S, ·]` is behind, or is, another `[·, S]`."""
        behind = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], 1):
            behind[node] |= behind[parent]
        return behind


def likeliest(newest: int, guesses: Guesses, most: int) -> Tree:
    """The tree of the `most` likeliest nodes, its root among them, in falling order.

    Args:
        guesses: of heads 2, 3, …: tokens of the depths 1, 2, …
    """
    tree = Tree(newest)
    waiting: list[tuple[float, int, int, int]] = []  # −gain, order, parent, rank among siblings

    def offer(parent: int, rank: int) -> None:
        depth = tree.depths[parent]
        if depth < len(guesses) and rank < len(guesses[depth]):
            gain = tree.gains[parent] * guesses[depth][rank][1]
            if gain > 0:
                heapq.heappush(waiting, (-gain, len(tree), parent, rank))

    offer(0, 0)
    while waiting and len(tree) < most:
        gain, _, parent, rank = heapq.heappop(waiting)
        node = tree.add(parent, guesses[tree.depths[parent]][rank][0], -gain)
        offer(node, 0)
        offer(parent, rank + 1)
    return tree


def worthwhile(gains: Sequence[float], cost: Callable[[int], float]) -> int:
    """The number of nodes, one of `WIDTHS`, that gives the most expected tokens for the time of a
    pass.

    Args:
        gains: of the nodes in falling order; a pass decides as many tokens as they sum to.
        cost: of a pass over so many tokens.
    """
    tokens = list(accumulate(gains))
    fitting = [width for width in WIDTHS if width <= len(gains)]
    return max(fitting, key=lambda width: tokens[width - 1] / cost(width))
