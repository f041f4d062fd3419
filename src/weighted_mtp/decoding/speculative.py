"""Self-speculative decoding: the model's own heads draft, the next pass verifies and drafts.

A step reads each row's newest token and its drafts, W tokens in all. The first head judges the
drafts (`verify`); at the last position that stays, heads 2 … k guess the tokens after the one just
decided (Gloeckle et al. 2024, arXiv 2404.19737; Stern et al. 2018, arXiv 1811.03115). One forward
pass for a step, one wait for the device; every row advances at its own pace.

Letters: B batch, W window, k tokens ahead, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weighted_mtp.decoding.batch import Batch
from weighted_mtp.decoding.dice import Dice, Use
from weighted_mtp.decoding.draft_heads import Pairs
from weighted_mtp.decoding.draft_length import DraftLength
from weighted_mtp.decoding.greedy import by_definition, contested, tie_margin
from weighted_mtp.decoding.plain import token_logprobs
from weighted_mtp.decoding.report import Report
from weighted_mtp.decoding.rows import Row
from weighted_mtp.decoding.sampling import Sampling, penalise, probabilities
from weighted_mtp.decoding.step_clock import PRIOR, CostMeter
from weighted_mtp.decoding.tree import WIDTHS
from weighted_mtp.decoding.verify import Judged, LossyTypical, matches, rejection, typical
from weighted_mtp.models.meta_mtp.transformer import Transformer


@dataclass(frozen=True)
class Speculation:
    """How to draft.

    Attributes:
        k: most tokens that a step can decide, 1 … n; None is n, all heads.
        adaptive: each row chooses 1 … k for every step by how its drafts fared (`DraftLength`).
        token_cost: for `adaptive`: what one more token in a forward pass costs, as a share of a
            pass over one (`measure_token_cost`). None: greedy decoding measures it on its own steps
            (`step_clock`); drawn texts, which must not depend on time, take 0.1, which suits a
            batch of one on a CPU in bfloat16 (0.06 measured for SmolLM2-135M) and is too little for
            larger ones there (four rows: 0.1 … 0.3, sixteen: 0.2 … 0.6).
        draft: how drafts are drawn when sampling; None: as the text is. Any choice keeps the text's
            distribution; the closer to it, the more drafts stay.
        lossy_typical: accept drafts by this rule instead. **Changes the text.**
        draft_vocabulary: draft from the tokens of the model's draft vocabulary alone, if it has
            one (`Transformer.draft_ids`).
        tree: draft a tree of up to this many nodes, the newest token included, instead of a chain
            (one row at a time; `tree_speculative`); with `adaptive` as many for each step as give
            the most expected tokens for its time. "auto": adaptive, a tree where one greedy row is
            decoded by itself, a chain otherwise. None: a chain.
    """

    k: int | None = None
    adaptive: bool = False
    token_cost: float | None = None
    draft: Sampling | None = None
    lossy_typical: LossyTypical | None = None
    draft_vocabulary: bool = True
    tree: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if self.token_cost is not None and not 0 <= self.token_cost < float("inf"):
            raise ValueError(f"token_cost must be 0 or more, got {self.token_cost}")
        if self.tree is not None:
            self._check_tree(self.tree)

    def _check_tree(self, tree: int | str) -> None:
        if tree == "auto":
            return
        if isinstance(tree, str) or tree < 2:
            raise ValueError(f"tree must be auto or a number of nodes from 2 on, got {tree!r}")
        if self.k == 1:
            raise ValueError("a tree of drafts needs k of at least 2: one head guesses nothing")
        if self.lossy_typical is not None:
            raise ValueError("a tree of drafts is exact; leave out lossy_typical, or the tree")

    @property
    def chooses(self) -> bool:
        """Whether steps choose how much to draft."""
        return self.adaptive or self.tree == "auto"

    def nodes(self, rows: int, k: int, sampling: Sampling) -> int | None:
        """Most nodes of a tree for so many rows and heads; None for a chain."""
        if self.tree == "auto":
            alone = rows == 1 and k > 1 and sampling.greedy
            return WIDTHS[-1] if alone else None
        return self.tree

    def width(self, rows: int, k: int) -> int:
        """Tokens that most steps read, of all rows together."""
        if self.chooses:
            return 2 * rows
        return rows * k if self.tree is None else int(self.tree)

    def heads_of(self, n: int) -> int:
        """k for a model of n heads.

        Raises:
            ValueError: it has fewer.
        """
        if self.k is not None and self.k > n:
            raise ValueError(
                f"k={self.k} tokens ahead need {self.k} heads, and the model has {n}; take k <= {n}"
            )
        return n if self.k is None else self.k

    @property
    def fixed_cost(self) -> float:
        """`token_cost` where it is not measured."""
        return PRIOR if self.token_cost is None else self.token_cost

    def ids_of(self, model: Transformer) -> Tensor | None:
        """The tokens that a model's heads may draft, None for all."""
        return model.draft_ids if self.draft_vocabulary else None


