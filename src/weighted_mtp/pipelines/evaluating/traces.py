"""Trace a critic token by token: values, TD errors and weights of held-out pairs of programs.

Letters: B batch, S sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from weighted_mtp.core.config.recipe import Recipe, load_recipe_file
from weighted_mtp.core.device import resolve_device
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.core.types import TokenTrace
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import read_jsonl
from weighted_mtp.data.examples import Example
from weighted_mtp.data.tokens.tokenizers import Tokenizer, load_tokenizer
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import value_head_path
from weighted_mtp.pipelines.checkpoint_utils import reading, saved_state
from weighted_mtp.pipelines.training.data import rows_file
from weighted_mtp.pipelines.training.module import pool_of
from weighted_mtp.pipelines.training.objectives.td_weighted import Verifiable


def trace_pairs(
    run_dir: Path, count: int = 4, device: str = "cpu"
) -> list[tuple[TokenTrace, TokenTrace]]:
    """Trace a right and a wrong held-out program of each of the first `count` problems that have
    both, no two of one family where the data names families; none if the run has no critic.

    The weights are the TD weights, even if the run trained with a control in their place.

    Raises:
        UserError: the run or its data cannot be read.
    """
    model_dir = find_model(run_dir)
    if not value_head_path(model_dir).is_file():
        return []
    recipe = load_recipe_file(run_dir / "config.yaml")
    path = rows_file(recipe, "validation", run_dir)
    if path is None or not path.exists():
        return []
    rows = read_jsonl(path)
    chosen: dict[str, list[int]] = {}
    kinds: set[str] = set()
    sides: dict[str, dict[bool, int]] = {}
    for i, row in enumerate(rows):
        sides.setdefault(row["task_id"], {}).setdefault(row["is_correct"], i)
    for problem, both in sides.items():
        kind = str(rows[next(iter(both.values()))]["metadata"].get("family", problem))
        if len(both) == 2 and kind not in kinds and len(chosen) < count:
            kinds.add(kind)
            chosen[problem] = [both[True], both[False]]

    where = resolve_device(device)
    adapter = MetaLlamaMTPAdapter.from_pretrained(model_dir, where, torch.float32)
    tokenizer = load_tokenizer(model_dir)
    collator = AlpacaCollator(
        tokenizer, recipe.data.template, recipe.data.max_length, joint=recipe.data.joint
    )
    objective = _td_weights(recipe, model_dir.parent)
    pairs = []
    for indices in chosen.values():
        right, wrong = (
            trace(adapter, objective, collator.encode(rows[i], i), collator, rows[i]["instruction"])
            for i in indices
        )
        pairs.append((right, wrong))
    return pairs


def _td_weights(recipe: Recipe, checkpoint: Path) -> Verifiable:
    """The TD weights as they are at the end of the run: λ at the end of its schedule, running
    statistics as saved. Batch statistics are those of the one program that is looked at."""
    plain: dict[str, Any] = {"name": "verifiable", "options": {}, "heads": 1}
    plain |= dict.fromkeys(("head_weights", "final_head_weights", "head_fractions"))
    config = recipe.objective.model_copy(update=plain)
    objective = Verifiable(config, 1)
    objective.begin_step(recipe.training.steps - 1, recipe.training.steps)
    trainer = checkpoint / "trainer.json"
    state = saved_state(checkpoint) if trainer.exists() else {}
    if "ema" in state.get("objective", {}):
        with reading(trainer):
            objective.load_state_dict(state["objective"])
    return objective


@torch.no_grad()
def trace(
    adapter: MetaLlamaMTPAdapter,
    objective: Verifiable,
    example: Example,
    collator: AlpacaCollator,
    instruction: str,
) -> TokenTrace:
    """Trace one example with the weights this objective would give it."""
    batch = collator([example]).to(adapter.transformer.output.weight.device)
    values = adapter.trunk_forward(batch.tokens)["value_logits"].squeeze(-1)  # [1, S]
    pool = pool_of(batch, values)
    errors = objective.td_errors(pool)
    weights = objective.token_weights(pool, objective.advantages(pool, errors))
    first, end = example.prompt_length, len(example.ids)
    along = [*values[0].tolist(), math.nan][first:end]
    if not example.truncated:
        along[-1] = math.nan  # there is no state after EOS
    return TokenTrace(
        title=example.task_id,
        instruction=instruction,
        pieces=_pieces(collator.tokenizer, example.ids[first:end]),
        values=tuple(along),
        start_value=float(values[0, first - 1]) if first else math.nan,
        td_errors=tuple(errors[0, first:end].tolist()),
        weights=tuple(weights[0, first:end].tolist()),
        is_correct=example.is_correct,
    )


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """Return what each token adds to the text: decoded alone, some lose their leading space."""
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        stable = text if not text.endswith("\ufffd") else before
        pieces.append(stable[len(before) :])
        before = stable
    return tuple(pieces)
