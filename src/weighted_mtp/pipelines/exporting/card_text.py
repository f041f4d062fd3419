"""The text of a model card: front matter that the hub reads, and sections, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from weighted_mtp.core.run_records import head_figures, number
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.eagle3 import Speculator, serve_command


@dataclass(frozen=True)
class RunFacts:
    """What a run recorded of a checkpoint.

    Attributes:
        settings: those that differ from the recipe's, by dotted key.
        figures: the last validation record up to the checkpoint's step; empty without one.
        sources: fingerprints of what was read.
    """

    recipe: str
    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        name: of the export.
        layout: "hf", "mtp_llama", "eagle3" or "speculators".
        parameters: how many numbers trunk and head 1 have, and how many each further head.
        speculator: written beside the model, if one was.
    """

    name: str
    layout: str
    args: ModelArgs
    parameters: tuple[int, int]
    license: str | None = None
    base_model: str | None = None
    speculator: Speculator | None = None
    run: RunFacts | None = None

    @property
    def has_code(self) -> bool:
        """Whether the export carries modelling code for `trust_remote_code`."""
        return self.layout != "mtp_llama" and self.args.n_future_tokens > 1


def card_text(card: Card) -> str:
    """Return the card: front matter and sections, in Markdown."""
    tags = ["multi-token-prediction", *(["custom_generate"] if card.has_code else [])]
    front = {
        "license": card.license,
        "base_model": card.base_model,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    told = {key: value for key, value in front.items() if value is not None}
    parts = [
        f"---\n{yaml.safe_dump(told, sort_keys=False)}---",
        f"# {card.name}",
        _about(card),
        "## Load it",
        *_loading(card),
    ]
    if card.run is not None:
        parts += ["## Figures", _figures_text(card.run), "## Training", *_training(card.run)]
    return "\n\n".join(parts) + "\n"


def _about(card: Card) -> str:
    args, (plain, head) = card.args, card.parameters
    n, family = args.n_future_tokens, args.family.name.capitalize()
    text = f"A {family} model of {plain / 1e6:,.1f} million parameters"
    if n == 1:
        return f"{text}, with the next-token head alone."
    heads = "head" if n == 2 else "heads"
    return (
        f"{text} with {n - 1} more prediction {heads} of {head / 1e6:,.1f} million each.\n\n"
        "Head k predicts, at position t, token t + k. Every head is one block on the same state of "
        "the trunk; all\nshare the final norm and the unembedding. Head 1 is the last layer of the "
        "plain model. The other heads draft\ntokens, which head 1 verifies: texts stay those of "
        "the plain model."
    )


def _loading(card: Card) -> list[str]:
    if card.layout == "mtp_llama":
        transformers = [
            "In transformers, put Fast-LLM's `configuration_mtp_llama.py` and "
            "`modeling_mtp_llama.py` beside the weights\nand pass `trust_remote_code=True`.",
        ]
        serving: list[str] = []
    else:
        transformers = [_plain_code(card)]
        serving = [_serving(card)]
    ours = (
        "[weighted-mtp](https://pypi.org/project/weighted-mtp/) reads all heads and runs no code "
        "from here:\n\n```bash\nweighted-mtp generate DIRECTORY --prompt 'def add(a, b):'\n```"
    )
    return [*transformers, *serving, ours]


def _plain_code(card: Card) -> str:
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'path = "DIRECTORY"  # or the name of this repository',
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        "model = AutoModelForCausalLM.from_pretrained(path)  # trunk and head 1",
    ]
    if card.has_code:
        lines += [
            "",
            "# All heads; read modeling_mtp.py and decoding_mtp.py before you trust them.",
            "model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)",
            'inputs = tokenizer("def add(a, b):", return_tensors="pt")',
            "model(**inputs, return_all_heads=True).logits  # [batch, sequence, n, vocabulary]",
            "model.generate_with_heads(**inputs, max_new_tokens=64)",
            "model.generate(  # transformers 4.53 and later",
            "    **inputs, max_new_tokens=64, custom_generate=path, trust_remote_code=True",
            ")",
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _serving(card: Card) -> str:
    if card.speculator is None:
        return "vLLM and SGLang serve the plain model:\n\n```bash\nvllm serve DIRECTORY\n```"
    form, engine = card.speculator.form, card.speculator.engine
    command = serve_command("DIRECTORY", f"DIRECTORY/{form}", form, engine)
    moved = (
        f"\n\nThe base model is named in `{form}/config.json` "
        "(`speculators_config.verifier.name_or_path`)."
        if form == "speculators"
        else ""
    )
    return f"With head 2 as a speculator (`{form}/`):\n\n```bash\n{command}\n```{moved}"


def _figures_text(run: RunFacts) -> str:
    losses = head_figures(run.figures, "head_loss")
    if not losses:
        return "The run recorded no validation."
    accuracy = head_figures(run.figures, "head_accuracy")
    kept = head_figures(run.figures, "head_acceptance")
    lines = [
        "| head | held-out loss (nats) | held-out accuracy | drafts kept |",
        "|---|---|---|---|",
    ]
    for k, loss in enumerate(losses):
        cells = (_cell(loss, ".3f"), _cell(_at(accuracy, k), ".1%"))
        drafts = "–" if k == 0 else _cell(_at(kept, k), ".1%")
        lines.append(f"| {k + 1} | {cells[0]} | {cells[1]} | {drafts} |")
    text = "\n".join(lines)
    gained = number(run.figures.get("tokens_per_forward"))
    if len(losses) > 1 and not math.isnan(gained):
        text += (
            f"\n\nTokens per forward pass, greedy, on held-out text: {gained:.2f} of {len(losses)}."
        )
    return f"{text}\n\nMeasured in the run, at step {run.figures.get('step')}."


def _at(values: list[float], k: int) -> float:
    return values[k] if k < len(values) else math.nan


def _cell(value: float, form: str) -> str:
    return "–" if math.isnan(value) else f"{value:{form}}"


def _training(run: RunFacts) -> list[str]:
    version = f" {run.version}" if run.version else ""
    parts = [
        f"Recipe `{run.recipe}` of weighted-mtp{version}, checkpoint of step {run.step}. Settings "
        "that differ from the recipe's:"
    ]
    settings = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=True).strip()
    parts.append(f"```yaml\n{settings}\n```" if run.settings else "None.")
    if run.sources:
        lines = [f"| {name} | `{value}` |" for name, value in run.sources.items()]
        table = ["| read | fingerprint |", "|---|---|", *lines]
        parts += ["## Data", "\n".join(table)]
    return parts
