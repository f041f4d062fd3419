"""From rows to token sequences: template, prompt mask, EOS, truncation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from weighted_mtp.core.errors import RowError
from weighted_mtp.core.types import Row
from weighted_mtp.data.datasets import is_unfinished
from weighted_mtp.data.examples import Example
from weighted_mtp.data.templates import CHAT, TEMPLATES, PromptTemplate
from weighted_mtp.data.tokens.chat import ChatTemplate, conversation, user_turn
from weighted_mtp.data.tokens.tokenizers import Tokenizer

if TYPE_CHECKING:
    from weighted_mtp.data.batches import Batch


class AlpacaCollator:
    """Tokenises rows with a prompt template and pads them to batches.

    Args:
        tokenizer: its BOS (if any) starts the prompt, its EOS ends the response.
        template: a name in `TEMPLATE_NAMES`, or a template of your own. With `chat` a sequence is
            exactly what the tokenizer's chat template writes, and its answers are the targets.
        max_length: longest sequence in tokens, BOS and EOS counted.
        pad_to_multiple: batches are padded to a multiple of it, so that kernels meet few shapes.
        joint: tokenise prompt and response as one text. A token that straddles the border is then a
            target; generation, which tokenises the prompt alone, never sees it as its prompt ends.
            By default they are tokenised apart, and no merge crosses the border. A chat template
            always writes one text.

    Raises:
        UserError: the tokenizer has no chat template that could be used.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str | PromptTemplate = "alpaca",
        max_length: int = 2048,
        pad_to_multiple: int = 1,
        joint: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.template: PromptTemplate | ChatTemplate
        self.template_name = template if isinstance(template, str) else repr(template)
        if isinstance(template, str):
            self.template = ChatTemplate(tokenizer) if template == CHAT else TEMPLATES[template]
        else:
            self.template = template
        if isinstance(self.template, ChatTemplate):  # tokenizers of one fingerprint may differ here
            digest = hashlib.sha256(json.dumps(self.template.identity).encode()).hexdigest()
            self.template_name = f"{CHAT} {digest[:16]}"
        self.max_length = max_length
        self.pad_to_multiple = pad_to_multiple
        self.joint = joint

    @property
    def fingerprint(self) -> str:
        """Equal for collators that make the same sequences of a row."""
        template = self.template
        text = template.identity if isinstance(template, ChatTemplate) else asdict(template)
        depends = [self.tokenizer.fingerprint, text, self.max_length, self.joint]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]

    def encode_prompt(self, instruction: str, input_text: str = "") -> list[int]:
        """Ids of a prompt as generation gives it to the model."""
        if isinstance(self.template, ChatTemplate):
            return self.template.encode_prompt([user_turn(instruction, input_text)])
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return bos + self.tokenizer.encode(self.template.render(instruction, input_text))

    def encode(self, row: Row, index: int = 0) -> Example:
        """Tokenise one row. One that is unfinished (`is_unfinished`) gets no EOS, and is truncated.

        Raises:
            RowError: it has messages that this template cannot write.
        """
        if isinstance(self.template, ChatTemplate):
            return self._encode_chat(self.template, row, index)
        if "messages" in row:
            raise RowError("it has 'messages', which need data.template=chat")
        if self.joint:
            prompt_length, ids = self._encode_together(self.template, row)
        else:
            prompt = self.encode_prompt(row["instruction"], row["input"])
            prompt_length = len(prompt)
            ids = prompt + self.tokenizer.encode_continuation(row["output"])
        unfinished = is_unfinished(row)
        if not unfinished:
            ids.append(self.tokenizer.eos_id)
        truncated = unfinished or len(ids) > self.max_length
        ids = ids[: self.max_length]
        prompt_length = min(prompt_length, len(ids))
        return Example(ids, prompt_length, truncated, index, row["task_id"], row["is_correct"])

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Pad examples to a batch, see `pad_batch`."""
        # Here, so that a process that only tokenises need not load torch (2.4 of its 2.8 seconds).
        from weighted_mtp.data.batches import pad_batch

        return pad_batch(examples, self.tokenizer.pad_id, self.pad_to_multiple, self.max_length - 1)

    def _encode_chat(self, template: ChatTemplate, row: Row, index: int) -> Example:
        unfinished = is_unfinished(row)
        ids, answers = template.encode(conversation(row), unfinished)
        if unfinished:
            ids = ids[: answers[-1][1]]
        truncated = unfinished or answers[-1][1] > self.max_length
        ids = ids[: self.max_length]
        ends = [*(start for start, _ in answers[1:]), len(ids)]
        between = zip((end for _, end in answers), ends, strict=True)
        holes = [(first, min(last, len(ids))) for first, last in between if first < len(ids)]
        prompt_length = min(answers[0][0], len(ids))
        task_id, is_correct = row["task_id"], row["is_correct"]
        return Example(ids, prompt_length, truncated, index, task_id, is_correct, holes=holes)

    def _encode_together(self, template: PromptTemplate, row: Row) -> tuple[int, list[int]]:
        """How many tokens lie wholly in the prompt, and all of them."""
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        prompt = template.render(row["instruction"], row["input"])
        ids, ends = self.tokenizer.encode_with_ends(prompt + row["output"])
        return len(bos) + sum(end <= len(prompt) for end in ends), bos + ids
