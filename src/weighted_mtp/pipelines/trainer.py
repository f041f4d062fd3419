"""The one training loop.

A step: its rows are cut into micro-batches and dealt to the ranks, the denominators of the loss are
agreed, then forward and backward for each micro-batch, clip, optimizer, log; now and then validate
and save. The result does not depend on how the step was cut.

Letters: n future tokens (heads).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from weighted_mtp.core.config import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.progress import Progress
from weighted_mtp.data.collators import AlpacaCollator, Batch, Example
from weighted_mtp.data.datasets import step_indices
from weighted_mtp.losses import count_targets
from weighted_mtp.pipelines.checkpoint_utils import restore_optimizer, save_checkpoint
from weighted_mtp.pipelines.interruption import StopRequest
from weighted_mtp.pipelines.metrics_utils import MetricsFile, heads_in_words, summarise
from weighted_mtp.pipelines.optimization import learning_rate, make_optimizer
from weighted_mtp.pipelines.training_module import TrainingModule
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.ddp import gradient_sync, wrap_ddp
from weighted_mtp.runtime.environment import Environment


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done.
        finished: False if it was asked to stop early.
        checkpoint: where the last state is saved.
        validation: figures of the last validation, empty if there was none.
    """

    step: int
    finished: bool
    checkpoint: Path
    validation: dict[str, Any]


class Trainer:
    """Trains a `TrainingModule` on tokenised rows.

    Args:
        recipe: the resolved recipe.
        module: on the environment's device, not yet wrapped.
        collator: makes batches of examples.
        train, validation: tokenised rows; the same on every rank.
        run_dir: where metrics and checkpoints go.
        resume_from: a complete checkpoint of this run, whose weights `module` already holds.
    """

    def __init__(
        self,
        recipe: Recipe,
        module: TrainingModule,
        collator: AlpacaCollator,
        train: Sequence[Example],
        validation: Sequence[Example],
        run_dir: Path,
        env: Environment,
        resume_from: Path | None = None,
    ) -> None:
        self.recipe, self.config, self.env = recipe, recipe.training, env
        self.module, self.collator = module, collator
        self.train, self.validation, self.run_dir = train, validation, run_dir
        self.wrapped = wrap_ddp(module, env.device)
        self.parameters = [p for p in self.wrapped.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.wrapped, self.config)
        self.metrics = MetricsFile(run_dir / "metrics.jsonl")
        self.step, self.resumed_from = 0, resume_from
        if resume_from is not None:
            self.step = restore_optimizer(resume_from, self.optimizer)
        if env.is_main:
            self.metrics.rewind(self.step)

    def fit(self) -> TrainResult:
        """Train to the last step, or until Ctrl-C or SIGTERM asks for an end; save either way.

        Raises:
            UserError: the loss or the gradient stopped being finite.
        """
        config, validation, saved = self.config, {}, self.resumed_from or self.run_dir
        progress = Progress(config.steps, "step", done=self.step, enabled=self.env.is_main)
        with StopRequest() as stop, progress:
            while self.step < config.steps and not stop.agreed(self.env.device):
                started = time.perf_counter()
                figures = self.train_step()
                figures["tokens_per_second"] = figures["tokens"] / (time.perf_counter() - started)
                self.step += 1
                last = self.step == config.steps
                self._log("train", figures, every=config.log_every)
                progress.update(
                    1,
                    f"loss {figures['loss']:.4f} · {figures['tokens_per_second']:,.0f} tok/s",
                )
                if self.validation and (last or self.step % config.validate_every == 0):
                    validation = self.validate()
                    self._log("validation", validation)
                    progress.note(f"step {self.step}  validation  {heads_in_words(validation)}")
                if last or self.step % config.save_every == 0:
                    saved = self.save()
            finished = self.step == config.steps
            if not finished:
                saved = self.save()
        return TrainResult(self.step, finished, saved, validation)

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its figures (global, the same on every rank)."""
        rows = step_indices(
            len(self.train), self.config.batch_size, self.step, self.recipe.runtime.seed
        )
        batches = self._micro_batches([self.train[i] for i in rows])
        denominators = self._denominators(batches)
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        sums = torch.zeros(3, self.module.objective.heads, dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for i, batch in enumerate(batches):
            with gradient_sync(self.wrapped, enabled=i == len(batches) - 1):
                out = self.wrapped(batch, denominators)
                # DDP averages over ranks; the denominators already count all of them.
                (out.loss * self.env.world_size).backward()
            sums += out.sums.cpu()
            total += out.loss.detach().cpu()
        norm = clip_grad_norm_(self.parameters, self.config.clip_norm)
        totals = distributed.all_reduce_sum(
            torch.cat([sums.flatten(), total.view(1)]).to(self.env.device)
        ).cpu()
        loss, norm_value = float(totals[-1]), float(norm)
        if not (math.isfinite(loss) and math.isfinite(norm_value)):
            self._refuse(loss, norm_value, rows)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        figures = summarise(totals[:-1].view(3, -1))
        return {**figures, "loss": loss, "learning_rate": rate, "grad_norm": norm_value}

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Held-out loss and accuracy of each head; touches nothing that training depends on."""
        sums = torch.zeros(3, self.module.objective.heads, dtype=torch.float64)
        ones = torch.ones(self.module.objective.heads)
        for batch in self._micro_batches(self.validation):
            sums += self.wrapped(batch, ones).sums.cpu()
        return summarise(distributed.all_reduce_sum(sums.to(self.env.device)).cpu())

    def save(self) -> Path:
        """Save everything the next step depends on."""
        return save_checkpoint(
            self.run_dir,
            self.step,
            self.module.adapter,
            self.optimizer,
            self.collator.tokenizer,
            self.config.keep_last,
        )

    def _micro_batches(self, examples: Sequence[Example]) -> list[Batch]:
        """This rank's share. Rows of like length go together (less padding; the loss does not
        mind), and every rank gets the same number of batches, the last perhaps empty."""
        size, world = self.config.micro_batch_size, self.env.world_size
        ordered = sorted(examples, key=lambda e: (len(e.ids), e.row))
        cuts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        cuts += [[] for _ in range(-len(cuts) % world)]
        return [self.collator(cut).to(self.env.device) for cut in cuts[self.env.rank :: world]]

    def _denominators(self, batches: Sequence[Batch]) -> Tensor:
        """D_k `[n]`: valid targets of each head in the whole step, over micro-batches and ranks."""
        counts = [count_targets(self.module.targets(batch)) for batch in batches]
        return distributed.all_reduce_sum(torch.stack(counts).sum(0))

    def _log(self, kind: str, figures: dict[str, Any], every: int = 1) -> None:
        if self.env.is_main and (self.step % every == 0 or self.step == self.config.steps):
            self.metrics.write(kind, self.step, figures)

    def _refuse(self, loss: float, norm: float, rows: list[int]) -> None:
        """Stop before a non-finite gradient reaches the weights; keep the batch for inspection."""
        step = self.step + 1  # as the metrics would have counted it
        report = self.run_dir / f"nonfinite-step-{step}.json"
        if self.env.is_main:
            tasks = [self.train[i].task_id for i in rows]
            record = {"step": step, "rows": [self.train[i].row for i in rows], "task_ids": tasks}
            report.write_text(json.dumps(record) + "\n")
        raise UserError(
            f"step {step}: loss {loss} and gradient norm {norm} are not finite; the rows are "
            f"in {report}, earlier checkpoints are untouched; lower training.learning_rate or "
            "look at those rows, then --resume"
        )
