"""Continuing prompts with a model: all at once, or piece by piece as the tokens come."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from weighted_mtp.decoding.batch import Batch
from weighted_mtp.decoding.copies import Copies
from weighted_mtp.decoding.dice import Dice
from weighted_mtp.decoding.plain import Plain
from weighted_mtp.decoding.report import Report
from weighted_mtp.decoding.rows import Completion, Piece, Row
from weighted_mtp.decoding.sampling import Sampling
from weighted_mtp.decoding.speculative import Speculation, Speculative
from weighted_mtp.decoding.stopping import Stopping
from weighted_mtp.decoding.tree_speculative import TreeSpeculative
from weighted_mtp.models.meta_mtp.transformer import Transformer


def generate(
    model: Transformer | Copies,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_id: int | Collection[int] | None = None,
    sampling: Sampling | None = None,
    speculation: Speculation | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens` tokens, or to its EOS.

    Args:
        prompts: token ids, at least one each; lengths may differ.
        eos_id: ends a row (with several, any of them); it is not part of the result.
        sampling: greedy by default.
        speculation: draft with the model's heads; plain decoding by default.

    Returns:
        The new tokens of each row, in order.

    Raises:
        ValueError: an empty prompt, an id the model does not have, prompt plus new tokens exceed
            the model's positions, or k exceeds its heads.
    """
    stopping = Stopping(max(0, max_new_tokens), eos_id)
    completions, _ = complete(model, prompts, stopping, sampling, speculation)
    return [completion.tokens for completion in completions]


def complete(
    model: Transformer | Copies,
    prompts: Sequence[Sequence[int]],
    stopping: Stopping,
    sampling: Sampling | None = None,
    speculation: Speculation | None = None,
    row_seeds: Sequence[int] | None = None,
    logprobs: bool = False,
) -> tuple[list[Completion], Report]:
    """Continue each prompt; tokens, text, log-probabilities and what it took.

    Args and errors as for `Stream`.
    """
    stream = Stream(model, prompts, stopping, sampling, speculation, row_seeds, logprobs)
    for _ in stream:
        pass
    return stream.completions(), stream.report


class Stream(Iterator[list[Piece]]):
    """Continues prompts step by step: each turn yields a piece for every row that took part.

    Args:
        model: as it is, or with the copies that a `Decoder` keeps.
        prompts: token ids, at least one each; lengths may differ.
        stopping: what ends a row, and how tokens become text.
        sampling: greedy by default.
        speculation: draft with the model's heads; plain decoding by default.
        row_seeds: one for each prompt; together with `sampling.seed` it settles the row's chance,
            whatever its neighbours. By default 0, 1, 2, ...
        logprobs: keep the tokens' log-probabilities.

    Attributes:
        report: counts so far.

    Raises:
        ValueError: an empty prompt, an id the model does not have, prompt plus new tokens exceed
            the model's positions, k exceeds its heads, row seeds of another number, or a tree of
            drafts for several prompts or for a model of one head.
    """

    def __init__(
        self,
        model: Transformer | Copies,
        prompts: Sequence[Sequence[int]],
        stopping: Stopping,
        sampling: Sampling | None = None,
        speculation: Speculation | None = None,
        row_seeds: Sequence[int] | None = None,
        logprobs: bool = False,
    ) -> None:
        sampling = sampling or Sampling()
        copies = model if isinstance(model, Copies) else Copies(model, keep=False)
        model = copies.model
        k = 1 if speculation is None else speculation.heads_of(model.args.n_future_tokens)
        seeds = list(range(len(prompts))) if row_seeds is None else list(row_seeds)
        check_prompts(model, prompts, stopping.max_new_tokens)
        nodes = None if speculation is None else speculation.nodes(len(prompts), k, sampling)
        if nodes is not None:
            check_tree(len(prompts), k)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} row seeds for {len(prompts)} prompts; give one each")
        self._rows = [Row(index, prompt, stopping) for index, prompt in enumerate(prompts)]
        self.report = Report(k)
        self._engine: Plain | Speculative | TreeSpeculative | None = None
        if not prompts or stopping.max_new_tokens == 0:
            for row in self._rows:
                row.finish = "length"
            return
        with torch.inference_mode():
            penalised = sampling.repetition_penalty != 1
            if speculation is not None and speculation.draft is not None:
                penalised |= speculation.draft.repetition_penalty != 1
            drafts = None if nodes is None else nodes - 1
            ids = None if speculation is None else speculation.ids_of(model)
            room = stopping.max_new_tokens
            width = len(prompts) if speculation is None else speculation.width(len(prompts), k)
            fast = copies.fast(k, room, ids, width)
            batch = Batch(fast, self._rows, room, penalised, drafts)
            dice = Dice(sampling.seed, seeds, batch.device)
            if speculation is None:
                self._engine = Plain(batch, sampling, dice, self.report, logprobs)
            else:
                kind = Speculative if nodes is None else TreeSpeculative
                self._engine = kind(batch, sampling, speculation, dice, self.report, logprobs)

    def __next__(self) -> list[Piece]:
        if self._engine is None:
            raise StopIteration
        live = self._engine.batch.live
        with torch.inference_mode():
            self._engine.step()
        pieces = [row.take() for row in live]
        self.report.tokens += sum(len(piece.tokens) for piece in pieces)
        if not self._engine.batch.live:
            self._engine = None  # the cache may go
        return pieces

    def completions(self) -> list[Completion]:
        """All that each row gained, once the stream has ended.

        Raises:
            ValueError: it has not.
        """
        if self._engine is not None:
            raise ValueError("the stream has not ended; read it to its end first")
        return [row.completion() for row in self._rows]


def check_tree(rows: int, k: int) -> None:
    """Refuse what no tree of drafts can serve.

    Raises:
        ValueError: why.
    """
    if rows > 1:
        raise ValueError(
            f"a tree of drafts is for one row at a time, and {rows} prompts were given together; "
            "give them one by one, or leave the tree out"
        )
    if k == 1:
        raise ValueError("a tree of drafts needs heads to draft with, and the model has one head")


def check_prompts(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Refuse prompts that the model cannot continue.

    Raises:
        ValueError: which, and why.
    """
    if max_new_tokens == 0:
        return
    vocabulary, room = model.args.vocab_size, model.max_positions
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty; a prompt needs at least one token")
        if len(prompt) + max_new_tokens > room:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens, which with {max_new_tokens} new ones "
                f"exceed the model's {room} positions; shorten it, or ask for fewer"
            )
        strange = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if strange is not None:
            raise ValueError(
                f"prompt {index} has token {strange}, and the model's vocabulary ends at "
                f"{vocabulary - 1}; use its own tokenizer"
            )
