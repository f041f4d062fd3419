"""The thread that decodes: it owns the model, the batch and the queue.

Between two forward passes it lets cancelled and late texts go, admits waiting ones, first come,
first served, and hands out what the others gained. Everything else talks to it by `submit` and
`Ticket.cancel`, from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from weighted_mtp.core.errors import in_brief
from weighted_mtp.core.logging import get_logger
from weighted_mtp.decoding import Piece, Report
from weighted_mtp.decoding.running import RunningBatch
from weighted_mtp.decoding.running_rows import Alternatives, Order, RunningRow
from weighted_mtp.serving.metrics import Metrics

_log = get_logger(__name__)


@dataclass(frozen=True)
class Gain:
    """What a text gained by one forward pass; the last one has `piece.finish`."""

    piece: Piece
    alternatives: list[Alternatives]


@dataclass(frozen=True)
class Failure:
    """A text that will not be finished."""

    status: int  # of HTTP
    message: str


Deliver = Callable[["Gain | Failure"], None]


class QueueFullError(Exception):
    """There is no room for a request in the queue, or the server is closing."""


class Ticket:
    """A text that was asked for.

    Args:
        deliver: called in the engine's thread with every gain, or once with a failure; it must not
            block.
        deadline: by `time.monotonic`.
    """

    def __init__(self, order: Order, deliver: Deliver, deadline: float) -> None:
        self.order, self.deadline = order, deadline
        self.asked = time.monotonic()
        self.cancelled = self.started = False
        self._deliver = deliver

    def cancel(self) -> None:
        """Nobody waits for it any more: its row is free before the next pass."""
        self.cancelled = True

    def deliver(self, event: Gain | Failure) -> None:
        """Hand out an event, unless nobody waits."""
        if self.cancelled:
            return
        try:
            self._deliver(event)
        except RuntimeError:  # the event loop is closed
            self.cancelled = True


class Engine:
    """Decodes for many at a time.

    Args:
        longest_queue: texts that may wait.
        prefill: tokens of prompts, padding included, that are read before the running rows go on
            (one prompt always is): what bounds the pause in the others' texts.
    """

    def __init__(
        self, batch: RunningBatch, metrics: Metrics, longest_queue: int, prefill: int = 2048
    ) -> None:
        self._batch, self._metrics = batch, metrics
        self._longest_queue, self._prefill = longest_queue, prefill
        self._queue: deque[Ticket] = deque()
        self._running: dict[int, tuple[RunningRow, Ticket]] = {}  # by id of the row
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    def start(self) -> None:
        """Begin decoding."""
        self._thread.start()

    def close(self) -> None:
        """Let all texts fail that are not finished, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether texts are being decoded."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Texts in the batch."""
        return len(self._running)

    @property
    def report(self) -> Report:
        """What decoding did since the start."""
        return self._batch.report

    def check(self, order: Order) -> None:
        """Raise `ValueError` for an order that the batch cannot hold."""
        self._batch.check(order)

    def submit(
        self,
        orders: Sequence[Order],
        deliver: Callable[[int, Gain | Failure], None],
        seconds: float,
    ) -> list[Ticket]:
        """Queue the texts of one request, all or none.

        Args:
            deliver: called with the index of an order and what happened to it, see `Ticket`.
            seconds: until the request is given up.

        Raises:
            QueueFullError: there is no room for them.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            if self._closed or len(self._queue) + len(orders) > self._longest_queue:
                raise QueueFullError
            tickets = [
                Ticket(order, _numbered(deliver, index), deadline)
                for index, order in enumerate(orders)
            ]
            self._queue.extend(tickets)
            self._changed.notify()
        return tickets

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            try:
                self._pass()
            except Exception as error:  # out of memory, say; the server goes on with the others
                self._fail_running(error)
        failure = Failure(503, "the server is shutting down")
        for _, ticket in self._running.values():
            ticket.deliver(failure)
        for ticket in self._queue:
            ticket.deliver(failure)

    def _wait(self) -> bool:
        """Wait for work; False once the engine is closed."""
        with self._changed:
            while not (self._closed or self._queue or self._running):
                self._changed.wait()
            return not self._closed

    def _pass(self) -> None:
        self._let_go()
        self._admit()
        self._hand_out(self._batch.step())

    def _let_go(self) -> None:
        """Drop texts that nobody waits for or that took too long."""
        now = time.monotonic()
        with self._changed:
            kept = [ticket for ticket in self._queue if not self._is_over(ticket, now)]
            if len(kept) < len(self._queue):
                self._queue = deque(kept)
        over = [key for key, (_, ticket) in self._running.items() if self._is_over(ticket, now)]
        if over:
            self._batch.drop(self._running.pop(key)[0] for key in over)

    def _is_over(self, ticket: Ticket, now: float) -> bool:
        if ticket.cancelled:
            self._metrics.count("cancelled")
            return True
        if now > ticket.deadline:
            where = "before its end" if ticket.started else "in the queue"
            self._metrics.count("timeouts")
            ticket.deliver(Failure(504, f"the request's time was over {where}"))
            return True
        return False

    def _admit(self) -> None:
        tickets = self._next()
        if not tickets:
            return
        now = time.monotonic()
        for ticket in tickets:
            ticket.started = True
            self._metrics.observe("queue_seconds", now - ticket.asked)
            self._metrics.count("prompt_tokens", len(ticket.order.prompt))
        try:
            rows = self._batch.admit([ticket.order for ticket in tickets])
        except Exception as error:  # the rows in the batch are as they were
            self._fail(tickets, error)
            return
        done = time.monotonic()
        for row, ticket in zip(rows, tickets, strict=True):
            self._metrics.observe("first_token_seconds", done - ticket.asked)
            self._running[id(row)] = (row, ticket)
        self._hand_out(rows)

    def _next(self) -> list[Ticket]:
        """Take texts from the queue: as many as there are rows and the prefill allows."""
        taken: list[Ticket] = []
        longest = 0
        with self._changed:
            while self._queue and len(taken) < self._batch.free:
                longest = max(longest, len(self._queue[0].order.prompt))
                if taken and longest * (len(taken) + 1) > self._prefill:
                    break
                taken.append(self._queue.popleft())
        return taken

    def _hand_out(self, rows: Iterable[RunningRow]) -> None:
        for row in rows:
            piece, alternatives = row.take()
            _, ticket = self._running[id(row)]
            if piece.finish is not None:  # counted first: who has the answer may ask for figures
                del self._running[id(row)]
                self._metrics.observe("text_seconds", time.monotonic() - ticket.asked)
                self._metrics.count("texts")
            if piece.tokens or piece.text or piece.finish is not None:
                ticket.deliver(Gain(piece, alternatives))

    def _fail_running(self, error: Exception) -> None:
        rows, self._running = list(self._running.values()), {}
        self._batch.drop(row for row, _ in rows)
        self._fail([ticket for _, ticket in rows], error)

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        _log.error("decoding failed", exc_info=error)
        message = "decoding failed"
        if isinstance(error, torch.OutOfMemoryError):
            message = "out of memory; serve fewer rows (--max-rows) or shorter ones (--max-length)"
        self._metrics.count("failures", len(tickets))
        for ticket in tickets:
            ticket.deliver(Failure(500, f"{message} ({in_brief(error)})"))


def _numbered(deliver: Callable[[int, Gain | Failure], None], index: int) -> Deliver:
    return lambda event: deliver(index, event)
