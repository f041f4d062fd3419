"""From rows to padded batches: template, prompt mask, EOS, truncation.

Letters: B batch, S sequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weighted_mtp.core.types import IGNORE_INDEX, Row
from weighted_mtp.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class PromptTemplate:
    """How an instruction (and an input, when there is one) becomes a prompt."""

    without_input: str
    with_input: str

    def render(self, instruction: str, input_text: str = "") -> str:
        """The prompt. Braces inside the instruction or the input are text, not placeholders."""
        chosen = self.with_input if input_text.strip() else self.without_input
        values = {"{instruction}": instruction, "{input}": input_text}
        return re.sub(r"\{instruction\}|\{input\}", lambda match: values[match.group()], chosen)


TEMPLATES = {
    # Stanford Alpaca's prompts, which instruction-tuned Llamas have seen most.
    "alpaca": PromptTemplate(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n",
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    ),
    # Byte-level models pay for every letter of boilerplate.
    "short": PromptTemplate("{instruction}\n>>>\n", "{instruction}\n{input}\n>>>\n"),
}


class Example(NamedTuple):
    """One tokenised row.

    Attributes:
        ids: prompt, response and, unless truncated, EOS.
        prompt_length: tokens at the start that are no targets.
        truncated: the response's end was cut off, so that its last token is not terminal.
        row: index of the row it came from, in its file.
        task_id, is_correct: of that row.
        reference: `[len(ids)]` a reference model's cross-entropy of each token, given those before
            it; None where no objective asks for it.
    """

    ids: list[int]
    prompt_length: int
    truncated: bool
    row: int
    task_id: str = ""
    is_correct: bool = True
    reference: Tensor | None = None


class Batch(NamedTuple):
    """Right-padded examples.

    Attributes:
        tokens: `[B, S]` input; the last token of the longest example is a target only.
        labels: `[B, S + 1]` the same tokens, −100 on prompt and padding.
        truncated: `[B]` whose end was cut off.
        rows: `[B]` row indices, −1 for a row that only fills the batch.
        correct: `[B]` whose solution is right.
        reference: `[B, S + 1]` a reference model's cross-entropy of each token, if examples had it.
    """

    tokens: Tensor
    labels: Tensor
    truncated: Tensor
    rows: Tensor
    correct: Tensor
    reference: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        moved = (None if x is None else x.to(device, non_blocking=True) for x in self)
        return Batch(*moved)  # type: ignore[arg-type]  # None stays where None was


class AlpacaCollator:
    """Tokenises rows with a prompt template and pads them to batches.

    Args:
        tokenizer: its BOS (if any) starts the prompt, its EOS ends the response.
        template: a name in `TEMPLATES`, or a template of your own.
        max_length: longest sequence in tokens, BOS and EOS counted.
        pad_to_multiple: batches are padded to a multiple of it, so that kernels meet few shapes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str | PromptTemplate = "alpaca",
        max_length: int = 2048,
        pad_to_multiple: int = 1,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = TEMPLATES[template] if isinstance(template, str) else template
        self.max_length = max_length
        self.pad_to_multiple = pad_to_multiple

    def encode_prompt(self, instruction: str, input_text: str = "") -> list[int]:
        """Ids of a prompt as training sees it."""
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return bos + self.tokenizer.encode(self.template.render(instruction, input_text))

    def encode(self, row: Row, index: int = 0) -> Example:
        """Tokenise one row. Prompt and response are tokenised apart, so no merge crosses the
        border and the model sees at generation the very prompt it was trained on."""
        prompt = self.encode_prompt(row["instruction"], row["input"])
        ids = [*prompt, *self.tokenizer.encode(row["output"]), self.tokenizer.eos_id]
        truncated = len(ids) > self.max_length
        ids = ids[: self.max_length]
        prompt_length = min(len(prompt), len(ids))
        return Example(ids, prompt_length, truncated, index, row["task_id"], row["is_correct"])

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Pad examples to a batch. No examples give a batch of one row with nothing to learn, so
        that every rank can always run its forward pass."""
        longest = max((len(e.ids) for e in examples), default=2)
        S = max(1, longest - 1)
        padded = min(S + -S % self.pad_to_multiple, max(S, self.max_length - 1))
        B, L = max(1, len(examples)), padded + 1
        ids = torch.full((B, L), self.tokenizer.pad_id)
        labels = torch.full((B, L), IGNORE_INDEX)
        for i, example in enumerate(examples):
            end = len(example.ids)
            ids[i, :end] = torch.tensor(example.ids)
            labels[i, example.prompt_length : end] = ids[i, example.prompt_length : end]
        truncated = torch.tensor([e.truncated for e in examples] or [False])
        rows = torch.tensor([e.row for e in examples] or [-1])
        correct = torch.tensor([e.is_correct for e in examples] or [False])
        reference = self._pad_reference(examples, L)
        return Batch(ids[:, :-1].contiguous(), labels, truncated, rows, correct, reference)

    def _pad_reference(self, examples: Sequence[Example], L: int) -> Tensor | None:
        """`[B, L]`, 0 on padding; None if no example has any."""
        losses = [e.reference for e in examples]
        if any(x is None for x in losses):
            return None
        padded = torch.zeros(max(1, len(losses)), L)
        for i, x in enumerate(losses):
            if x is not None:
                padded[i, : len(x)] = x
        return padded
