"""Conversations written by a tokenizer's own chat template, and which of their tokens are answers.

Rendering is that of transformers, in a sandbox (chat_environment.py). A template may write control
tokens; the contents of messages cannot: a name of one in there is marked before rendering, and
encoded as the characters it is.

Where an answer is, in the rendered text. A template with `{% generation %}` says so itself. For any
other, an answer begins where the text of all messages before it, with a generation prompt, ends:
what a model is given when it is to write this answer. It ends with the first control token that the
template writes after its content (`<|im_end|>`, `</s>`), but no later than the text of the messages
up to and with the answer agrees with the whole. This works only for templates whose text grows at
its end as messages are added; others are refused, rather than trained with wrong labels.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from weighted_mtp.core.errors import RowError, UserError, one_line
from weighted_mtp.core.types import Message, Row
from weighted_mtp.data.tokens.huggingface import HuggingFaceTokenizer
from weighted_mtp.data.tokens.tokenizers import Tokenizer

Span = tuple[int, int]
_MARKS = [chr(code) for code in range(0xFDD1, 0xFDF0)]
"""Noncharacters of Unicode: text hardly ever contains one, and never all."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
NO_TEMPLATE = (
    "has no chat template (chat_template.jinja, or the key chat_template of tokenizer_config.json, "
    "beside a tokenizer.json); use another template, or the tokenizer of a chat model"
)


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        control: where the template wrote a control token.
        answers: what is to be learned.
    """

    text: str
    control: list[Span]
    answers: list[Span]


class ChatTemplate:
    """The chat template of a tokenizer.

    Attributes:
        text: in Jinja.
        path: of the file that contains it.
        variables: names of special tokens that it may use.

    Raises:
        UserError: the tokenizer has none, or it is not valid Jinja.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not isinstance(tokenizer, HuggingFaceTokenizer):
            raise UserError(f"the tokenizer {NO_TEMPLATE}")
        found = tokenizer.files.chat_template()
        if found is None:
            raise UserError(f"{tokenizer.files.folder}: the tokenizer {NO_TEMPLATE}")
        self.tokenizer = tokenizer
        self.text, self.path = found
        self.variables = tokenizer.files.template_variables()
        self._names = sorted(tokenizer.control, key=len, reverse=True)
        self._answers_are_marked = _GENERATION.search(self.text) is not None
        from weighted_mtp.data.tokens.chat_environment import compiled  # Jinja takes a moment

        try:
            compiled(self.text)
        except Exception as error:  # Jinja's own kinds, and those of its extensions
            raise UserError(
                f"{self.path}: the chat template cannot be used ({one_line(error, 160)})"
            ) from error

    @property
    def identity(self) -> list[Any]:
        """What its output depends on, besides the tokenizer's ids."""
        return [self.text, sorted(self.variables.items())]

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The text that transformers' `apply_chat_template` gives.

        Args:
            prompt: end with the header of an answer.

        Raises:
            RowError: the template refuses the conversation.
        """
        return self._rendered(messages, prompt)[0]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids after which a model writes the next answer.

        Raises:
            RowError: the template refuses the conversation.
        """
        marks = _Marks(messages, self._names)
        text, control = marks.read(self.render(marks.guarded(), prompt=True))
        return self.tokenizer.encode_with_control(text, control)[0]

    def encode(
        self, messages: Sequence[Message], unfinished: bool = False
    ) -> tuple[list[int], list[Span]]:
        """Ids of a conversation, and which of them are answers, as runs of tokens in order. A token
        with a share in an answer is part of it.

        Args:
            unfinished: the last answer was cut: it ends with its content.

        Raises:
            RowError: the template refuses the conversation, or its answers cannot be told from the
                rest.
        """
        text, control, answers = self.rendered(messages)
        if unfinished and answers:
            answers = [*answers[:-1], _without_end(text, answers[-1], messages)]
        ids, places = self.tokenizer.encode_with_control(text, control)
        runs: list[Span] = []
        at = 0
        for start, end in answers:
            while at < len(ids) and places[at][1] <= start:
                at += 1
            first = at
            while at < len(ids) and places[at][0] < end:
                at += 1
            if first < at:
                runs.append((first, at))
        if not runs:
            raise RowError(f"the chat template {self.path} marks no token of an answer")
        return ids, runs

    def rendered(self, messages: Sequence[Message]) -> Rendered:
        """The text of a conversation, and where in it the answers are.

        Raises:
            RowError: as for `encode`.
        """
        marks = _Marks(messages, self._names)
        if self._answers_are_marked:
            marked, answers = self._rendered(marks.guarded(), prompt=False)
        else:
            marked, answers = self._found_answers(messages, marks)
        text, control = marks.read(marked)
        return Rendered(text, control, marks.places(marked, answers))

    def end_of_turn(self) -> str | None:
        """The control token that ends an answer, where the template writes one."""
        probe: list[Message] = [_turn("user", "x"), _turn("assistant", "x")]
        try:
            text, control, answers = self.rendered(probe)
        except RowError:
            return None
        ends = [text[a:b] for a, b in control if answers and b == answers[-1][1]]
        return ends[0] if ends else None

    def _rendered(self, messages: Sequence[Message], prompt: bool) -> tuple[str, list[Span]]:
        """The text, and what a template with `{% generation %}` says are answers."""
        from weighted_mtp.data.tokens.chat_environment import render

        given = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        try:
            return render(self.text, {**self.variables, **given})
        except Exception as error:  # a template may raise anything
            raise RowError(
                f"the chat template {self.path} refuses the messages ({one_line(error, 160)})"
            ) from error

    def _found_answers(self, messages: Sequence[Message], marks: _Marks) -> tuple[str, list[Span]]:
        guarded = marks.guarded(with_ends=True)
        whole = self.render(guarded)
        numbers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        ends = [match.start() for match in re.finditer(marks.end, whole)]
        if marks.read(whole)[0] != self.render(messages) or len(ends) != len(numbers):
            raise self._unmaskable("it leaves out, repeats or changes what the assistant says")
        answers: list[Span] = []
        for number, end in zip(numbers, ends, strict=True):
            before = self.render(guarded[:number], prompt=True) if number else ""
            if not number or not whole.startswith(before) or len(before) > end:
                raise self._unmaskable(
                    f"what it writes up to message {number + 1} depends on the messages after it"
                )
            start, stop = len(before), self._end_of(whole, end, guarded[: number + 1], marks)
            content = "".join(messages[number]["content"].split())
            if content not in "".join(marks.read(whole[start:stop])[0].split()):
                raise self._unmaskable(
                    f"it leaves out or changes a part of message {number + 1}, an assistant's"
                )
            answers.append((start, stop))
        return whole, answers

    def _end_of(self, whole: str, end: int, turns: Sequence[Message], marks: _Marks) -> int:
        """Where the answer ends whose content ends at `end`, and which is the last of `turns`."""
        tail, alone = whole[end:], self.render(turns)
        alone = alone[max(0, alone.rfind(marks.end)) :]
        pairs = enumerate(zip(tail, alone, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(tail), len(alone)))
        first = marks.control.search(tail)
        if first is not None and first.end() <= shared:
            shared = first.end()
        elif first is not None:
            shared = min(shared, first.start())  # not into a token that only begins alike
        return end + shared

    def _unmaskable(self, reason: str) -> RowError:
        return RowError(
            f"answers cannot be told from the rest of what the chat template {self.path} writes: "
            f"{reason}; put {{% generation %}} … {{% endgeneration %}} around answers in it, or "
            "change the row"
        )


