"""A minute training run, and ways to look at what it left behind."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import Recipe, load_recipe
from weighted_mtp.core.config.sections import CriticStage
from weighted_mtp.data.batches import Example
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.data.loading import RowGroups, ShuffledGroups
from weighted_mtp.data.rows.store import open_rows
from weighted_mtp.data.sampling import RowOrder
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.models.meta_mtp.checkpoints import value_head_path
from weighted_mtp.pipelines.compose import prepare_blocks, start_model
from weighted_mtp.pipelines.metrics_utils import read_metrics
from weighted_mtp.pipelines.resolve import Processes
from weighted_mtp.pipelines.training.adapting import freeze, halve_frozen
from weighted_mtp.pipelines.training.data import TrainingData
from weighted_mtp.pipelines.training.module import TrainingModule
from weighted_mtp.pipelines.training.objectives import Pool, Verifiable, make_objective
from weighted_mtp.pipelines.training.reference import ReferenceRequest, prepare_reference_losses
from weighted_mtp.pipelines.training.trainer import Trainer, TrainingRun
from weighted_mtp.runtime.environment import Environment, seed_everything
from weighted_mtp.runtime.modes import parallelise

TINY = {
    "model.architecture.dim": 32,
    "model.architecture.n_layers": 4,
    "model.architecture.n_heads": 2,
    "model.architecture.n_future_tokens": 3,
    "model.architecture.multiple_of": 16,
    "model.architecture.max_seq_len": 512,
    "tokenizer.kind": "bytes",
    "data.source": "jsonl",
    "data.template": "short",
    "data.max_length": 64,
    "training.steps": 8,
    "training.batch_size": 8,
    "training.micro_batch_size": 4,
    "training.learning_rate": 0.01,
    "training.save_every": 3,
    "training.validate_every": 4,
    "runtime.device": "cpu",
    "runtime.compute_dtype": "float32",
    "runtime.threads": 1,
}
CRITIC = {"objective.value.trunk": "all", "objective.value.lm_coef": 1.0}
"""From scratch a critic's trunk has to learn to read."""
SMALL = {
    "model__architecture__dim": 16,
    "model__architecture__n_layers": 3,
    "model__architecture__n_future_tokens": 2,
    "data__max_length": 40,  # a quarter of the rows is cut
}
"""Smaller still, for tests that take hundreds of steps."""
SLOW_STEP = 0.1  # seconds
CPU = Environment(torch.device("cpu"), 0, 1)

# A process that has imported everything, and forks for every run: to import costs 5 s each time.
_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["weighted_mtp.cli.train", "torch._dynamo", "numpy.random"])


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    """24 short rows, a third of them labelled wrong, of many lengths."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = []
    for i in range(24):
        a, b, correct = i % 7 + 1, i % 5 + 2, i % 3 != 2
        row = {
            "instruction": f"add {a} and {b}",
            "input": "" if i % 4 else "as int",
            "output": f"return {a + b if correct else a - b}" + " # sum" * (i % 4),
            "task_id": f"sum/{i // 2}",
            "is_correct": correct,
            "metadata": {"source": "made by hand", **({} if i % 4 else {"difficulty": "easy"})},
        }
        rows.append(row)
    write_jsonl(path, rows)
    return path


@pytest.fixture(scope="session")
def critic_model(tmp_path_factory, rows_file) -> Path:
    """A model with a value head: a critic trained for six steps, its trunk with it."""
    run_dir = tmp_path_factory.mktemp("runs") / "critic"
    assert train(run_dir, rows_file, "critic", training__steps=6, **CRITIC) == 0
    return last_checkpoint(run_dir) / "model"


@pytest.fixture(scope="session")
def reference_file(tmp_path_factory, rows_file, critic_model) -> Path:
    """That model's losses on the rows, stored."""
    out = tmp_path_factory.mktemp("reference") / "rows.safetensors"
    return prepare_reference_losses(reference_request(rows_file, critic_model, out))


def reference_request(rows: Path, model: Path, out: Path | None = None) -> ReferenceRequest:
    """Scores the rows as a tiny run reads them."""
    return ReferenceRequest(rows, model, out, "short", 64, batch_size=5, device="cpu")


