"""Prompts for the models of `decode.py`, of one length, from text they were not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

import byte_model
from weighted_mtp.core.config.data import MicroConfig
from weighted_mtp.data.collators import TEMPLATES
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus, held_out
from weighted_mtp.data.tokens.tokenizers import Tokenizer, load_tokenizer
from weighted_mtp.micro_tasks import draw_problems, pose
from weighted_mtp.pipelines.evaluating.writer import run_data
from weighted_mtp.pipelines.training.data import micro_families


def prompts(kind: str, model_dir: Path, count: int, length: int) -> list[list[int]]:
    """`count` different prompts of `length` ids for the model in `model_dir`.

    Args:
        kind: micro, byte or smollm2.
    """
    if kind == "byte":
        return byte_model.prompts(count, length)
    tokenizer = load_tokenizer(model_dir)
    if kind == "micro":
        return _micro(tokenizer, run_data(model_dir), count, length)
    documents = (text for text in Corpus(STDLIB).documents() if held_out(text, 0.05))
    return _openings(tokenizer, documents, count, length)


def _micro(tokenizer: Tokenizer, data: dict, count: int, length: int) -> list[list[int]]:
    """Held-out instructions, each after as many solved ones as fill the prompt."""
    template = TEMPLATES[data.get("template", "short")]
    families = micro_families(MicroConfig(**data.get("micro", {})))
    tasks = [pose(p, Random(i)) for i, p in enumerate(draw_problems(400, 0, "test", families))]
    begin, end = ([x] if x is not None else [] for x in (tokenizer.bos_id, tokenizer.eos_id))
    asked = [tokenizer.encode(template.render(task.instruction)) for task in tasks]
    solved = [
        [*begin, *ask, *tokenizer.encode(next(iter(task.solutions.values()))), *end]
        for task, ask in zip(tasks, asked, strict=True)
    ]
    found = []
    for last in range(0, len(tasks), len(tasks) // count)[:count]:
        ids = [*begin, *asked[last]]
        before = last
        while len(ids) < length:
            before -= 1  # wraps round
            ids = solved[before] + ids
        found.append(ids[-length:])
    return found


def _openings(
    tokenizer: Tokenizer, documents: Iterable[str], count: int, length: int
) -> list[list[int]]:
    """The first `length` ids of held-out modules from their first function or class on."""
    found: list[list[int]] = []
    for text in documents:
        places = [place for place in (text.find("\ndef "), text.find("\nclass ")) if place >= 0]
        ids = tokenizer.encode(text[min(places) + 1 :][: 12 * length])[:length] if places else []
        if len(ids) == length:
            found.append(ids)
        if len(found) == count:
            break
    return found
