"""Self-speculative decoding of one row with a tree of drafts.

A step reads the newest token and the tree behind it; the first head chooses the token after every
node, exactly as plain decoding would if the node's path were the text. The row follows these
choices through the tree for as long as the tree holds them, so **the text is plain decoding's
whatever the tree**: greedy token for token, sampled draw for draw (each position has a number of
its own, `dice`), and a choice is among a node's children with the sum of their probabilities.

Keys and values of the kept path are moved to the slots of its positions; there heads 2 … k guess
again. A step waits for the device twice: for its choices, and for the guesses to grow a tree of.

Letters: S nodes, k tokens ahead, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weighted_mtp.decoding.batch import Batch
from weighted_mtp.decoding.dice import Dice, Use
from weighted_mtp.decoding.greedy import by_definition, contested, tie_margin
from weighted_mtp.decoding.head_odds import HeadOdds
from weighted_mtp.decoding.plain import token_logprobs
from weighted_mtp.decoding.report import Report
from weighted_mtp.decoding.sampling import Sampling, penalise, probabilities
from weighted_mtp.decoding.speculative import Speculation
from weighted_mtp.decoding.step_clock import CostMeter
from weighted_mtp.decoding.tree import Guesses, Tree, likeliest, worthwhile

_PAUSES = (0, 0, 1, 2, 4, 8, 16)  # steps without guesses after so many trees that were a root only


class TreeSpeculative:
    """Continues one row by up to k tokens a step.

    Args:
        batch: of one row, its prompt unread, its model with k > 1 heads.
        speculation: that gives one row a tree.
        dice: chance for the row; unused at temperature 0.
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
        (self._row,) = batch.rows
        self.batch, self._sampling, self._dice = batch, sampling, dice
        self._report, self._logprobs = report, logprobs
        self._draft = speculation.draft or sampling
        self._margin = tie_margin(batch.model.definition, sampling) if sampling.greedy else 0.0
        report.ties = "exact" if self._margin else "fast"
        nodes = speculation.nodes(1, report.k, sampling)
        assert nodes is not None, "a chain"
        self._most, self._adaptive = nodes, speculation.chooses
        self._cost = speculation.fixed_cost
        self._meter: CostMeter | None = None
        if self._adaptive and sampling.greedy and speculation.token_cost is None:
            self._meter = CostMeter(batch.model.definition.output, "tree", report.k)
        self._odds = HeadOdds(report.k - 1)
        self._guesses: Guesses = []  # of the tree that is read next, as the heads have them
        self._barren, self._pause = 0, 0
        self._tree = Tree(self._row.tokens[-1])

    def step(self) -> None:
        """One forward pass: the row gains 1 … k tokens, and a new tree."""
        batch, row, tree, first = self.batch, self._row, self._tree, not self.batch.read_prompts
        logits = batch.model.output(batch.read_tree(tree))[0]  # [S, V]
        self._report.forwards += 1
        choices, doubtful = self._choices(logits, tree)
        path, tokens = self._follow(tree, choices, doubtful)
        if self._meter is not None:
            self._meter.tick(len(tree), 1, len(row.tokens))
        taken = row.push(tokens, self._scores(logits, path, tokens))
        if not first:
            self._count(tree, path, taken, len(tokens))
        batch.note([tokens])
        if batch.live:
            batch.keep_path(path)
            self._tree = self._grow(len(path) - 1)

    def _choices(self, logits: Tensor, tree: Tree) -> tuple[Sequence[int], list[int]]:
        """The token after each node, and whether it hangs on a near-tie."""
        if self.batch.seen is not None:
            seen = tree.mark(self.batch.seen[0])
            logits = penalise(logits, seen, self._sampling.repetition_penalty)
        if not self._sampling.greedy:
            return self._drawn(probabilities(logits, self._sampling), tree), [0] * len(tree)
        best = logits.argmax(-1)
        doubtful = contested(logits, self._margin) if self._margin else torch.zeros_like(best)
        choices, doubts = torch.stack([best, doubtful.long()]).tolist()
        return choices, doubts

    def _drawn(self, p: Tensor, tree: Tree) -> Sequence[int]:
        """A token from each node's distribution, by the number that the row has for its position:
        nodes of one depth share it, as only one of them can come about."""
        count = max(tree.depths) + 1
        numbers = self._dice.uniforms([len(self._row.tokens)], count, Use.SAMPLE)[0]
        drawn: list[int] = self._dice.pick(p, numbers[self.batch.tensor(tree.depths)]).tolist()
        return drawn

    def _follow(
        self, tree: Tree, choices: Sequence[int], doubtful: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """The path that stays, and the token decided at each of its nodes, near-ties settled."""
        path, tokens = [0], list[int]()
        while True:
            token = choices[path[-1]]
            if doubtful[path[-1]]:
                self._report.rereads += 1
                text = self._row.tokens + tokens
                token = by_definition(self.batch.model.definition, text, self._sampling)
            tokens.append(token)
            child = tree.children[path[-1]].get(token)
            if child is None:
                return path, tokens
            path.append(child)

    def _scores(self, logits: Tensor, path: list[int], tokens: list[int]) -> list[float]:
        if not self._logprobs:
            return []
        on_path = logits[self.batch.tensor(path)]
        scores: list[float] = token_logprobs(on_path, self.batch.tensor(tokens)).tolist()
        return scores

    def _count(self, tree: Tree, path: list[int], taken: int, decided: int) -> None:
        """Report a step, of which `taken` tokens came before the row's end."""
        accepted = min(taken, decided - 1)
        tested = accepted + (taken == decided and bool(tree.children[path[-1]]))
        self._report.add_step(taken, tested, accepted)
        self._report.nodes += len(tree)
        for head in range(tested):
            own = dict(self._guesses[head])
            promised = sum(own[token] for token in tree.children[path[head]])
            self._odds.learn(head, promised, head < accepted)

    def _grow(self, last: int) -> Tree:
        """The next tree, guessed by heads 2 … k at the node `last` of the kept path."""
        row, batch = self._row, self.batch
        newest, room = row.tokens[-1], min(self._most, batch.room)
        count = min(self._report.k, row.remaining) - 1
        if self._meter is not None and self._meter.probing:
            return Tree(newest)
        if self._pause or count == 0 or room == 1:
            self._pause = max(0, self._pause - 1)
            return Tree(newest)
        self._guesses = self._guess(last, count, room - 1)
        likely = [
            [(token, min(1.0, chance * self._odds[head])) for token, chance in guesses]
            for head, guesses in enumerate(self._guesses)
        ]
        tree = likeliest(newest, likely, room)
        if self._adaptive:
            tree.cut(worthwhile(tree.gains, self._cost_of))
            self._barren = self._barren + 1 if len(tree) == 1 else 0
            self._pause = _PAUSES[min(self._barren, len(_PAUSES) - 1)]  # guesses take time, too
        return tree

    def _cost_of(self, width: int) -> float:
        return 1 + self._cost * (width - 1) if self._meter is None else self._meter.cost(width)

    def _guess(self, last: int, count: int, most: int) -> Guesses:
        batch, drafts = self.batch, self.batch.model.drafts
        logits = drafts.logits(batch.guess([last], [count]))  # [count, V']
        seen = drafts.narrowed(batch.seen)
        logits = penalise(logits, seen, self._draft.repetition_penalty)
        if self._sampling.greedy:
            q = torch.softmax(logits.float(), -1)
        else:
            q = probabilities(logits, self._draft)
        found = q.topk(min(most, q.shape[-1]), -1)
        tokens_found = drafts.tokens(found.indices)
        chances, tokens = torch.stack([found.values.double(), tokens_found.double()]).tolist()
        return [
            [(int(token), chance) for token, chance in zip(*pair, strict=True)]
            for pair in zip(tokens, chances, strict=True)
        ]
