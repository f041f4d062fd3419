"""What is decided and reported over a whole step or validation: token weights of all micro-batches
and ranks, sums, and the figures made of them.

Letters: B batch, S sequence, n future tokens (heads), R rows of a step, N held-out rows, F
fractions of a response.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.data.batches import Batch, Example
from weighted_mtp.evaluation.critic_metrics import critic_report, within_problem_auc
from weighted_mtp.evaluation.head_quality import head_figures
from weighted_mtp.pipelines.training.module import FRACTIONS, pool_of
from weighted_mtp.pipelines.training.objectives import Objective, Pool, Sums
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.pooling import concat_rows, gather_rows


@torch.no_grad()
def weights_of_step(
    wrapped: nn.Module, objective: Objective, batches: Sequence[Batch]
) -> tuple[list[Tensor | None], Sums]:
    """Decide weights `[B, S, n]` of each micro-batch over the whole step, before any of it is
    learnt; None where the forward pass decides them.

    Args:
        wrapped: the `TrainingModule`, as it is called in training.
        batches: this rank's micro-batches.

    Returns:
        The weights, and the sums of their figures and of the scoring pass.
    """
    sums: Sums = {}
    if not objective.scores_whole_steps:
        return [None] * len(batches), sums
    pools = []
    for batch in batches:
        out = wrapped(batch, "score")
        add_sums(sums, out.sums)
        pools.append(pool_of(batch, out.signal, objective.needs_reference))
    gathered = [gather_rows(pool) for pool in pools]
    weighed = objective.weigh_checked(Pool.of(concat_rows([rows for rows, _ in gathered])))
    weights: list[Tensor | None] = []
    start = 0
    for (rows, own), pool in zip(gathered, pools, strict=True):
        mine = slice(start + own.start, start + own.stop)
        chosen, figures = weighed.select(mine, pool.signal.shape[1])
        weights.append(chosen)
        add_sums(sums, figures)
        start += len(Pool.of(rows).rows)
    return weights, sums


def add_sums(total: Sums, part: Mapping[str, Tensor]) -> None:
    """Add a micro-batch's sums, in place."""
    for name, value in part.items():
        total[name] = total[name] + value if name in total else value


def reduce_sums(sums: Mapping[str, Tensor], device: torch.device) -> Sums:
    """Sum over all ranks, in one exchange; the result is on the CPU."""
    names = sorted(sums)
    if not names:
        return {}
    flat = torch.cat([sums[name].double().flatten().to(device) for name in names])
    whole = distributed.all_reduce_sum(flat).cpu()
    parts = torch.split(whole, [sums[name].numel() for name in names])
    return {name: part.view(sums[name].shape) for name, part in zip(names, parts, strict=True)}


def summarise(sums: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compute loss (nats a token) and accuracy of each head on correct rows, and its loss on
    incorrect ones, if there are any. `loss` is the plain mean over heads of the former, `padding`
    the share of positions that were padding. A validation adds the `head_figures` of correct rows.
    A figure for which no token was counted is NaN (null in metrics.jsonl): never 0, and never the
    figure of other rows."""
    padding = {}
    if "positions" in sums:
        run, filled = sums["positions"].tolist()
        padding = {"padding": round(1 - filled / run, 6)}
    if "heads" not in sums:
        return {"tokens": int(sums["tokens"]) if "tokens" in sums else 0, **padding}
    right, wrong = sums["heads"]  # [3, n]
    losses, accuracies = _means(right[0], right[2]), _means(right[1], right[2])
    known = [x for x in losses if not math.isnan(x)]
    figures: dict[str, Any] = {
        "loss": sum(known) / len(known) if known else math.nan,
        "head_loss": losses,
        "head_accuracy": accuracies,
        "tokens": int(right[2, 0] + wrong[2, 0]),
        **padding,
    }
    if wrong[2].any():
        figures["head_loss_incorrect"] = _means(wrong[0], wrong[2])
    if "acceptance" in sums:
        figures |= head_figures(sums["calibration"][0], sums["acceptance"][0])
    return figures


def row_figures(
    probe: Tensor | None, examples: Sequence[Example], has_likelihood: bool, pairwise: bool
) -> dict[str, float]:
    """Measure how well likelihood and values separate correct held-out rows from incorrect ones.

    Args:
        probe: `[N, 2]` row index and cross-entropy of the response, or `[N, 3 + F]` with the mean
            value along it and the values at `FRACTIONS`.
        examples: the held-out rows, with their labels and problems.
        has_likelihood: the second column was computed.
        pairwise: the value loss is that of pairs.

    Returns:
        `right_preferred` (of the pairs of a correct and an incorrect row of one problem, the share
        in which the correct one is likelier) and the critic's figures, those that are defined.
    """
    if probe is None or not probe.isfinite().all():  # a model that diverged has no ranking
        return {}
    by_row = {example.row: example for example in examples}
    known = [line for line in probe.tolist() if int(line[0]) in by_row]
    chosen = [by_row[int(line[0])] for line in known]
    labels = torch.tensor([float(example.is_correct) for example in chosen])
    problems = [example.task_id for example in chosen]
    figures: dict[str, float] = {}
    if has_likelihood:
        scores = torch.tensor([-line[1] for line in known])
        preferred = within_problem_auc(scores, labels, problems)
        if preferred is not None:
            figures["right_preferred"] = preferred
    if known and len(known[0]) > 2:
        values = torch.tensor([line[3:] for line in known])
        figures |= critic_report(values, labels, problems, FRACTIONS)
        if pairwise:
            figures["value_loss"] = _pairwise_loss([line[2] for line in known], chosen)
    return figures


def _pairwise_loss(means: Sequence[float], examples: Sequence[Example]) -> float:
    """Mean of −log σ(V̄⁺ − V̄⁻) over all pairs of each problem; NaN if there is none."""
    sides: dict[str, tuple[list[float], list[float]]] = {}
    for mean, example in zip(means, examples, strict=True):
        sides.setdefault(example.task_id, ([], []))[example.is_correct].append(mean)
    margins = [r - w for wrong, right in sides.values() for r in right for w in wrong]
    return float(-F.logsigmoid(torch.tensor(margins)).mean())


def _means(total: Tensor, count: Tensor) -> list[float]:
    pairs = zip(total.tolist(), count.tolist(), strict=True)
    # Seven digits, not seven places: a tiny mean must not become 0.
    return [float(f"{x / m:.7g}") if m else math.nan for x, m in pairs]
