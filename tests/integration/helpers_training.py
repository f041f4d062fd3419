"""A minute training run, and ways to look at what it left behind."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from weighted_mtp.cli.main import main
from weighted_mtp.core.config import Recipe, load_recipe
from weighted_mtp.data.collators import AlpacaCollator, Example
from weighted_mtp.data.datasets import read_jsonl, write_jsonl
from weighted_mtp.data.tokenizers import ByteTokenizer
from weighted_mtp.pipelines.compose import build_adapter, encode_rows
from weighted_mtp.pipelines.metrics_utils import read_metrics
from weighted_mtp.pipelines.objectives import make_objective
from weighted_mtp.pipelines.trainer import Trainer
from weighted_mtp.pipelines.training_module import TrainingModule
from weighted_mtp.runtime.environment import Environment, seed_everything

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
            "metadata": {"source": "made by hand"},
        }
        rows.append(row)
    write_jsonl(path, rows)
    return path


@pytest.fixture
def make_trainer(tmp_path, rows_file):
    """Builds a trainer of the tiny baseline in this process; keywords change its recipe."""

    def make(train: list[Example] | None = None, **changes) -> Trainer:
        recipe = tiny_recipe(rows_file, **changes)
        seed_everything(recipe.runtime.seed)
        tokenizer = ByteTokenizer()
        adapter = build_adapter(recipe, tokenizer, CPU.device, None)
        seed = recipe.runtime.seed
        objective = make_objective(recipe.objective, adapter.args.n_future_tokens, seed)
        collator = AlpacaCollator(tokenizer, recipe.data.template, recipe.data.max_length)
        raw = read_jsonl(rows_file)
        rows = encode_rows(raw, collator, objective.select(raw), objective.group_size)
        module = TrainingModule(adapter, objective, chunk_rows=recipe.training.loss_chunk_rows)
        return Trainer(recipe, module, collator, train or rows, rows[:6], tmp_path, CPU)

    return make


def run_steps(trainer: Trainer, steps: int) -> list[dict]:
    """Train some steps, without logging or saving; the figures of each."""
    figures = []
    for _ in range(steps):
        figures.append(trainer.train_step())
        trainer.step += 1
    return figures


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in trainer.module.named_parameters()}


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


def interrupt(run_dir: Path, arguments: list[str], number: int, after_step: int) -> str:
    """Run `train` in a process of its own and send it a signal at some moment soon after it logged
    a step; all that it printed."""
    printed = run_dir.with_suffix(".txt")
    process = _forkserver.Process(target=_slow_train, args=(printed, arguments))
    process.start()
    metrics = run_dir / "metrics.jsonl"
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
    """All that metrics.jsonl holds, but for how fast the machine was. Strict: a cut line fails."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    for record in kept:
        record.pop("tokens_per_second", None)
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
    """The weights a run ended with."""
    return load_file(last_checkpoint(run_dir) / "model" / "safetensors" / "model.safetensors")


def optimizer_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the optimizer state a run ended with."""
    state = torch.load(last_checkpoint(run_dir) / "optimizer.pt", weights_only=True)["state"]
    return {f"{i}.{name}": value for i, slot in state.items() for name, value in slot.items()}


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
