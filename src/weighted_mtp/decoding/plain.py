"""Plain decoding: one token for each row by each forward pass.

A step waits for the device once, to learn the tokens: they decide which rows continue.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from weighted_mtp.decoding.batch import Batch
from weighted_mtp.decoding.dice import Dice, Use
from weighted_mtp.decoding.greedy import by_definition, contested, tie_margin
from weighted_mtp.decoding.report import Report
from weighted_mtp.decoding.sampling import Sampling, penalise, probabilities


class Plain:
    """Continues a batch token by token.

    Args:
        batch: its prompts unread.
        dice: chance for its rows; unused at temperature 0.
        logprobs: keep them.
    """

    def __init__(
        self, batch: Batch, sampling: Sampling, dice: Dice, report: Report, logprobs: bool
    ) -> None:
        self.batch, self._sampling, self._dice = batch, sampling, dice
        self._report, self._logprobs = report, logprobs
        self._margin = tie_margin(batch.model.definition, sampling) if sampling.greedy else 0.0
        report.ties = "exact" if self._margin else "fast"

    def step(self) -> None:
        """One forward pass: every live row gains a token."""
        batch, first = self.batch, not self.batch.read_prompts
        places = batch.shrink()
        if places is not None:
            self._dice.keep(places)
        logits = batch.model.output(batch.read()[:, 0])  # [B, V]
        self._report.forwards += 1
        chosen, doubtful = self._choose(logits)
        scores: list[list[float]] = [[] for _ in batch.rows]
        tokens = self._settled(chosen, doubtful)
        if self._logprobs:
            own = token_logprobs(logits, batch.tensor(tokens))
            scores = [[score] for score in own.tolist()]
        for row, token, score in zip(batch.rows, tokens, scores, strict=True):
            if row.finish is None:
                row.push([token], score)
                if not first:
                    self._report.add_step(1, 0, 0)
        batch.note([[token] for token in tokens])

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens `[B]`, and where they are near-ties (None: not looked for)."""
        logits = penalise(logits, self.batch.seen, self._sampling.repetition_penalty)
        if self._sampling.greedy:
            return logits.argmax(-1), contested(logits, self._margin) if self._margin else None
        lengths = [len(row.tokens) for row in self.batch.rows]
        uniforms = self._dice.uniforms(lengths, 1, Use.SAMPLE)[:, 0]
        return self._dice.pick(probabilities(logits, self._sampling), uniforms), None

    def _settled(self, chosen: Tensor, doubtful: Tensor | None) -> list[int]:
        """The tokens on this machine, near-ties settled."""
        if doubtful is None:
            plain: list[int] = chosen.tolist()
            return plain
        pairs: list[list[int]] = torch.stack([chosen, doubtful.long()], 1).tolist()
        tokens = []
        for row, (token, doubt) in zip(self.batch.rows, pairs, strict=True):
            reread = doubt and row.finish is None
            self._report.rereads += bool(reread)
            tokens.append(
                by_definition(self.batch.model.definition, row.tokens, self._sampling)
                if reread
                else token
            )
        return tokens


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax of `logits` `[..., V]` at `tokens` `[...]`, in float32 or better.

    As log σ of the token's log-odds against all others: z − logsumexp(z) would leave nothing but
    rounding errors of a confident token.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    at = tokens[..., None]
    odds = wide.gather(-1, at)[..., 0] - wide.scatter(-1, at, -torch.inf).logsumexp(-1)
    return F.logsigmoid(odds)
