"""From what a model wrote to a row of training data with exactly the same tokens.

A row is text, and a tokenizer may read a text otherwise than the model wrote it: two tokens for one
word, a control token in the middle, half a character at the end. So every row is encoded as the
trainer does and compared. Where it differs, it is cut before the first difference, and then says,
as any row that was cut, that its text goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from weighted_mtp.core.errors import RowError
from weighted_mtp.core.types import Message, Row
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import FINISH
from weighted_mtp.data.examples import Example
from weighted_mtp.data.tokens.chat import ChatTemplate
from weighted_mtp.decoding import Completion
from weighted_mtp.decoding.stopping import Decode

ENDED, CUT = "eos", "stop"
_TRIES = 8  # each cut may change how the text before it is read


@dataclass(frozen=True)
class Question:
    """What a model is to answer or to continue.

    Attributes:
        instruction, input: as in a row; with the template `raw` any text.
        messages: a conversation that ends with a user's turn, in place of both.
    """

    instruction: str
    input: str = ""
    messages: Sequence[Message] = ()

    def encode(self, collator: AlpacaCollator) -> list[int]:
        """Ids of the prompt.

        Raises:
            RowError: messages, and a template that cannot write them.
        """
        if not self.messages:
            return collator.encode_prompt(self.instruction, self.input)
        if not isinstance(collator.template, ChatTemplate):
            raise RowError("it has 'messages', which need --template chat")
        return collator.template.encode_prompt(self.messages)


class Written(NamedTuple):
    """A text of the model, as a row.

    Attributes:
        row: None if it was dropped.
        why: the reason for which it was dropped or cut, "" if it is whole.
        tokens: of the response, with its end.
        length: of the whole row.
    """

    row: Row | None
    why: str = ""
    tokens: int = 0
    length: int = 0

    @property
    def ended(self) -> bool:
        """Whether the row has the end of sequence that the model wrote."""
        return self.row is not None and self.row["metadata"][FINISH] == ENDED


class RowMaker:
    """Makes rows that the trainer reads as the model read and wrote them.

    Args:
        collator: the trainer's, for rows of any length that occurs here.
        decode: tokens that follow others to text.
    """

    def __init__(self, collator: AlpacaCollator, decode: Decode) -> None:
        self._collator, self._decode = collator, decode

    def make(
        self, question: Question, prompt: list[int], completion: Completion, end: int | None
    ) -> Written:
        """Make a row of one text.

        Args:
            prompt: the tokens that the model read.
            end: the end of sequence that it wrote, if it did.
        """
        wrote = [*prompt, *completion.tokens, *([] if end is None else [end])]
        text, finish, why = completion.text, str(completion.finish), ""
        for _ in range(_TRIES):
            row = _row(question, text, finish)
            try:
                example = self._collator.encode(row)
            except RowError:
                return Written(None, "refused by the chat template")
            read = learned(example)
            if example.prompt_length != len(prompt) or read[: len(prompt)] != prompt:
                return Written(None, "whose prompt does not come back to its tokens")
            if read == (wrote if finish == ENDED else wrote[: len(read)]):
                if len(read) == len(prompt):
                    return Written(None, why or "without a token")
                return Written(row, why, len(read) - len(prompt), len(read))
            same = _alike(read, wrote)
            cut = completion.tokens[: same - len(prompt)]
            only_end = finish == ENDED and len(cut) == len(completion.tokens)
            why = "whose end is not the template's" if only_end else "whose text does not come back"
            shorter = self._decode(cut)
            text = shorter if len(shorter) < len(text) or only_end else text[:-1]
            finish = CUT
        return Written(None, why)


def learned(example: Example) -> list[int]:
    """The tokens of a row up to the last that is a target."""
    ids = list(example.ids)
    if example.holes and example.holes[-1][1] == len(ids):
        ids = ids[: example.holes[-1][0]]
    return ids


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the start are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _row(question: Question, text: str, finish: str) -> Row:
    row: Row = {
        "instruction": question.instruction,
        "input": question.input,
        "output": text,
        "task_id": "",
        "is_correct": True,
        "metadata": {FINISH: finish},
    }
    if question.messages:
        answer: Message = {"role": "assistant", "content": text}
        row["messages"] = [*question.messages, answer]
        row["output"] = ""
    return row


def figures_of(texts: Collection[Written]) -> dict[str, Any]:
    """Count rows, tokens and ends, and what was cut and dropped, by reason."""
    kept = [text for text in texts if text.row is not None]
    dropped = [text for text in texts if text.row is None]
    return {
        "rows": len(kept),
        "tokens": sum(text.tokens for text in kept),
        "ended": sum(text.ended for text in kept),
        "longest": max((text.length for text in kept), default=0),
        "cut": dict(Counter(text.why for text in kept if text.why)),
        "dropped": dict(Counter(text.why for text in dropped)),
    }


def named_counts(reasons: Mapping[str, int]) -> str:
    """`3 this, 1 that`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
