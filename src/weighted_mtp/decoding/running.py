"""A batch that rows join and leave between forward passes.

The rows lie side by side at the front of a cache that is allocated once. A new row is read into the
place behind the last; where a row ended, the last one takes its place. Each row has its own
sampling, seed and limits, and its text is the one that `complete` gives for it alone: greedy
choices do not depend on neighbours (`greedy`), and drawn ones use the numbers of the row (`dice`)
and its own draft length, so that they differ at most where rounding does.

Letters: B rows, W tokens read at once, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from weighted_mtp.decoding.batch import first_heads
from weighted_mtp.decoding.dice import Dice, Use
from weighted_mtp.decoding.draft_heads import Pairs, pairs_among
from weighted_mtp.decoding.draft_length import DraftLength
from weighted_mtp.decoding.fast_model import FastModel, Window
from weighted_mtp.decoding.greedy import by_definition, contested, tie_margin
from weighted_mtp.decoding.plain import token_logprobs
from weighted_mtp.decoding.report import Report
from weighted_mtp.decoding.running_rows import (
    Alternatives,
    Order,
    RunningRow,
    by_kind,
    filled,
    seen_along,
    stacked_seen,
)
from weighted_mtp.decoding.sampling import Sampling, penalise, probabilities
from weighted_mtp.decoding.speculative import Speculation
from weighted_mtp.decoding.step_clock import CostMeter
from weighted_mtp.decoding.verify import Judged, matches, rejection
from weighted_mtp.models.meta_mtp.transformer import Transformer

_WIDTHS = 32  # prompts are padded to multiples of this
_MANY_STEPS = 1 << 30  # the batch has no end: weights may be copied


class RunningBatch:
    """Rows that are being continued, and the cache that holds all they read.

    Args:
        max_rows: rows at a time.
        length: tokens of the longest row, prompt and text.
        speculation: draft with the model's heads; None decodes plainly.

    Attributes:
        rows: those in the batch, none of which has ended.
        report: counts since the beginning.

    Raises:
        ValueError: the model has fewer positions or heads, or a speculation that is not served.
    """

    def __init__(
        self, model: Transformer, max_rows: int, length: int, speculation: Speculation | None = None
    ) -> None:
        k = 1 if speculation is None else speculation.heads_of(model.args.n_future_tokens)
        ids = None if speculation is None else speculation.ids_of(model)
        if speculation is not None and (
            speculation.draft or speculation.lossy_typical or isinstance(speculation.tree, int)
        ):
            raise ValueError("a running batch drafts chains, as the text is drawn, without loss")
        if length + k - 1 > model.max_positions:
            raise ValueError(
                f"rows of {length} tokens and {k - 1} drafts exceed the model's "
                f"{model.max_positions} positions"
            )
        width = max_rows if speculation is None else speculation.width(max_rows, k)
        self.model = FastModel(first_heads(model, k), _MANY_STEPS, ids, width)
        self.max_rows, self.length = max_rows, length
        self._speculation, self._device = speculation, model.tok_embeddings.weight.device
        self._cache = self.model.cache(max_rows, length + k - 1)
        self._cache.commit()  # so that memory is missing now, if at all, and never grows by it
        self.rows: list[RunningRow] = []
        self.report = Report(k)
        self._meter: CostMeter | None = None
        if speculation is not None and speculation.chooses and speculation.token_cost is None:
            self._meter = CostMeter(model.output, "chain", k)
            self._length = DraftLength(k, self._meter.cost, max_rows)  # of all greedy rows

    @property
    def free(self) -> int:
        """Rows that may join."""
        return self.max_rows - len(self.rows)

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache."""
        return self._cache.nbytes

    def check(self, order: Order) -> None:
        """Refuse an order that no row can hold.

        Raises:
            ValueError: why.
        """
        V, longest = self.model.args.vocab_size, len(order.prompt) + order.stopping.max_new_tokens
        if not order.prompt:
            raise ValueError("the prompt is empty; it needs at least one token")
        if order.stopping.max_new_tokens < 1:
            raise ValueError("max_new_tokens must be at least 1")
        if longest > self.length:
            raise ValueError(
                f"the prompt has {len(order.prompt)} tokens, which with "
                f"{order.stopping.max_new_tokens} new ones exceed {self.length}"
            )
        strange = next((token for token in order.prompt if not 0 <= token < V), None)
        if strange is not None:
            raise ValueError(f"token {strange} is not in the vocabulary, which ends at {V - 1}")

    @torch.inference_mode()
    def admit(self, orders: Sequence[Order]) -> list[RunningRow]:
        """Read prompts, `free` at most; each gains its first token. Rows that end by it do not
        join."""
        if not orders:
            return []
        if self._meter is not None:
            self._meter.pause()
        device, V = self._device, self.model.args.vocab_size
        new = [RunningRow(order, self._draft_length(order), device, V) for order in orders]
        first = len(self.rows)
        lengths = [len(order.prompt) for order in orders]
        prompts = [self._tensor(list(order.prompt)) for order in orders]
        # On the right, to few different widths: oneDNN keeps about 1 MiB (SmolLM2) for each shape.
        width = min(-(-max(lengths) // _WIDTHS) * _WIDTHS, self._cache.length)
        tokens = filled(pad_sequence(prompts, batch_first=True), width)
        cache = self._cache.rows(first, first + len(new))
        states, window = self.model.read(tokens, 0, cache)
        last = [length - 1 for length in lengths]
        at = torch.arange(len(new), device=device)
        logits = self.model.output(states[at, self._tensor(last)][:, None])  # [B, 1, V]
        self.report.forwards += 1
        self._advance(new, logits, first=True)
        self._guess(new, window, last)
        self.rows += new
        self._close_gaps()
        return new

    @torch.inference_mode()
    def step(self) -> list[RunningRow]:
        """One forward pass: every row gains tokens; those that end by it leave."""
        rows = self.rows
        if not rows:
            return []
        if self._meter is not None:
            self._length.rows = len(rows)
        newest = self._tensor([[row.row.tokens[-1]] for row in rows])
        window = torch.cat([newest, self._drafts(rows)], 1)  # [B, W]
        starts = [len(row.row.tokens) - 1 for row in rows]
        states, read = self.model.read(window, starts, self._cache.rows(0, len(rows)))
        self.report.forwards += 1
        counts = self._advance(rows, self.model.output(states))
        self._guess(rows, read, [count - 1 for count in counts])
        self._close_gaps()
        return rows

    def drop(self, gone: Iterable[RunningRow]) -> None:
        """Let rows leave before their end."""
        self._close_gaps({id(row) for row in gone})

    def _draft_length(self, order: Order) -> DraftLength:
        k, given = self.report.k, self._speculation
        if given is None or not given.chooses:
            return DraftLength(k, None)
        # As `Speculative`: what a greedy row drafts is free, a drawn text depends on it.
        if not order.sampling.greedy:
            return DraftLength(k, given.fixed_cost)
        if self._meter is not None:
            return self._length  # one row's drafts are padding in all others' windows
        return DraftLength(k, given.fixed_cost * max(1, len(self.rows)) ** 0.5)

    def _drafts(self, rows: Sequence[RunningRow]) -> Tensor:
        """`[B, W − 1]`, filled up at the right."""
        return pad_sequence([row.drafts for row in rows], batch_first=True)

    def _advance(
        self, rows: Sequence[RunningRow], logits: Tensor, first: bool = False
    ) -> list[int]:
        """Decide tokens by `logits` `[B, W, V]` and append them; how many each row decided."""
        decided = self._settled(rows, *self._judge(rows, logits))
        if self._meter is not None and not first:
            context = max(len(row.row.tokens) for row in rows)
            self._meter.tick(logits.shape[1], len(rows), context)
        scores, likeliest = self._scores(rows, logits, decided)
        for place, (row, tokens) in enumerate(zip(rows, decided, strict=True)):
            before, limit = len(row.row.tokens), row.limit
            taken = row.row.push(tokens, scores[place])
            appended = len(row.row.tokens) - before
            row.alternatives += likeliest[place][:appended]
            row.note(tokens[:appended])
            self.report.tokens += appended
            if not first:
                accepted = min(taken, len(tokens) - 1)
                tested = accepted + (taken == len(tokens) and len(tokens) < limit)
                self.report.add_step(taken, tested, accepted)
                row.length.learn(tested, accepted)
        return [len(tokens) for tokens in decided]

    def _judge(
        self, rows: Sequence[RunningRow], logits: Tensor
    ) -> tuple[list[list[int]], list[list[int]]]:
        """For each row what it decided, and where greedy choices are near-ties."""
        W, order, parts = logits.shape[1], [], []
        for kind, places in by_kind(rows).items():
            some = [rows[place] for place in places]
            own = logits if len(some) == len(rows) else logits[self._tensor(places)]
            judged, doubtful = self._judge_kind(kind, some, own)
            parts.append(torch.cat([judged.tokens, judged.count[:, None], doubtful.long()], 1))
            order += places
        found: list[list[int]] = torch.cat(parts).tolist()  # the one wait for the device
        decided: list[list[int]] = [[] for _ in rows]
        doubts: list[list[int]] = [[] for _ in rows]
        for place, numbers in zip(order, found, strict=True):
            decided[place] = numbers[: numbers[W]]
            doubts[place] = [i for i in range(numbers[W]) if numbers[W + 1 + i]]
        return decided, doubts

    def _judge_kind(
        self, kind: Sampling, rows: Sequence[RunningRow], logits: Tensor
    ) -> tuple[Judged, Tensor]:
        """The verdict on rows of one kind, `logits` `[B, W, V]`, and the near-ties `[B, W]`."""
        W = logits.shape[1]
        drafts = filled(self._drafts(rows), W - 1)
        limit = self._tensor([row.limit for row in rows])
        logits = penalise(logits, seen_along(rows, drafts), kind.repetition_penalty)
        calm = torch.zeros(logits.shape[:2], dtype=torch.bool, device=self._device)
        if kind.greedy:
            margin = tie_margin(self.model.definition, kind)
            doubtful = contested(logits, margin) if margin else calm
            return matches(logits.argmax(-1), drafts, limit), doubtful
        lengths, dice = self._chance(rows)
        p = probabilities(logits, kind)
        q = p[:, :0]
        if W > 1:
            empty = p[0, :0]
            each = [empty if row.q is None else row.q for row in rows]
            q = filled(pad_sequence(each, batch_first=True), W - 1)
        chances = dice.uniforms(lengths, W - 1, Use.ACCEPT)
        draws = dice.uniforms(lengths, W, Use.SAMPLE)
        return rejection(p, q, drafts, limit, dice, chances, draws), calm

    def _settled(
        self,
        rows: Sequence[RunningRow],
        decided: list[list[int]],
        doubts: Sequence[Sequence[int]],
    ) -> list[list[int]]:
        """Near-ties settled by the definition; where it says otherwise, the row's pass ends."""
        for row, tokens, places in zip(rows, decided, doubts, strict=True):
            for i in places:
                self.report.rereads += 1
                text = row.row.tokens + tokens[:i]
                token = by_definition(self.model.definition, text, row.order.sampling)
                if token != tokens[i]:
                    tokens[i:] = [token]
                    break
        return decided

    def _scores(
        self, rows: Sequence[RunningRow], logits: Tensor, decided: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], list[list[Alternatives]]]:
        """Log-probabilities of the decided tokens, and the likeliest tokens, where asked for."""
        scores: list[list[float]] = [[] for _ in rows]
        likeliest: list[list[Alternatives]] = [[] for _ in rows]
        for place, (row, tokens) in enumerate(zip(rows, decided, strict=True)):
            count = row.order.alternatives
            if count is None:
                continue
            own = logits[place, : len(tokens)]  # [tokens, V]
            scores[place] = token_logprobs(own, self._tensor(tokens)).tolist()
            likeliest[place] = [[] for _ in tokens]
            if count:
                wide = own if own.dtype == torch.float64 else own.float()
                best = torch.log_softmax(wide, -1).topk(min(count, wide.shape[-1]), -1)
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                likeliest[place] = [list(zip(ids, values, strict=True)) for ids, values in pairs]
        return scores, likeliest

    def _guess(self, rows: Sequence[RunningRow], window: Window, last: Sequence[int]) -> None:
        """Draft from heads 2 … k at place `last` of what each row read."""
        probing = self._meter is not None and self._meter.probing
        wanted = [
            0
            if row.row.finish is not None or (probing and row.kind.greedy)
            else min(row.length.k, row.row.remaining) - 1
            for row in rows
        ]
        for row in rows:
            row.drafts, row.q = row.drafts[:0], None
        if max(wanted) == 0:
            return
        states, output = self.model.guess_some(window, last, wanted), self.model.drafts
        logits = output.logits(states)  # [P, V']
        for kind, places in by_kind(rows).items():
            some, counts = [rows[place] for place in places], [wanted[place] for place in places]
            if max(counts) == 0:
                continue
            pairs, own = Pairs.of(counts, self._device), logits
            if len(some) < len(rows):
                own = logits[self._tensor(pairs_among(wanted, places))]
            seen = None if some[0].seen is None else stacked_seen(some)[pairs.rows]
            own = penalise(own, output.narrowed(seen), kind.repetition_penalty)
            q = None if kind.greedy else probabilities(own, kind)
            if q is None:
                drafts = output.tokens(own.argmax(-1))
            else:
                lengths, dice = self._chance(some)
                uniforms = dice.uniforms(lengths, max(counts), Use.DRAFT)
                drafts = output.tokens(dice.pick(q, uniforms[pairs.rows, pairs.heads]))
                q = pairs.placed(output.spread(q), len(some))
            drafts = pairs.placed(drafts, len(some))
            for i, (row, place) in enumerate(zip(some, places, strict=True)):
                row.drafts = drafts[i, : wanted[place]]
                row.q = None if q is None else q[i, : wanted[place]]

    def _chance(self, rows: Sequence[RunningRow]) -> tuple[list[int], Dice]:
        return [len(row.row.tokens) for row in rows], Dice.joined([row.dice for row in rows])

    def _close_gaps(self, gone: Iterable[int] = ()) -> None:
        """Let rows go that have ended or are `gone` (by `id`); the last ones fill their places."""
        gone = set(gone)
        stay = [
            place
            for place, row in enumerate(self.rows)
            if row.row.finish is None and id(row) not in gone
        ]
        count = len(stay)
        order, movers = list(range(count)), [place for place in stay if place >= count]
        for hole in sorted(set(order).difference(stay)):
            order[hole] = mover = movers.pop()
            self._cache.copy_row(mover, hole, len(self.rows[mover].row.tokens))
        self.rows = [self.rows[place] for place in order]

    def _tensor(self, numbers: Sequence[object]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long).to(self._device, non_blocking=True)
