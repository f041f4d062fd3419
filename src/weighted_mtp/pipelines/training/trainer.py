"""The training loop.

A step: its rows are split into micro-batches and distributed to the ranks; all ranks compute the
denominators of the loss (and, if the objective asks, the token weights of the whole step). Forward
and backward of each micro-batch follow, then clipping, the optimizer and the log, and at intervals
validation and a checkpoint. The result does not depend on how the step was split.

Letters: n future tokens (heads), m micro-batches of this rank in a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.progress import Progress
from weighted_mtp.data.loading import StepReader
from weighted_mtp.data.packing import Cutter
from weighted_mtp.data.tokens.tokenizers import Tokenizer
from weighted_mtp.pipelines.checkpoint_utils import checkpoint_path, reading
from weighted_mtp.pipelines.checkpointing.remote_copies import Copies
from weighted_mtp.pipelines.checkpointing.restoring import restore_any
from weighted_mtp.pipelines.checkpointing.sharded import (
    ShardedSaver,
    WholeSaver,
    publish,
)
from weighted_mtp.pipelines.metrics_utils import MetricsFile, in_words, shown
from weighted_mtp.pipelines.run_directory import run_facts
from weighted_mtp.pipelines.tracking.trackers import Tracker, make_trackers
from weighted_mtp.pipelines.training.data import TrainingData
from weighted_mtp.pipelines.training.head_start import fit_new_heads
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import Sums
from weighted_mtp.pipelines.training.optimization import learning_rate, make_optimizer, set_rates
from weighted_mtp.pipelines.training.policies import (
    BestCheckpoints,
    SkippedSteps,
    StopRequest,
    check_held_out,
)
from weighted_mtp.pipelines.training.step import (
    add_sums,
    reduce_sums,
    row_figures,
    summarise,
    weights_of_step,
)
from weighted_mtp.runtime import distributed
from weighted_mtp.runtime.environment import Environment
from weighted_mtp.runtime.parallel import Parallel
from weighted_mtp.runtime.peak_memory import peak_memory
from weighted_mtp.runtime.pooling import gather_rows

log = get_logger(__name__)

VALIDATED_TOGETHER = 1024
"""Held-out groups whose batches are in memory at a time."""


@dataclass(frozen=True)
class TrainingRun:
    """A run: what it follows, where it writes and where it computes.

    Attributes:
        recipe: the resolved recipe.
        run_dir: where metrics and checkpoints go.
        tokenizer: saved with the model.
        resume_from: a complete checkpoint of this run.
    """

    recipe: Recipe
    run_dir: Path
    env: Environment
    tokenizer: Tokenizer
    resume_from: Path | None = None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done.
        finished: False if it was interrupted.
        checkpoint: where the last state is saved.
        validation: figures of the last validation, empty if there was none.
        uncopied: on the main process, the message if a checkpoint is not in `training.remote`.
    """

    step: int
    finished: bool
    checkpoint: Path
    validation: dict[str, Any]
    uncopied: str | None = None


