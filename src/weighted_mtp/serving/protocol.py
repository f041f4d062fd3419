"""Requests in OpenAI's format, checked by hand: one error, which names the field.

What would change the text and is not served is refused, never ignored.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weighted_mtp.core.errors import did_you_mean
from weighted_mtp.core.types import Message
from weighted_mtp.decoding import Sampling

MOST_TEXTS = 128  # of one request
MOST_ALTERNATIVES = 20
MOST_STOPS, LONGEST_STOP = 16, 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SHARED = {
    *("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("seed", "n", "stop", "stream", "stream_options", "logprobs"),
}
_COMPLETION = {*_SHARED, "prompt"}
_CHAT = {*_SHARED, "messages", "max_completion_tokens", "top_logprobs"}
_WITHOUT_EFFECT = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    "parallel_tool_calls",
}
_ONLY: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of OpenAI's that are not served, and the values that mean nothing."""


class RequestError(Exception):
    """A request that cannot be served.

    Attributes:
        status: of HTTP.
        code: OpenAI's short word for it, if there is one.
    """

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        prompts: one or more, each a text or token ids; of a chat one conversation.
        max_tokens: of each text; None: as many as there is room for.
        n: texts for each prompt.
        alternatives: see `Order`.
        include_usage: end a stream with the counts of tokens.
    """

    chat: bool
    prompts: list[str | list[int] | list[Message]]
    max_tokens: int | None
    sampling: Sampling
    n: int
    stops: tuple[str, ...]
    alternatives: int | None
    stream: bool
    include_usage: bool


def read_request(body: Any, chat: bool, model: str) -> Asked:
    """Check a request.

    Args:
        body: parsed JSON.
        model: the name that the server's model goes by.

    Raises:
        RequestError: what is wrong with it.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(given, _CHAT if chat else _COMPLETION)
    check_model(given.get("model", model), model)
    stream = _flag(given, "stream")
    limit = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    return Asked(
        chat,
        [_messages(given)] if chat else _prompts(given),
        _whole(given, limit, None if chat else 16, 1, 1 << 31),
        _sampling(given),
        _whole(given, "n", 1, 1, MOST_TEXTS) or 1,
        _stops(given),
        _alternatives(given, chat),
        stream,
        _include_usage(given, stream),
    )


def check_model(asked: Any, served: str) -> None:
    """Raise `RequestError` if another model is asked for than the server's."""
    if asked != served:
        raise RequestError(
            f"the model {str(asked)[:80]!r} is not served here; take {served!r}",
            "model",
            404,
            "model_not_found",
        )


def _check_names(given: Mapping[str, Any], known: set[str]) -> None:
    for name, value in given.items():
        if name in known or name in _WITHOUT_EFFECT:
            continue
        if name not in _ONLY:
            hint = did_you_mean(str(name)[:80], known)
            raise RequestError(f"unknown field {str(name)[:80]!r}{hint}", str(name)[:80])
        if not any(value == idle and type(value) is type(idle) for idle in _alike(name)):
            raise RequestError(f"{name} is not served here; leave it out", name)


def _alike(name: str) -> list[Any]:
    """Values of a field that is not served which mean nothing: numbers of either type."""
    numbers = [float(idle) for idle in _ONLY[name] if type(idle) is int]
    return [*_ONLY[name], *numbers]


def _sampling(given: Mapping[str, Any]) -> Sampling:
    seed = _whole(given, "seed", None, -(1 << 63), (1 << 64) - 1)
    try:
        return Sampling(
            _number(given, "temperature", 1.0),
            _number(given, "top_p", 1.0),
            secrets.randbits(63) if seed is None else seed,
            _whole(given, "top_k", None, 1, 1 << 31),
            _number(given, "min_p", 0.0),
            _number(given, "repetition_penalty", 1.0),
        )
    except ValueError as error:
        raise RequestError(str(error), str(error).split()[0]) from error


def _messages(given: Mapping[str, Any]) -> list[Message]:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of one message or more", "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or message.get("role") not in (*_ROLES, "tool"):
        raise RequestError(
            f"{where}: a message is an object with a role (system, user, assistant, tool)", where
        )
    more = [n for n, v in message.items() if n not in ("role", "content", "name") and v]
    if more:
        raise RequestError(f"{where}: {str(more[0])[:80]} is not served here", where)
    content = message.get("content")
    text = _joined(content) if isinstance(content, list) else content
    if not isinstance(text, str):
        raise RequestError(f"{where}: content must be a string, or parts of type text", where)
    role = str(message["role"])
    return {"role": _ROLES.get(role, role), "content": text}


def _joined(parts: list[Any]) -> str | None:
    """The text of content in parts; None if one is not text."""
    texts = [part["text"] for part in parts if isinstance(part, dict) and "text" in part]
    kinds = {part.get("type") if isinstance(part, dict) else None for part in parts}
    good = kinds <= {"text"} and len(texts) == len(parts)
    return "".join(texts) if good and all(isinstance(text, str) for text in texts) else None


def _prompts(given: Mapping[str, Any]) -> list[str | list[int] | list[Message]]:
    prompt: Any = given.get("prompt")
    if isinstance(prompt, str) or _are_ids(prompt):
        return [prompt]
    several = isinstance(prompt, list) and 0 < len(prompt) <= MOST_TEXTS
    if several and (all(isinstance(p, str) for p in prompt) or all(map(_are_ids, prompt))):
        return list(prompt)
    raise RequestError(
        f"prompt must be a string, a list of token ids, or a list of up to {MOST_TEXTS} of them",
        "prompt",
    )


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    stops = given.get("stop", [])
    stops = [stops] if isinstance(stops, str) else stops
    good = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not good or not all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stops):
        raise RequestError(
            f"stop must be a string of 1 to {LONGEST_STOP} characters, or a list of up to "
            f"{MOST_STOPS} of them",
            "stop",
        )
    return tuple(stops)


def _alternatives(given: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return _whole(given, "logprobs", None, 0, MOST_ALTERNATIVES)
    wanted = _flag(given, "logprobs")
    count = _whole(given, "top_logprobs", 0, 0, MOST_ALTERNATIVES)
    if count and not wanted:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    return count if wanted else None


def _include_usage(given: Mapping[str, Any], stream: bool) -> bool:
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or (options and not stream):
        raise RequestError("stream_options is an object and goes with stream: true")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise RequestError(f"stream_options.{str(name)[:80]} is unknown", "stream_options")
    return _flag(options, "include_usage")


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", name)
    return value


def _number(given: Mapping[str, Any], name: str, default: float) -> float:
    value = given.get(name, default)
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise RequestError(f"{name} must be a number", name)
    return float(value)


def _whole(
    given: Mapping[str, Any], name: str, default: int | None, least: int, most: int
) -> int | None:
    if name not in given:
        return default
    value = given[name]
    if type(value) is not int or not least <= value <= most:
        raise RequestError(f"{name} must be a whole number from {least} to {most}", name)
    return value
