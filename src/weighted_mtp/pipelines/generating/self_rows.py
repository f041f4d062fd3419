"""Write a model's own texts as training rows, for heads that are to draft what it writes."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from weighted_mtp.core.choices import OPENINGS
from weighted_mtp.core.errors import RowError, UserError
from weighted_mtp.core.files import check_output_file
from weighted_mtp.core.lock import only_writer
from weighted_mtp.core.progress import Progress
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.templates import CHAT, RAW
from weighted_mtp.data.tokens.chat import user_turn
from weighted_mtp.data.tokens.openings import draw_openings
from weighted_mtp.data.tokens.tokenizers import load_tokenizer
from weighted_mtp.decoding import Sampling, Speculation, Stopping
from weighted_mtp.decoding.running import RunningBatch
from weighted_mtp.decoding.running_rows import Order, RunningRow
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.pipelines.checkpointing.model_start import warn_past_positions
from weighted_mtp.pipelines.evaluating.writer import (
    ModelWriter,
    check_chat,
    continuation_decoder,
    heads_in_use,
    model_identity,
    row_seed,
    sampling_identity,
    template_of,
    warn_of_chat_model,
)
from weighted_mtp.pipelines.generating.journal import TextJournal, work_directory
from weighted_mtp.pipelines.generating.rows import (
    Question,
    RowMaker,
    Written,
    figures_of,
    named_counts,
)

FORMAT = 1
"""Openings that are drawn unless another number is given."""
CONTINUE = "Continue this Python code."
"""The instruction of an opening, in templates that have one."""
_REFILL = 8  # prompts are read by so many parts of a batch


@dataclass(frozen=True)
class SelfRequest:
    """What to write.

    Attributes:
        questions: None draws openings of the standard library.
        n: openings to draw, or most questions to take; None: `OPENINGS`, or all.
        held_out: draw from the held-out documents alone.
        template: of the prompts; None takes that of the run.
        stops: strings that end a text.
        texts: of each question.
        batch_size: texts at a time.
        dtype: of the weights; None keeps the stored one.
        overwrite: replace rows of another request.
    """

    model: Path
    out: Path
    questions: Sequence[Question] | None = None
    n: int | None = None
    held_out: bool = False
    template: str | None = None
    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    speculation: Speculation | None = None
    stops: tuple[str, ...] = ()
    texts: int = 1
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None
    overwrite: bool = False


class SelfRows(NamedTuple):
    """What was written.

    Attributes:
        template: the one that `data.template` must name.
        figures: `rows`, `tokens` of their responses, `ended` by an end of sequence, tokens of the
            `longest` row, `cut` and `dropped` by reason.
        already: whether an earlier run had written all of it.
        tokens, seconds: of decoding in this run.
    """

    template: str
    figures: dict[str, Any]
    already: bool
    tokens: int = 0
    seconds: float = 0.0


class _Text(NamedTuple):
    """A text to write: its number, its question and sample, and the tokens of the prompt."""

    number: int
    question: int
    sample: int
    ids: list[int]


def write_self_rows(request: SelfRequest) -> SelfRows:
    """Write the rows, or go on where an interrupted run of the same request was.

    Raises:
        UserError: the request cannot be met, another process is writing there, or no row remains.
    """
    check_output_file(request.out, "--out")
    model_args = inspect_checkpoint(request.model).args
    template = request.template or template_of(request.model)
    warn_of_chat_model(request.model, template)
    check_chat(request.model, template)
    collator = AlpacaCollator(load_tokenizer(request.model), template, model_args.max_positions)
    k = heads_in_use(request.speculation, model_args.n_future_tokens)
    longest = model_args.max_positions - request.max_new_tokens - (k - 1)
    questions = _questions(request, collator, template, longest)
    texts = _texts(request, collator, questions, longest)
    identity = _identity(request, collator, questions, k)
    remedy = "wait until it ends, or choose another --out"
    with (
        only_writer(work_directory(request.out), remedy),
        TextJournal(request.out, identity, request.overwrite) as journal,
    ):
        if journal.finished is not None:
            return SelfRows(template, journal.finished, True)
        missing = [text for text in texts if text.number not in journal.texts]
        work = _Work(request, collator, questions, journal)
        tokens, seconds = work.run(missing, len(texts)) if missing else (0, 0.0)
        figures = figures_of(journal.texts.values())
        if not figures["rows"]:
            raise UserError(
                f"{request.out}: no row remains ({named_counts(figures['dropped'])}); take another "
                "--template"
            )
        journal.finish(figures)
    with suppress(OSError):  # there is the journal of another run, by now
        work_directory(request.out).rmdir()
    return SelfRows(template, figures, False, tokens, seconds)


def _questions(
    request: SelfRequest, collator: AlpacaCollator, template: str, longest: int
) -> Sequence[Question]:
    if request.questions is not None:
        return request.questions[: request.n]
    count = OPENINGS if request.n is None else request.n
    frame = collator.encode_prompt(CONTINUE, "x") if template != RAW else collator.encode_prompt("")
    room = longest - len(frame)
    if room < 1:
        raise UserError(
            f"--max-new-tokens {request.max_new_tokens}: the model has room for {max(0, longest)} "
            "tokens of a prompt beside the new ones, which is too little for an opening; lower it"
        )
    seed = request.sampling.seed
    found = draw_openings(collator.tokenizer, count, room, seed, request.held_out)
    return [Question(text) if template == RAW else Question(CONTINUE, text) for text in found]


def _texts(
    request: SelfRequest, collator: AlpacaCollator, questions: Sequence[Question], longest: int
) -> list[_Text]:
    """Every text to write; each prompt is tokenized once.

    Raises:
        UserError: a prompt is empty, too long, or refused by the template.
    """
    texts: list[_Text] = []
    for place, question in enumerate(questions):
        try:
            ids = question.encode(collator)
        except RowError as error:
            raise UserError(f"prompt {place + 1}: {error}") from error
        if not ids:
            raise UserError(f"prompt {place + 1} is empty; give at least one character")
        if len(ids) > longest:
            raise UserError(
                f"prompt {place + 1} has {len(ids)} tokens, the model has room for "
                f"{max(0, longest)} beside the new ones; shorten it, or lower --max-new-tokens"
            )
        for sample in range(request.texts):
            texts.append(_Text(len(texts), place, sample, ids))
    return texts


def _identity(
    request: SelfRequest, collator: AlpacaCollator, questions: Sequence[Question], k: int
) -> dict[str, Any]:
    """What the rows depend on."""
    asked = [[q.instruction, q.input, list(q.messages)] for q in questions]
    return {
        "format": FORMAT,
        "model": model_identity(request.model),
        "tokenizer": collator.tokenizer.fingerprint,
        "template": collator.template_name,
        "prompts": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "n_prompts": len(questions),
        "n_samples": request.texts,
        "max_new_tokens": request.max_new_tokens,
        "stop": list(request.stops),
        "dtype": request.dtype,
        **sampling_identity(request.sampling, request.speculation if k > 1 else None, k),
    }


class _Work:
    """Decodes what the journal lacks: rows join a running batch as others end."""

    def __init__(
        self,
        request: SelfRequest,
        collator: AlpacaCollator,
        questions: Sequence[Question],
        journal: TextJournal,
    ) -> None:
        self._request, self._questions, self._journal = request, questions, journal
        self._maker = RowMaker(collator, continuation_decoder(collator.tokenizer))
        self._template = collator.template_name
        self._running: dict[int, tuple[RunningRow, _Text]] = {}

    def run(self, texts: Sequence[_Text], total: int) -> tuple[int, float]:
        """Tokens and seconds of decoding."""
        request, done = self._request, total - len(texts)
        writer = ModelWriter(
            request.model,
            request.device,
            request.sampling,
            request.max_new_tokens,
            request.dtype,
            request.speculation,
        )
        if self._template.startswith(CHAT):
            writer.encode([user_turn("x")])  # from now on its end of turn ends a text
        stopping = writer.stopping(request.stops, request.max_new_tokens, chat=True)
        length = max(len(text.ids) for text in texts) + request.max_new_tokens
        where = f"{writer.model_dir}: a prompt with {request.max_new_tokens} new tokens"
        warn_past_positions(length, writer.model.args, where)
        rows = min(request.batch_size, len(texts))
        batch = RunningBatch(writer.model, rows, length, writer.speculation)
        start = time.monotonic()
        with Progress(total, "text", done=done, together=rows) as progress:
            try:
                for _ in self._ended(batch, texts, stopping):
                    rate = batch.report.tokens / max(time.monotonic() - start, 1e-9)
                    progress.update(1, f"{rate:,.0f} tokens/s")
            except KeyboardInterrupt:
                kept = f"{len(self._journal.texts):,} of {total:,} texts are kept"
                progress.note(f"{kept}; the same command goes on from there")
                raise
        return batch.report.tokens, time.monotonic() - start

    def _ended(
        self, batch: RunningBatch, texts: Sequence[_Text], stopping: Stopping
    ) -> Iterator[Written]:
        """Each text as it ends, once it is kept."""
        waiting = deque(texts)
        while waiting or batch.rows:
            few = batch.free * _REFILL < batch.max_rows  # prompts are read several at a time
            if waiting and (not batch.rows or not few):
                joining = [waiting.popleft() for _ in range(min(batch.free, len(waiting)))]
                orders = [self._order(text, stopping) for text in joining]
                for row, text in zip(batch.admit(orders), joining, strict=True):
                    self._running[id(row)] = row, text
            batch.step()
            gone = [key for key, (row, _) in self._running.items() if row.row.finish is not None]
            for key in gone:
                yield self._keep(*self._running.pop(key))

    def _order(self, text: _Text, stopping: Stopping) -> Order:
        seed = row_seed(str(text.question), text.sample)  # as `generate`
        return Order(text.ids, stopping, self._request.sampling, seed)

    def _keep(self, row: RunningRow, text: _Text) -> Written:
        row.take()
        question = self._questions[text.question]
        made = self._maker.make(question, text.ids, row.row.completion(), row.row.end)
        if made.row is not None:
            made.row["task_id"] = f"self-{text.question}"
            if self._request.texts > 1:
                made.row["metadata"]["sample"] = text.sample
        self._journal.add(text.number, made)
        return made
