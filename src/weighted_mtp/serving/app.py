"""The HTTP side: FastAPI translates, the engine decodes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from weighted_mtp.decoding.running_rows import Order
from weighted_mtp.serving.engine import Failure, Gain, QueueFullError, Ticket
from weighted_mtp.serving.metrics import CONTENT_TYPE
from weighted_mtp.serving.protocol import RequestError, check_model, read_request
from weighted_mtp.serving.responses import DONE, Answer, event
from weighted_mtp.serving.service import Service

_GONE = 499  # nginx's status for a client that went away; nobody reads it


def make_app(service: Service) -> FastAPI:
    """The application; the engine runs while it does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.engine.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    model = {
        "id": service.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "weighted-mtp",
        "max_model_len": service.limits.max_length,
    }

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return _refusal(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path[:80]}: {error.detail}"
        return _refusal(RequestError(what, None, error.status_code))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _refusal(RequestError("the server failed; its log says why", None, 500))

    @app.get("/health")
    async def health() -> Response:
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics_text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        check_model(name, service.name)
        return model

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _write(service, request, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _write(service, request, chat=True)

    return app


async def _write(service: Service, request: Request, chat: bool) -> Response:
    """Answer a request for texts."""
    try:
        limits = service.limits
        body = await asyncio.wait_for(_body(request, limits.max_body), limits.upload)
    except asyncio.TimeoutError:
        raise RequestError("the body did not arrive in time", None, 408) from None
    except ClientDisconnect:
        return Response(status_code=_GONE)
    asked = read_request(_parsed(body), chat, service.name)
    orders = await run_in_threadpool(service.orders, asked)
    prompts = orders[:: asked.n]
    tokens = sum(len(order.prompt) for order in prompts)
    answer = Answer(asked, service.name, tokens, service.name_token)
    texts = _Texts(service, orders)
    if asked.stream:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = _events(texts, answer)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    return await _unless_gone(request, texts, answer)


class _Texts:
    """The texts of one request as they are written; closing it lets their rows go.

    Raises:
        RequestError: the queue is full.
    """

    def __init__(self, service: Service, orders: Sequence[Order]) -> None:
        self._tickets: list[Ticket] = []
        loop, limits = asyncio.get_running_loop(), service.limits
        events: asyncio.Queue[tuple[int, Gain | Failure]] = asyncio.Queue()
        self._events = events

        def deliver(index: int, what: Gain | Failure) -> None:  # must not keep `self` alive
            loop.call_soon_threadsafe(events.put_nowait, (index, what))

        if len(orders) > limits.max_queue:
            raise RequestError(f"{len(orders)} texts are more than may wait ({limits.max_queue})")
        try:
            self._tickets = service.engine.submit(orders, deliver, limits.timeout)
        except QueueFullError:
            message = f"{service.engine.waiting} texts are waiting; try again later"
            raise RequestError(message, None, 503, "queue_full") from None

    async def next(self) -> tuple[int, Gain]:
        """The index of a text and what it gained.

        Raises:
            RequestError: it will not be finished.
        """
        index, what = await self._events.get()
        if isinstance(what, Failure):
            raise RequestError(what.message, None, what.status)
        return index, what

    def close(self) -> None:
        """Nobody waits any more."""
        for ticket in self._tickets:
            ticket.cancel()

    def __del__(self) -> None:  # a stream that nobody began to read is never closed
        self.close()


async def _events(texts: _Texts, answer: Answer) -> AsyncIterator[str]:
    """The server-sent events of an answer."""
    try:
        for chunk in answer.opening():
            yield event(chunk)
        while not answer.complete:
            part = answer.add(*await texts.next())
            if part is not None:
                yield event(part)
        for chunk in answer.closing():
            yield event(chunk)
        yield DONE
    except RequestError as error:
        yield event(error.body())
    finally:
        texts.close()


async def _unless_gone(request: Request, texts: _Texts, answer: Answer) -> Response:
    """The whole answer, unless the client goes away before."""

    async def write() -> None:
        while not answer.complete:
            answer.add(*await texts.next())

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    writing = asyncio.ensure_future(write())
    leaving = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            return Response(status_code=_GONE)
        writing.result()
        return JSONResponse(answer.whole())
    finally:
        texts.close()
        writing.cancel()
        leaving.cancel()


async def _body(request: Request, most: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError("send Content-Type: application/json", None, 415)
    body = bytearray()
    too_long = RequestError(f"the body is longer than {most} bytes", None, 413)
    if _length(request) > most:
        raise too_long
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_long
    return bytes(body)


def _length(request: Request) -> int:
    try:
        return int(request.headers.get("content-length", "0"))
    except ValueError:
        return 0


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    except ValueError as error:  # not UTF-8 as well
        raise RequestError(f"the body is not valid JSON ({str(error)[:160]})") from error


def _refusal(error: RequestError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 503 else None
    body = json.dumps(error.body())  # in ASCII: a field's name may be a lone surrogate
    return Response(body, error.status, headers, "application/json")
