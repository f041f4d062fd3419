"""Answers in OpenAI's format."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weighted_mtp.decoding import Piece
from weighted_mtp.decoding.running_rows import Alternatives
from weighted_mtp.serving.engine import Gain
from weighted_mtp.serving.protocol import Asked

Json = dict[str, Any]
_REASONS = {"eos": "stop", "stop": "stop", "length": "length", None: None}
DONE = "data: [DONE]\n\n"


def event(body: Json) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


@dataclass
class _Choice:
    """What came of one text so far."""

    text: str = ""
    tokens: int = 0
    offset: int = 0  # characters of its tokens' texts, for completions
    logprobs: Json | None = None
    finish: str | None = None


@dataclass
class Answer:
    """The answer to a request as it grows.

    Args:
        prompt_tokens: of all prompts.
        name_token: the text of one token.
    """

    asked: Asked
    model: str
    prompt_tokens: int
    name_token: Callable[[int], str]
    choices: list[_Choice] = field(init=False)

    def __post_init__(self) -> None:
        self.choices = [_Choice() for _ in range(len(self.asked.prompts) * self.asked.n)]
        self._open = len(self.choices)
        self._id = ("chatcmpl-" if self.asked.chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())

    @property
    def complete(self) -> bool:
        """Whether all texts have ended."""
        return self._open == 0

    def add(self, index: int, gain: Gain) -> Json | None:
        """Take in what a text gained; the chunk of a stream that says so, None if nobody would see
        a difference."""
        piece, choice = gain.piece, self.choices[index]
        logprobs = self._logprobs(choice, piece, gain.alternatives)
        choice.text += "" if self.asked.stream else piece.text
        choice.tokens += len(piece.tokens)
        if piece.finish is not None:
            choice.finish = _REASONS[piece.finish]
            self._open -= 1
        if not self.asked.stream:
            choice.logprobs = _joined(choice.logprobs, logprobs)
            return None
        if not piece.text and logprobs is None and piece.finish is None:
            return None
        return self._chunk(index, self._part(piece.text), logprobs, choice.finish)

    def opening(self) -> list[Json]:
        """Chunks at the beginning of a stream: a chat's say who speaks."""
        if not self.asked.chat:
            return []
        delta = {"delta": {"role": "assistant", "content": ""}}
        return [self._chunk(index, delta, None, None) for index in range(len(self.choices))]

    def closing(self) -> list[Json]:
        """Chunks at the end of a stream: what it cost, if that was asked for."""
        if not self.asked.include_usage:
            return []
        return [{**self._head(True), "choices": [], "usage": self.usage()}]

    def whole(self) -> Json:
        """The answer, once it is complete."""
        choices = []
        for index, choice in enumerate(self.choices):
            own: Json = {"text": choice.text}
            if self.asked.chat:
                own = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            end = {"logprobs": choice.logprobs, "finish_reason": choice.finish}
            choices.append({"index": index, **own, **end})
        return {**self._head(False), "choices": choices, "usage": self.usage()}

    def usage(self) -> Json:
        """Counts of tokens; those of the text that EOS ends are without it."""
        written = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def _head(self, chunk: bool) -> Json:
        kind = "chat.completion" + (".chunk" if chunk else "")
        return {
            "id": self._id,
            "object": kind if self.asked.chat else "text_completion",
            "created": self._created,
            "model": self.model,
        }

    def _part(self, text: str) -> Json:
        if not self.asked.chat:
            return {"text": text}
        return {"delta": {"content": text} if text else {}}

    def _chunk(self, index: int, part: Json, logprobs: Json | None, finish: str | None) -> Json:
        choice = {"index": index, **part, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self._head(True), "choices": [choice], **usage}

    def _logprobs(
        self, choice: _Choice, piece: Piece, alternatives: Sequence[Alternatives]
    ) -> Json | None:
        if self.asked.alternatives is None or not piece.tokens:
            return None
        each = list(zip(piece.tokens, piece.logprobs, alternatives, strict=True))
        if self.asked.chat:
            content = []
            for token, score, likeliest in each:
                top = [self._named(other, value) for other, value in likeliest]
                content.append({**self._named(token, score), "top_logprobs": top})
            return {"content": content, "refusal": None}
        names = [self.name_token(token) for token in piece.tokens]
        offsets = []
        for name in names:
            offsets.append(choice.offset)
            choice.offset += len(name)
        tops: list[Json] | None = None
        if self.asked.alternatives:
            tops = [self._by_name([*best, (token, score)]) for token, score, best in each]
        return {
            "tokens": names,
            "token_logprobs": [_finite(score) for score in piece.logprobs],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _named(self, token: int, logprob: float) -> Json:
        name = self.name_token(token)
        whole = "\ufffd" not in name
        return {
            "token": name,
            "logprob": _finite(logprob),
            "bytes": list(name.encode("utf-8")) if whole else None,
        }

    def _by_name(self, pairs: Alternatives) -> Json:
        """Of tokens that look alike the first."""
        found: Json = {}
        for token, logprob in pairs:
            found.setdefault(self.name_token(token), _finite(logprob))
        return found


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)  # JSON has no infinity


def _joined(before: Json | None, after: Json | None) -> Json | None:
    """Log-probabilities of more tokens: lists grow, all else stays."""
    if before is None or after is None:
        return before or after
    for name, values in after.items():
        if isinstance(values, list):
            before[name] += values
    return before
