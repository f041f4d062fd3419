"""Prompt templates: how an instruction becomes the text that a model continues."""

from __future__ import annotations

import re
from dataclasses import dataclass


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


RAW = "raw"
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
    # Text and its continuation.
    RAW: PromptTemplate("{instruction}", "{instruction}{input}"),
}
CHAT = "chat"
TEMPLATE_NAMES = (*TEMPLATES, CHAT)
"""`chat` is the tokenizer's own chat template."""