class Trainer:
    """Trains a `TrainingModule` on tokenised rows.

    Args:
        module: what is trained; it holds the weights of `run.resume_from`, if there is one.
        parallel: the same module, with its weights distributed over the processes.
    """

    def __init__(
        self, run: TrainingRun, module: TrainingModule, parallel: Parallel, data: TrainingData
    ) -> None:
        recipe, env, self.tokenizer = run.recipe, run.env, run.tokenizer
        self.recipe, self.config, self.env, self.run_dir = recipe, recipe.training, env, run.run_dir
        self.module, self.objective = module, module.objective
        self.parallel, self.wrapped, self.parameters = parallel, parallel.module, parallel.trained
        self.validation, self.annotate, self.sources = data.validation, data.annotate, data.sources
        self.cutter = Cutter(
            self.tokenizer.pad_id,
            recipe.data.max_length - 1,
            self.config.micro_batch_size,
            recipe.data.packing,
            recipe.data.pad_to_multiple,
            end_to_end=env.device.type == "cpu",
        )
        self.reader = StepReader(
            data.train,
            self.cutter,
            self.config.batch_size // self.objective.group_size,
            env.rank,
            env.world_size,
            recipe.data.workers,
            pin_memory=env.device.type == "cuda",
        )
        value_rate = recipe.objective.value.learning_rate
        self.optimizer = make_optimizer(module, self.config, value_rate)
        self.weights = {
            name.removeprefix("adapter."): weight
            for name, weight in parallel.weights.items()
            if module.adapter.base is None or weight.requires_grad  # the base is stored already
        }
        self.copies = Copies(self.run_dir, self.config.keep_last, self.config.remote)
        self.saver = (ShardedSaver if parallel.sharded else WholeSaver)(
            self.run_dir, module.adapter, self.weights, self.optimizer, self.tokenizer, self.copies
        )
        self.metrics = MetricsFile(self.run_dir / "metrics.jsonl")
        self.best = BestCheckpoints(self.config)
        check_held_out(self.config, bool(self.validation))
        self.skipped = SkippedSteps(self.run_dir, self.config.max_skipped_steps)
        self.step, self.resumed_from = 0, run.resume_from
        if run.resume_from is not None:
            self._restore(run.resume_from)
        draft_ids = self.objective.draft_ids()
        if draft_ids is not None:
            module.adapter.transformer.draft_ids = draft_ids.cpu()
        self.trackers: list[Tracker] = []
        if env.is_main:
            self.metrics.rewind(self.step)
            params = recipe.model_dump(mode="json")
            self.trackers = make_trackers(self.config.trackers, self.run_dir, params, self.step)

    def _restore(self, checkpoint: Path) -> None:
        state = restore_any(checkpoint, self.optimizer, self.weights)
        self.step = state["step"]
        for name, part in self._parts().items():
            if name not in state:
                raise UserError(
                    f"{checkpoint}: has no state of {name}, because another version wrote it; "
                    "start a new run from its model/"
                )
            with reading(checkpoint / "trainer.json"):
                part.load_state_dict(state[name])

    def fit(self) -> TrainResult:
        """Train to the last step, to an early stop, or until Ctrl-C or SIGTERM; save in each case.

        Raises:
            UserError: more steps than allowed had a non-finite loss or gradient.
        """
        config, validation, saved = self.config, {}, self.resumed_from or self.run_dir
        first = self.current_step()
        new_heads = self.recipe.model.add_heads is not None and self.step == 0
        if new_heads and self.recipe.model.head_start == "fit":
            self._fit_new_heads()
        if self.env.is_main and not self._done():
            self.metrics.write("run", self.step, run_facts(self.env))
        progress = Progress(config.steps, "step", done=self.step, enabled=self.env.is_main)
        with StopRequest() as stop, progress, self._trackers_closed():
            while not self._done() and not stop.agreed():
                started = time.perf_counter()
                with distributed.speaking_up(self.current_step):
                    figures = self.train_step()
                figures["tokens_per_second"] = figures["tokens"] / (time.perf_counter() - started)
                self.step += 1
                self.saver.look()
                self._log("train", figures, every=config.log_every)
                progress.update(
                    1,
                    f"loss {shown(figures['loss'], '.4f')} · "
                    f"{figures['tokens_per_second']:,.0f} tok/s",
                )
                if self.step == first:
                    self._report_memory(progress)
                last, keep = self.step == config.steps, False
                if self.validation and (last or self.step % config.validate_every == 0):
                    validation = self.validate()
                    keep = self.best.observe(self.step, validation)
                    self._log("validation", validation)
                    progress.note(f"step {self.step}  validation  {in_words(validation)}")
                if self._done() or keep or self.step % config.save_every == 0:
                    saved = self.save()
            finished = self._done()
            if not finished and saved != checkpoint_path(self.run_dir, self.step):
                saved = self.save()
            self.saver.settle()
            if finished:
                publish(saved, self.weights, self.tokenizer)
            if self.step > first:
                self._report_memory(progress)
        uncopied = self.copies.settle(self.best.steps)  # Ctrl-C interrupts it at once
        return TrainResult(self.step, finished, saved, validation, uncopied)

    def _fit_new_heads(self) -> None:
        """Before the first step; its rows are read again by it.

        At most an epoch is read: the solution is the same however often the rows are counted.
        """
        config, env, started = self.config, self.env, time.perf_counter()
        count = config.batch_size // self.objective.group_size
        reader = StepReader(self.reader.groups, self.cutter, count, env.rank, env.world_size)
        epoch = -(-reader.groups.epoch_size // count)
        read = islice(reader, min(config.steps, epoch))  # no more rows than the run reads
        steps = ([batch.to(env.device) for batch in batches] for batches in read)
        log.info("fitting the new heads to head 1, before the first step")
        positions = fit_new_heads(self.wrapped, self.module, steps)
        log.info(
            "new heads fitted to head 1 at %s positions in %.1f s",
            f"{positions:,}",
            time.perf_counter() - started,
        )

    def train_step(self) -> dict[str, Any]:
        """Run one optimizer step; return its figures, which are the same on every rank."""
        self.objective.begin_step(self.step, self.config.steps)
        batches = [batch.to(self.env.device) for batch in next(self.reader)]
        batches = [self.objective.with_targets(batch) for batch in batches]
        if self.annotate is not None:
            batches = [self.annotate(batch) for batch in batches]
        counts = torch.stack([self.objective.counts(batch) for batch in batches])  # [m, n + 1]
        denominators = self.objective.denominators(distributed.all_reduce_sum(counts))
        weights, sums = weights_of_step(self.wrapped, self.objective, batches)
        rate = learning_rate(self.step, self.config)
        set_rates(self.optimizer, rate)

        for i, batch in enumerate(batches):
            with self.parallel.micro_batch(last=i == len(batches) - 1):
                out = self.wrapped(batch, "train", denominators, weights[i])
                self.parallel.backward(out.loss)
            share = out.loss.detach().double()
            add_sums(sums, {**out.sums, "loss": share, "positions": batch.positions()})
        norm = self.parallel.clip(self.config.clip_norm)
        sums = reduce_sums(sums, self.env.device)
        loss = float(sums["loss"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            examples = self.reader.last_examples()
            self.saver.settle()  # the next line may end the run, and a checkpoint must be whole
            self.skipped.add(self.step + 1, loss, norm, examples, self.env.is_main)
            return {"loss": loss, "grad_norm": norm, "tokens": 0, "skipped": self.skipped.count}
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.end_step(sums)
        figures = {**summarise(sums), **self.objective.summarise(sums)}
        return {**figures, "loss": loss, "learning_rate": rate, "grad_norm": norm}

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Compute held-out figures of all rows, unweighted; changes nothing training depends on."""
        sums: Sums = {}
        probes: list[Tensor] = []
        for start in range(0, len(self.validation), VALIDATED_TOGETHER):
            part = self.validation[start : start + VALIDATED_TOGETHER]
            for batch in self.cutter.cut(part, self.env.rank, self.env.world_size):
                out = self.wrapped(batch.to(self.env.device), "validate")
                add_sums(sums, out.sums)
                if out.probe is not None:
                    probes.append(out.probe)
        sums = reduce_sums(sums, self.env.device)
        figures = {**summarise(sums), **self.objective.summarise(sums)}
        if self.recipe.data.source != "text":  # text has no correct and incorrect rows
            probe = gather_rows([torch.cat(probes)])[0][0] if probes else None
            pairwise = self.objective.group_size == 2
            examples = [example for group in self.validation for example in group]
            figures |= row_figures(probe, examples, "heads" in sums, pairwise)
        if "value_loss" in figures:
            figures.setdefault("loss", figures["value_loss"])
        return figures

    def current_step(self) -> int:
        """The step in progress, counted from 1."""
        return self.step + 1

    def save(self) -> Path:
        """Save everything the next step depends on."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return self.saver.save(self.step, self.best.steps, parts | {"sources": dict(self.sources)})

    @contextmanager
    def _trackers_closed(self) -> Iterator[None]:
        """Flush the trackers however training ends."""
        try:
            yield
        finally:
            for tracker in self.trackers:
                tracker.close()

    def _parts(self) -> dict[str, Any]:
        """Objects with a small state of their own, saved in trainer.json."""
        return {
            "objective": self.objective,
            "best": self.best,
            "skipped": self.skipped,
            "reader": self.reader,
        }

    def _report_memory(self, progress: Progress) -> None:
        peak = peak_memory(self.env.device)
        self._log("memory", peak.figures())
        if peak.is_news:
            progress.note(f"step {self.step}  {peak}")

    def _done(self) -> bool:
        return self.step >= self.config.steps or self.best.exhausted

    def _log(self, kind: str, figures: dict[str, Any], every: int = 1) -> None:
        if self.env.is_main and (self.step % every == 0 or self.step == self.config.steps):
            self.metrics.write(kind, self.step, figures)
            for tracker in self.trackers:
                tracker.log(kind, self.step, figures)
