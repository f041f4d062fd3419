"""Who may ask: an ASGI layer around the application."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from weighted_mtp.serving.metrics import Metrics
from weighted_mtp.serving.protocol import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics")


class Guard:
    """Checks the key, or without one the host, and counts requests.

    Without a key a page in somebody's browser must not reach a server on their machine: by a name
    of its own that leads there (DNS rebinding) it is stopped here, and by a plain form because
    bodies must be `application/json`, for which browsers ask first.

    Args:
        key: that requests must bring as a bearer token, except for `/health`; None for none.
        hosts: names by which the server may be called when there is no key; None: any.
    """

    def __init__(
        self, app: App, metrics: Metrics, key: str | None, hosts: frozenset[str] | None
    ) -> None:
        self._app, self._metrics, self._hosts = app, metrics, hosts
        self._key = None if key is None else _digest(key.encode("utf-8"))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count_request(path, message["status"])
            await send(message)

        headers = dict(scope["headers"])
        error = self._refusal(scope["path"], headers)
        if error is None:
            await self._app(scope, receive, counted)
            return
        fields = [(b"content-type", b"application/json")]
        if error.status == 401:
            fields.append((b"www-authenticate", b"Bearer"))
        body = json.dumps(error.body()).encode()
        start = {"type": "http.response.start", "status": error.status, "headers": fields}
        await counted(start)
        await counted({"type": "http.response.body", "body": body})

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> RequestError | None:
        if self._key is not None:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            known = hmac.compare_digest(_digest(given.strip()), self._key)
            if path != "/health" and not (known and kind.lower() == b"bearer"):
                message = "a missing or wrong API key; send it as Authorization: Bearer KEY"
                return RequestError(message, None, 401, "invalid_api_key")
        elif self._hosts is not None:
            host = _name(headers.get(b"host", b"").decode("latin-1"))
            if host not in self._hosts:
                message = f"this server is not {host[:80]!r}; call it by the address it serves on"
                return RequestError(message, None, 403)
        return None


def _digest(key: bytes) -> bytes:
    """Of one length for keys of any, so that comparing takes the same time."""
    return hashlib.sha256(key).digest()


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