class Speculative:
    """Continues a batch by up to k tokens a row and step.

    Args:
        batch: its prompts unread, its model with k heads.
        dice: chance for its rows; unused at temperature 0.
        logprobs: keep them.
    """

    def __init__(
        self,
        batch: Batch,
        sampling: Sampling,
        speculation: Speculation,
        dice: Dice,
        report: Report,
        logprobs: bool,
    ) -> None:
        self.batch, self._sampling, self._dice = batch, sampling, dice
        self._report, self._logprobs = report, logprobs
        self._draft, self._lossy = speculation.draft or sampling, speculation.lossy_typical
        exact = sampling.greedy and self._lossy is None
        self._margin = tie_margin(batch.model.definition, sampling) if exact else 0.0
        report.ties = "exact" if self._margin else "fast"
        self._meter: CostMeter | None = None
        self._lengths = self._draft_lengths(speculation, len(batch.rows))
        self._drafts = torch.zeros(len(batch.rows), 0, dtype=torch.long, device=batch.device)
        self._q: Tensor | None = None  # [B, W - 1, V], what the drafts were drawn from

    def step(self) -> None:
        """One forward pass: every live row gains 1 … k tokens, and new drafts."""
        batch, first = self.batch, not self.batch.read_prompts
        self._shrink()
        limits = [1] * len(batch.rows)
        if self._drafts.shape[1]:
            limits = [self._limit(row, length) for row, length in self._paired()]
        logits = batch.model.output(batch.read(self._drafts))  # [B, W, V]
        self._report.forwards += 1
        judged, doubtful = self._judge(logits, limits)
        decided = self._settled(judged, doubtful)
        if self._meter is not None:
            context = max(len(row.tokens) for row in batch.rows)
            self._meter.tick(logits.shape[1], len(batch.rows), context)
        scores = self._scores(logits, judged, decided)
        for place, (row, length) in enumerate(self._paired()):
            if row.finish is None:
                taken = row.push(decided[place], scores[place])
                if not first:
                    self._count(taken, len(decided[place]), limits[place], length)
        batch.note(decided)
        if batch.live:
            self._guess([len(tokens) - 1 for tokens in decided])

    def _draft_lengths(self, speculation: Speculation, B: int) -> list[DraftLength]:
        k, cost = self._report.k, speculation.fixed_cost
        if not speculation.chooses:
            return [DraftLength(k, None)] * B
        if not self._sampling.greedy:
            return [DraftLength(k, cost) for _ in range(B)]
        if speculation.token_cost is not None:
            return [DraftLength(k, cost * B**0.5, rows=B)] * B
        self._meter = CostMeter(self.batch.model.definition.output, "chain", k)
        return [DraftLength(k, self._meter.cost, rows=B)] * B

    def _paired(self) -> list[tuple[Row, DraftLength]]:
        return list(zip(self.batch.rows, self._lengths, strict=True))

    def _limit(self, row: Row, length: DraftLength) -> int:
        """Tokens that the row's next step may decide."""
        if row.finish is not None or not self.batch.read_prompts:
            return 1
        if self._meter is not None and self._meter.probing:
            return 1
        return min(length.k, row.remaining)

    def _shrink(self) -> None:
        places = self.batch.shrink()
        if places is None:
            return
        self._dice.keep(places)
        index = self.batch.tensor(places)
        self._lengths = [self._lengths[place] for place in places]
        self._drafts = self._drafts[index]
        self._q = None if self._q is None else self._q[index]

    def _judge(self, logits: Tensor, limits: list[int]) -> tuple[Judged, Tensor | None]:
        """The verdict on the drafts, and where it hangs on a near-tie (None: not looked for)."""
        W, drafts = logits.shape[1], self._drafts
        logits = penalise(logits, self._seen_along(W), self._sampling.repetition_penalty)
        if self._sampling.greedy and self._lossy is None:
            doubtful = contested(logits, self._margin) if self._margin else None
            best = logits.argmax(-1)
            if W == 1:
                return Judged(best, torch.ones_like(best[:, 0])), doubtful
            return matches(best, drafts, self.batch.tensor(limits)), doubtful
        limit = self.batch.tensor(limits)
        lengths = [len(row.tokens) for row in self.batch.rows]
        if self._lossy is not None and self._sampling.greedy:
            p = torch.softmax(logits.float(), -1)
            return typical(p, drafts, limit, self._lossy, self._dice, None), None
        p = probabilities(logits, self._sampling)
        draws = self._dice.uniforms(lengths, W, Use.SAMPLE)
        if self._lossy is not None:
            return typical(p, drafts, limit, self._lossy, self._dice, draws), None
        q = p[:, :0] if self._q is None else self._q
        chances = self._dice.uniforms(lengths, W - 1, Use.ACCEPT)
        return rejection(p, q, drafts, limit, self._dice, chances, draws), None

    def _seen_along(self, W: int) -> Tensor | None:
        """Tokens seen at each place of the window, `[B, W, V]`: drafts count from the next on."""
        if self.batch.seen is None:
            return None
        seen = self.batch.seen[:, None].repeat(1, W, 1)
        for place in range(1, W):
            draft = self._drafts[:, None, place - 1 : place].expand(-1, W - place, -1)
            seen[:, place:].scatter_(2, draft, True)
        return seen

    def _settled(self, judged: Judged, doubtful: Tensor | None) -> list[list[int]]:
        """The decided tokens of each row on this machine, near-ties settled.

        Where the definition says another token than the window did, the row's step ends with it.
        """
        parts = [judged.tokens, judged.count[:, None]]
        parts += [] if doubtful is None else [doubtful.long()]
        W, rows = judged.tokens.shape[1], torch.cat(parts, 1).tolist()  # the one wait
        decided: list[list[int]] = [numbers[: numbers[W]] for numbers in rows]
        if doubtful is None:
            return decided
        for row, tokens, numbers in zip(self.batch.rows, decided, rows, strict=True):
            doubts = [i for i in range(len(tokens)) if numbers[W + 1 + i]]
            for i in doubts if row.finish is None else []:
                self._report.rereads += 1
                text = row.tokens + tokens[:i]
                token = by_definition(self.batch.model.definition, text, self._sampling)
                if token != tokens[i]:
                    tokens[i:] = [token]
                    break
        return decided

    def _scores(
        self, logits: Tensor, judged: Judged, decided: list[list[int]]
    ) -> list[list[float]]:
        if not self._logprobs:
            return [[] for _ in decided]
        W = logits.shape[1]
        tokens = self.batch.tensor([[*row, *[0] * (W - len(row))] for row in decided])
        scores: list[list[float]] = token_logprobs(logits, tokens).tolist()
        return scores

    def _count(self, taken: int, decided: int, limit: int, length: DraftLength) -> None:
        """Report a row's step, of which `taken` tokens came before its end."""
        accepted = min(taken, decided - 1)
        tested = accepted + (taken == decided and decided < limit)
        self._report.add_step(taken, tested, accepted)
        length.learn(tested, accepted)

    def _guess(self, last: list[int]) -> None:
        """Draft from heads 2 … k at place `last` of each row's window."""
        batch = self.batch
        one = self._lengths[0]
        still = one is self._lengths[-1] and one.k == 1  # as greedy rows agree on it
        counts = [0 if still else self._limit(row, length) - 1 for row, length in self._paired()]
        if max(counts) == 0:
            self._drafts, self._q = self._drafts[:, :0], None
            return
        output, pairs = batch.model.drafts, Pairs.of(counts, batch.device)
        logits = output.logits(batch.guess(last, counts))  # [P, V']
        seen = None if batch.seen is None else batch.seen[pairs.rows]
        logits = penalise(logits, output.narrowed(seen), self._draft.repetition_penalty)
        B = len(counts)
        if self._sampling.greedy:
            self._drafts = pairs.placed(output.tokens(logits.argmax(-1)), B)
            return
        q = probabilities(logits, self._draft)
        lengths = [len(row.tokens) for row in batch.rows]
        uniforms = self._dice.uniforms(lengths, max(counts), Use.DRAFT)[pairs.rows, pairs.heads]
        self._drafts = pairs.placed(output.tokens(self._dice.pick(q, uniforms)), B)
        self._q = pairs.placed(output.spread(q), B)
