"""A model that is served: from requests to orders for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import has_chat_template
from weighted_mtp.core.types import Message
from weighted_mtp.decoding.running import RunningBatch
from weighted_mtp.decoding.running_rows import Order
from weighted_mtp.pipelines.evaluating.writer import ModelWriter, continuation_decoder
from weighted_mtp.serving.engine import Engine
from weighted_mtp.serving.metrics import Metrics
from weighted_mtp.serving.protocol import Asked, RequestError


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        max_rows: texts that are written at a time.
        max_length: tokens of a prompt and its text.
        max_queue: texts that wait.
        max_body: bytes of a request.
        timeout: seconds from a request to the end of its texts.
        upload: seconds in which a body must arrive.
    """

    max_rows: int = 16
    max_length: int = 2048
    max_queue: int = 512
    max_body: int = 4 << 20
    timeout: float = 600.0
    upload: float = 30.0


class Service:
    """A model, its tokenizer and the engine that decodes.

    Args:
        name: what clients call the model.

    Raises:
        UserError: the limits do not fit the model, or the cache does not fit the memory.
    """

    def __init__(self, writer: ModelWriter, name: str, limits: Limits) -> None:
        self.name, self.limits, self.metrics = name, limits, Metrics()
        self._writer = writer
        try:
            batch = RunningBatch(
                writer.model, limits.max_rows, limits.max_length, writer.speculation
            )
        except ValueError as error:
            raise UserError(f"--max-length {limits.max_length}: {error}") from error
        except RuntimeError as error:  # PyTorch's on a CPU; its OutOfMemoryError is one as well
            raise UserError(
                f"a cache of {limits.max_rows} rows of {limits.max_length} tokens does not fit the "
                "memory; lower --max-rows or --max-length"
            ) from error
        self.cache_bytes = batch.cache_bytes
        self.engine = Engine(batch, self.metrics, limits.max_queue)
        self.chat = has_chat_template(writer.model_dir)
        if self.chat:
            writer.encode([{"role": "user", "content": "x"}])  # loads it, and finds its end of turn
        decode = continuation_decoder(writer.tokenizer)
        self.name_token = lru_cache(maxsize=1 << 16)(lambda token: decode([token]))

    def orders(self, asked: Asked) -> list[Order]:
        """One order for each text of a request.

        Raises:
            RequestError: a prompt is empty or too long, or the model cannot chat.
        """
        where = "messages" if asked.chat else "prompt"
        found: list[Order] = []
        for prompt in asked.prompts:
            ids = self._ids(prompt, where)
            room = self.limits.max_length - len(ids)
            wanted = asked.max_tokens or max(1, room)
            if wanted > room:
                raise RequestError(
                    f"{where}: {len(ids)} tokens and {wanted} new ones exceed the "
                    f"{self.limits.max_length} that this server has for a text; shorten it, or ask "
                    "for fewer",
                    where,
                    code="context_length_exceeded",
                )
            stopping = self._writer.stopping(asked.stops, wanted, asked.chat)
            order = Order(ids, stopping, asked.sampling, 0, asked.alternatives)
            try:
                self.engine.check(order)
            except ValueError as error:
                raise RequestError(f"{where}: {error}", where) from error
            found += [replace(order, row_seed=len(found) + i) for i in range(asked.n)]
        return found

    def _ids(self, prompt: str | Sequence[int] | Sequence[Message], where: str) -> list[int]:
        if not isinstance(prompt, str) and isinstance(prompt[0], int):
            return [token for token in prompt if isinstance(token, int)]
        if not isinstance(prompt, str) and not self.chat:
            raise RequestError(
                f"{self.name} has no chat template; take /v1/completions", where, 400
            )
        try:
            return self._writer.encode(prompt)  # type: ignore[arg-type]  # ids were dealt with
        except UserError as error:
            raise RequestError(f"{where}: {error}", where) from error

    def metrics_text(self) -> str:
        """All figures, in Prometheus' format."""
        gauges = {
            "queue_rows": ("Texts that wait.", float(self.engine.waiting)),
            "running_rows": ("Texts that are being written.", float(self.engine.running)),
            "max_rows": ("Texts that can be written at a time.", float(self.limits.max_rows)),
            "cache_bytes": ("Memory of the key-value cache.", float(self.cache_bytes)),
        }
        return self.metrics.text(self.engine.report, gauges)
