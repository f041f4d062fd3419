"""Training and measuring in one process: models start from weights in memory, data is shared."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.device import DTYPES
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.examples import Example
from weighted_mtp.data.loading import Groups
from weighted_mtp.decoding import Decoder, Speculation
from weighted_mtp.evaluation.benchmarks import Problem
from weighted_mtp.evaluation.completions import CompletionJudge, written_text
from weighted_mtp.evaluation.critic_metrics import within_problem_auc
from weighted_mtp.evaluation.prompts import choose_prompting
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.order_head import ORDER_HEAD_FILE
from weighted_mtp.pipelines.checkpointing.model_start import (
    CPU,
    fresh_model,
    with_order_head,
    with_value_head,
)
from weighted_mtp.pipelines.resolve import build_tokenizer, model_args, settle
from weighted_mtp.pipelines.training.data import TrainingData
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import make_objective
from weighted_mtp.pipelines.training.reference import token_losses
from weighted_mtp.pipelines.training.trainer import Trainer, TrainingRun
from weighted_mtp.runtime.environment import environment_of
from weighted_mtp.runtime.modes import parallelise

MEASURED_TOGETHER, WRITTEN_TOGETHER, LONGEST_PROGRAM = 64, 64, 96
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """A model that was trained.

    Attributes:
        tokens: targets of head 1 that were learnt from.
        seconds: of processor time.
        held_out: the trainer's figures on the validation rows it was given; {} without any.
    """

    adapter: MetaLlamaMTPAdapter
    tokens: int
    seconds: float
    held_out: dict[str, Any]


def make_collator(recipe: Recipe) -> AlpacaCollator:
    """The collator of a recipe."""
    data = recipe.data
    return AlpacaCollator(
        build_tokenizer(recipe), data.template, data.max_length, data.pad_to_multiple, data.joint
    )


def train(
    recipe: Recipe,
    groups: Groups,
    folder: Path,
    start: Weights | None = None,
    held_out: Sequence[Example] = (),
) -> Trained:
    """Train by a recipe, without checkpoints.

    Args:
        folder: where the trainer notes the rows of steps that it had to skip.
        start: weights by name in the adapter; None for random ones. A value head that the
            objective does not have is left out.

    Raises:
        UserError: more steps than allowed had a non-finite loss or gradient.
    """
    began = time.process_time()
    recipe = settle(recipe)
    tokenizer = build_tokenizer(recipe)
    with environment_of(recipe.runtime) as env:
        args = model_args(recipe, tokenizer.vocab_size)
        objective = make_objective(recipe.objective, args.n_future_tokens, recipe.runtime.seed)
        model = fresh_model(args, recipe.model.init_std)
        if objective.needs_value_head:
            model = with_value_head(model, None, recipe.objective.value.head_type)
        if objective.needs_order_head:
            model = with_order_head(model, folder / ORDER_HEAD_FILE, recipe.model.init_std)
        module = TrainingModule(model.adapter, objective, DTYPES[recipe.runtime.compute_dtype])
        parallel = parallelise(module, module.grouping_plan(), recipe.runtime, env, model.fill)
        if start is not None:
            names = set(model.adapter.state_dict())
            model.adapter.load_state_dict({k: v for k, v in start.items() if k in names})
        data = TrainingData(groups, [(example,) for example in held_out])
        trainer = Trainer(TrainingRun(recipe, folder, env, tokenizer), module, parallel, data)
        tokens = 0
        for step in range(recipe.training.steps):
            figures = trainer.train_step()
            trainer.step = step + 1
            tokens += int(figures["tokens"])
        found = trainer.validate() if held_out else {}
    return Trained(model.adapter, tokens, time.process_time() - began, found)


def model_of(recipe: Recipe, weights: Weights) -> MetaLlamaMTPAdapter:
    """The model with these weights, without its value head."""
    args = model_args(recipe, build_tokenizer(recipe).vocab_size)
    adapter = fresh_model(args, recipe.model.init_std).on(CPU)
    adapter.load_state_dict({k: v for k, v in weights.items() if k in adapter.state_dict()})
    return adapter


def losses(
    adapter: MetaLlamaMTPAdapter, examples: Sequence[Example], collator: AlpacaCollator
) -> Tensor:
    """Compute the summed cross-entropy `[N, n]` of each response under each head, in nats."""
    each = losses_of_tokens(adapter, examples, collator)
    return torch.stack([x.double().sum(0) for x in each])


@torch.no_grad()
def losses_of_tokens(
    adapter: MetaLlamaMTPAdapter, examples: Sequence[Example], collator: AlpacaCollator
) -> list[Tensor]:
    """Compute the cross-entropy `[length, n]` of each token of each example under each head; 0 on
    the prompt."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    found = [torch.empty(0)] * len(examples)
    for start in range(0, len(order), MEASURED_TOGETHER):
        part = order[start : start + MEASURED_TOGETHER]
        lines = token_losses(
            adapter.transformer, collator([examples[i] for i in part]), torch.float32
        )
        for i, line in zip(part, lines, strict=True):
            found[i] = line[: len(examples[i].ids)].clone()
    return found


def right_preferred(summed: Tensor, examples: Sequence[Example]) -> float | None:
    """Of the pairs of a right and a wrong program of one problem, the share whose right one is
    likelier under head 1; None without pairs."""
    labels = torch.tensor([float(example.is_correct) for example in examples])
    return within_problem_auc(-summed[:, 0], labels, [example.task_id for example in examples])


def pass_at_1(
    adapter: MetaLlamaMTPAdapter, problems: Sequence[Problem], collator: AlpacaCollator
) -> list[bool]:
    """Let the model write a program for each problem, greedily, and run its tests."""
    tokenizer = collator.tokenizer
    prompts = [collator.encode_prompt(problem.instruction) for problem in problems]
    written: list[str] = []
    decoder = Decoder(adapter.transformer)
    for start in range(0, len(prompts), WRITTEN_TOGETHER):
        part = prompts[start : start + WRITTEN_TOGETHER]
        new = decoder.generate(part, LONGEST_PROGRAM, tokenizer.eos_id, speculation=Speculation())
        written += [written_text(tokenizer, *pair) for pair in zip(part, new, strict=True)]
    prompting = choose_prompting("micro", None, None, collator.template_name)
    with Sandbox(workers=1) as sandbox:
        judge = CompletionJudge(sandbox, prompting)
        return [
            judge(problem, text).verdict.passed
            for problem, text in zip(problems, written, strict=True)
        ]