@pytest.fixture
def make_trainer(tmp_path, rows_file):
    """Builds a tiny trainer in this process; see `build_trainer`."""

    def make(*args, **changes) -> Trainer:
        return build_trainer(rows_file, tmp_path, *args, **changes)

    return make


def build_trainer(
    rows: Path,
    run_dir: Path,
    recipe: str = "baseline",
    train: list[Example] | None = None,
    env: Environment = CPU,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> Trainer:
    """A trainer from scratch; keywords change its recipe.

    Where values weigh tokens, the value head is random, as if a critic had been trained. Rho-1's
    reference losses are random too, but for mode `difficult`, which has none.
    """
    resolved = tiny_recipe(rows, recipe, **changes)
    seed = resolved.runtime.seed
    seed_everything(seed)
    tokenizer = ByteTokenizer()
    # With a stage that trains it, a value head may start fresh.
    from_scratch = resolved.model_copy(update={"critic_stage": CriticStage(steps=1)})
    adapter = start_model(from_scratch, Processes())[0].on(env.device)
    if adapter.value_head is not None and resolved.pipeline != "critic":
        for parameter in adapter.value_head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    objective = make_objective(resolved.objective, adapter.args.n_future_tokens, seed)
    data = resolved.data
    collator = AlpacaCollator(tokenizer, data.template, data.max_length)
    store = open_rows(rows)
    examples = [collator.encode(row, i) for i, row in enumerate(store)]
    held_out = [(e,) for e in examples if e.has_targets][:6]
    if recipe == "rho1" and resolved.objective.rho1.mode != "difficult":
        examples = [with_reference(example) for example in examples]
    candidates = objective.candidates(store.metadata)
    cap = resolved.objective.value.max_pairs_per_problem if objective.group_size == 2 else None
    order = RowOrder(store.metadata, candidates, data.sampling, seed, 10**6, cap)
    groups = RowGroups(order, examples)
    if train is not None:
        groups = ShuffledGroups([(example,) for example in train], seed)
    module = TrainingModule(adapter, objective, chunk_rows=resolved.training.loss_chunk_rows)
    freeze(adapter, resolved, objective)
    halve_frozen(adapter, resolved, {})
    module.to(dtype)
    prepare_blocks(resolved, adapter.transformer)
    parallel = parallelise(module, module.grouping_plan(), resolved.runtime, env)
    run = TrainingRun(resolved, run_dir, env, tokenizer)
    trainer = Trainer(run, module, parallel, TrainingData(groups, held_out))
    trainer.collator = collator
    trainer.examples = [examples[i] for i in order.take(0, order.epoch_size).flatten().tolist()]
    if order.group == 1:
        trainer.examples.sort(key=lambda example: example.row)
    return trainer


def token_weights(objective: Verifiable, pool: Pool) -> torch.Tensor:
    """`[R, S + 1]` the weight of each token."""
    return objective.token_weights(pool, objective.advantages(pool, objective.td_errors(pool)))


def with_reference(example: Example) -> Example:
    """The example with made-up losses of a reference model, about as large as a byte's. It has two
    heads, one fewer than the tiny models."""
    generator = torch.Generator().manual_seed(example.row)
    losses = torch.rand(len(example.ids), 2, generator=generator) * 6
    losses[: example.prompt_length] = 0
    return example._replace(reference=losses)


def recut(trainer: Trainer, **changes) -> None:
    """Cut the steps that follow in another way; see `Cutter`."""
    trainer.cutter = replace(trainer.cutter, **changes)
    trainer.reader._steps.cutter = trainer.cutter


def run_steps(trainer: Trainer, steps: int) -> list[dict]:
    """Train some steps, without logging or saving; the figures of each."""
    figures = []
    for _ in range(steps):
        figures.append(trainer.train_step())
        trainer.step += 1
    return figures


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of all weights, whole."""
    return {name: whole(p.detach()).clone() for name, p in trainer.parallel.weights.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which every process may hold a part; every process calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def settings(rows: Path, **changes) -> list[str]:
    """Overrides of a tiny run; `training__steps=4` sets `training.steps`, None leaves one out."""
    merged = {"data.train": rows, "data.validation": rows, **TINY}
    merged |= {name.replace("__", "."): value for name, value in changes.items()}
    if "model.path" in merged:
        merged = {k: v for k, v in merged.items() if not k.startswith("model.architecture")}
    return [f"{name}={value}" for name, value in merged.items() if value is not None]


def tiny_recipe(rows: Path, recipe: str = "baseline", **changes) -> Recipe:
    """The recipe that `train` would resolve."""
    return load_recipe(recipe, None, settings(rows, **changes))


def train_arguments(run_dir: Path, rows: Path, recipe: str = "baseline", **changes) -> list[str]:
    """Everything after `weighted-mtp train`."""
    sets = [word for item in settings(rows, **changes) for word in ("--set", item)]
    return ["--recipe", recipe, "--output-dir", str(run_dir), *sets]


def train(run_dir: Path, rows: Path, recipe: str = "baseline", **changes) -> int:
    """A run in this process; its exit status."""
    return main(["train", *train_arguments(run_dir, rows, recipe, **changes)])


def resume(run_dir: Path, *more: str) -> int:
    """`train --resume` in this process; its exit status."""
    return main(["train", "--resume", "--output-dir", str(run_dir), *more])


def interrupt(
    run_dir: Path, arguments: list[str], number: int, after_step: int, watched: Path | None = None
) -> str:
    """Run `train` in a process of its own and send it a signal at some moment soon after it logged
    a step (in `watched`, if that is not the run itself); all that it printed."""
    printed = run_dir.with_suffix(".txt")
    process = _forkserver.Process(target=_slow_train, args=(printed, arguments))
    process.start()
    metrics = (watched or run_dir) / "metrics.jsonl"
    while not (metrics.exists() and any(r["step"] >= after_step for r in read_metrics(metrics))):
        assert process.is_alive(), f"it ended before step {after_step}:\n{printed.read_text()}"
        time.sleep(0.005)
    time.sleep(random.uniform(0, SLOW_STEP))
    os.kill(process.pid, number)
    process.join()
    expected = 130 if number == signal.SIGINT else -number
    assert process.exitcode == expected, printed.read_text()
    return printed.read_text()


def _slow_train(printed: Path, arguments: list[str]) -> None:
    """`train` with a pause in each step, or the run would fit between two looks at its metrics."""
    sys.stdout = sys.stderr = printed.open("w", buffering=1)
    step = Trainer.train_step

    def slow_step(self):
        time.sleep(SLOW_STEP)
        return step(self)

    Trainer.train_step = slow_step
    sys.exit(main(["train", *arguments]))


def records(run_dir: Path) -> list[dict]:
    """All that metrics.jsonl holds, except figures of the machine. Strict: a cut line fails."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    own = ("memory", "run")
    kept = [record for line in lines if (record := json.loads(line))["kind"] not in own]
    for record in kept:
        record.pop("tokens_per_second", None)
        del record["elapsed"]
    return kept


def train_curve(run_dir: Path, key: str = "loss") -> list[float]:
    """One figure of every training step."""
    return [r[key] for r in records(run_dir) if r["kind"] == "train"]


def checkpoint_names(run_dir: Path) -> list[str]:
    """Everything in the checkpoints folder."""
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def last_checkpoint(run_dir: Path) -> Path:
    """The newest complete one."""
    return sorted(p.parent for p in run_dir.glob("checkpoints/step-*/COMPLETE"))[-1]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights a run ended with, those of the value head among them."""
    model = last_checkpoint(run_dir) / "model"
    found = load_file(model / "safetensors" / "model.safetensors")
    if value_head_path(model).exists():
        head = load_file(value_head_path(model))
        found |= {f"value_head.{name}": tensor for name, tensor in head.items()}
    return found


def optimizer_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the optimizer state (or states) a run ended with."""
    found = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        children = value.items() if isinstance(value, dict) else ()
        for key, child in enumerate(value) if isinstance(value, list) else children:
            walk(f"{name}.{key}", child)

    walk("", torch.load(last_checkpoint(run_dir) / "optimizer.pt", weights_only=True))
    assert found
    return found


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all numbers of all tensors."""
    assert one.keys() == other.keys()
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)