class _Marks:
    """Marks in the contents of a conversation that its rendered text still shows.

    Attributes:
        end: stands after the content of an answer.
        control: finds the control tokens that the template wrote.
    """

    def __init__(self, messages: Sequence[Message], names: Sequence[str]) -> None:
        contents = "".join(message["content"] for message in messages)
        free = [mark for mark in _MARKS if mark not in contents][:2]
        if len(free) < 2:
            raise RowError("the messages contain all the noncharacters of Unicode; remove some")
        self._guard, self.end = free
        self._messages = messages
        any_name = "|".join(map(re.escape, names)) or "(?!)"
        self._begins = re.compile(f"(?=(?:{any_name})).", re.DOTALL)
        self.control = re.compile(f"(?:{any_name})(?!{self._guard})")
        self._any = re.compile(f"[{self._guard}{self.end}]")

    def guarded(self, with_ends: bool = False) -> list[Message]:
        """The messages with a mark in every name of a control token, and after the last word of an
        answer: templates trim what stands around words."""
        return list(self._guarded(with_ends))

    def _guarded(self, with_ends: bool) -> Iterator[Message]:
        for message in self._messages:
            content = self._begins.sub(lambda m: m.group() + self._guard, message["content"])
            if with_ends and message["role"] == "assistant":
                words = len(content.rstrip())
                content = content[:words] + self.end + content[words:]
            yield _turn(message["role"], content)

    def read(self, marked: str) -> tuple[str, list[Span]]:
        """A text without its marks, and where in it the template wrote control tokens."""
        control = [match.span() for match in self.control.finditer(marked)]
        return self._any.sub("", marked), self.places(marked, control)

    def places(self, marked: str, spans: Sequence[Span]) -> list[Span]:
        """Where stretches of a marked text are once the marks are gone."""
        marks = [match.start() for match in self._any.finditer(marked)]
        return [(a - bisect_left(marks, a), b - bisect_left(marks, b)) for a, b in spans]


def _without_end(text: str, answer: Span, messages: Sequence[Message]) -> Span:
    """The last answer up to the end of its content, whose last blanks a template may drop."""
    start, end = answer
    said = [message["content"] for message in messages if message["role"] == "assistant"][-1]
    for content in (said, said.rstrip(), said.strip()):
        if content and (at := text.rfind(content, start, end)) >= 0:
            return start, at + len(content)
    return start, end if said.strip() else start


def conversation(row: Row) -> Sequence[Message]:
    """The messages of a row; of one without, the instruction and input of a user, and the output of
    the assistant."""
    if "messages" in row:
        return row["messages"]
    return [user_turn(row["instruction"], row["input"]), _turn("assistant", row["output"])]


def user_turn(instruction: str, input_text: str = "") -> Message:
    """An instruction and, after an empty line, its input, if there is one."""
    more = f"\n\n{input_text}" if input_text.strip() else ""
    return _turn("user", instruction + more)


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
