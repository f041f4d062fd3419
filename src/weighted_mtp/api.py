"""The functions of `import weighted_mtp` that put several parts together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.evaluation.benchmarks import BENCHMARKS, MICRO
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import open_checkpoint, value_head_path
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpoint_utils import Layout, save_model
from weighted_mtp.pipelines.evaluating.evaluator import EvaluationResult
from weighted_mtp.pipelines.evaluating.evaluator import evaluate as run_evaluation
from weighted_mtp.pipelines.evaluating.request import EvaluationRequest
from weighted_mtp.pipelines.planning.plan import Plan, PlanRequest
from weighted_mtp.pipelines.planning.plan import plan as make_plan


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
) -> MetaLlamaMTPAdapter:
    """Load a model, with its value head if it has one.

    Example:
        >>> model = load("runs/first", device="cpu")
        >>> model.transformer(torch.tensor([[1, 2, 3]])).shape  # [batch, sequence, vocabulary]
        >>> model.full_forward(torch.tensor([[1, 2, 3]]))["logits"].shape  # … one for each head

    Args:
        path: a run, a checkpoint, a model directory in any layout, or ORG/NAME on the hub.
        device: "auto" takes cuda, then mps, then cpu.
        dtype: number format of the weights; None keeps the stored one.

    Raises:
        UserError: the checkpoint is missing, damaged or of an unknown layout.
    """
    source = open_checkpoint(path)
    has_head = value_head_path(source.directory).is_file()
    return MetaLlamaMTPAdapter.from_pretrained(source, device, dtype, has_head)


def save(
    model: MetaLlamaMTPAdapter | Transformer,
    path: str | Path,
    layout: Layout = "native",
    tokenizer: Tokenizer | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a model, its value head, and the tokenizer files that it was loaded with; `path` is
    written completely or not at all.

    Example:
        >>> save(load("runs/first"), "exports/first", layout="hf")  # a Llama for other libraries

    Args:
        layout: "native", or "hf" for Hugging Face's Llama layout.
        tokenizer: for a model that has no tokenizer files.
        overwrite: replace a checkpoint at `path`.

    Raises:
        UserError: `path` exists (or, with `overwrite`, is not a checkpoint) or cannot be written.
    """
    adapter = MetaLlamaMTPAdapter(model) if isinstance(model, Transformer) else model
    save_model(adapter, tokenizer, Path(path), layout, overwrite)


def evaluate(
    path: str | Path | None,
    dataset: str = MICRO,
    *,
    output: str | Path | None = None,
    allow_code_execution: bool = False,
    **options: Any,
) -> EvaluationResult:
    """Write programs with a model, run their tests and keep the results, as `weighted-mtp evaluate`
    does; an interrupted evaluation resumes.

    Example:
        >>> evaluate("runs/first", n_problems=50, sampling=Sampling(temperature=0.2)).pass_at_1
        >>> evaluate("runs/first", "humaneval", source="…", allow_code_execution=True).scores

    Args:
        path: a run, a checkpoint, a model directory, or ORG/NAME on the hub; None to judge
            `completions`.
        dataset: "micro", "humaneval", "mbpp" or "codecontests".
        output: where the results go; by default `evaluation/` beside the model.
        allow_code_execution: needed for all data sets but "micro": programs that a model wrote run
            on this machine, in a sandbox that leaves files to their permissions.
        options: other fields of `EvaluationRequest`.

    Raises:
        UserError: the model, its tokenizer or the data set is missing or damaged, or an option is
            out of range.
    """
    if dataset in BENCHMARKS and not allow_code_execution:
        raise UserError(
            f"data set {dataset} runs programs that a model wrote on this machine; if that is "
            "acceptable here, set allow_code_execution=True"
        )
    given, place = (None if part is None else Path(part) for part in (path, output))
    return run_evaluation(EvaluationRequest(dataset, given, output=place, **options))


def plan(
    recipe: str | Path | Recipe,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    gpus: int = 1,
    gpus_per_node: int = 8,
) -> Plan:
    """Estimate which settings of a recipe fit which GPUs, as `weighted-mtp plan` does.

    Example:
        >>> found = plan("verifiable", model="7b", gpus=8)
        >>> found.best(80).changes  # what to set on GPUs of 80 GiB

    Args:
        recipe: a shipped name, a YAML file or a `Recipe`.
        preset: another scale, `micro` for instance.
        overrides: `section.key=value` settings on top, as `--set` takes them.
        model: "micro", "7b", "8b", "13b", "70b" or a checkpoint; None takes the recipe's own.
        gpus: over all nodes.
        gpus_per_node: GPUs that share a copy of the weights under hsdp.

    Raises:
        UserError: the recipe, the model and the number of GPUs do not make a possible run.
    """
    return make_plan(PlanRequest(recipe, preset, overrides, model, gpus, gpus_per_node))
