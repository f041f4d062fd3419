"""What decoding did: tokens per forward, and how far the drafts carried."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """Counts over one call.

    A *step* is one row taking part in one forward pass after its prompt was read; it decides 1 … k
    tokens (an EOS is one). The first token of a row comes from reading its prompt and is in
    `tokens` only.

    Attributes:
        k: most tokens that a step can decide; 1 in plain decoding.
        tokens: tokens in the results.
        forwards: passes of the whole batch, the one over the prompts included.
        steps: rows times forwards, as above.
        histogram: `[i]` counts the steps that decided i + 1 tokens; its sum is `steps`.
        tested, accepted: `[i]` for the drafts of head i + 2: how many came to be judged (all drafts
            before them were right), and how many of these were right.
        nodes: tokens that the steps of a tree of drafts read, its root included; 0 of a chain.
        rereads: near-ties that greedy decoding settled by reading a row's whole text again.
        ties: whether near-ties were settled so ("exact") or not looked for ("fast").
    """

    k: int
    tokens: int = 0
    forwards: int = 0
    steps: int = 0
    nodes: int = 0
    rereads: int = 0
    ties: str = "fast"
    histogram: list[int] = field(default_factory=list)
    tested: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.histogram = self.histogram or [0] * self.k
        self.tested = self.tested or [0] * (self.k - 1)
        self.accepted = self.accepted or [0] * (self.k - 1)

    def add_step(self, decided: int, tested: int, accepted: int) -> None:
        """One row's step: tokens decided, drafts judged, drafts accepted."""
        self.steps += 1
        self.histogram[decided - 1] += 1
        for head in range(tested):
            self.tested[head] += 1
            self.accepted[head] += head < accepted

    @property
    def tokens_per_forward(self) -> float:
        """Mean tokens that a row gains by a forward pass; nan before the first step."""
        decided = sum(count * (i + 1) for i, count in enumerate(self.histogram))
        return decided / self.steps if self.steps else float("nan")

    @property
    def nodes_per_pass(self) -> float:
        """Mean nodes of a tree of drafts; nan where there was none."""
        return self.nodes / self.steps if self.nodes else float("nan")

    @property
    def acceptance(self) -> list[float]:
        """Share of the judged drafts of heads 2 … k that were right; nan where none was judged."""
        pairs = zip(self.accepted, self.tested, strict=True)
        return [right / judged if judged else float("nan") for right, judged in pairs]

    @property
    def realised_fraction(self) -> float:
        """Tokens per forward over k: 1 if every draft is right, 1/k if none is."""
        return self.tokens_per_forward / self.k
