"""Every option of a recipe has an effect, and a new one needs a proof in the table below.

A proof is a look at something that depends on the option: a tiny run is set up as `train` does,
once with the option as in a base recipe and once changed, and the two looks must differ. Where that
would take several processes or minutes, the proof is the name of a test. That the numbers are the
right ones is for the tests of each part.
"""

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import pytest
import torch
from tests.helpers import ROOT, random_tokens
from tests.integration.helpers_training import SMALL, checkpoint_names, run_steps, settings, state
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from weighted_mtp.core.config.recipe import Recipe, load_recipe
from weighted_mtp.core.config.section import Section
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.pipelines import compose
from weighted_mtp.pipelines import resolve as resolving
from weighted_mtp.pipelines.checkpoint_utils import save_model
from weighted_mtp.pipelines.compose import start_model
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.resolve import Processes, build_tokenizer
from weighted_mtp.pipelines.run_rho1 import reference_recipe
from weighted_mtp.pipelines.run_verifiable import critic_recipe
from weighted_mtp.pipelines.training import data as training_data
from weighted_mtp.pipelines.training import trainer as trainer_module
from weighted_mtp.pipelines.training.trainer import Trainer
from weighted_mtp.runtime import environment, fsdp
from weighted_mtp.runtime.modes import shard_size

STEPS = 4

# --- what to look at -----------------------------------------------------------------------------


def batches(trainer: Trainer) -> list[Any]:
    """What the model reads in the first step."""
    return [batch.tokens.tolist() for batch in next(trainer.reader)]


def rows(trainer: Trainer) -> list[Any]:
    """Which rows are drawn, over more than an epoch."""
    groups = trainer.reader.groups.take(0, trainer.reader.groups.planned)
    return [[example.row for example in group] for group in groups]


def held_out(trainer: Trainer) -> list[Any]:
    return [list(example.ids) for group in trainer.validation for example in group]


def documents(trainer: Trainer) -> list[Any]:
    """Text to train on, and text held out."""
    train = [example for group in trainer.reader.groups.take(0, 3) for example in group]
    return [[list(example.ids) for example in train], held_out(trainer)]


def optimizer(trainer: Trainer) -> list[Any]:
    """Kinds of optimizers and the settings of their groups."""
    parts = getattr(trainer.optimizer, "parts", {"": trainer.optimizer})
    return [
        [type(part).__name__, {k: v for k, v in group.items() if k != "params"}]
        for part in parts.values()
        for group in part.param_groups
    ]


def rates(trainer: Trainer) -> list[float]:
    """Learning rates of a whole run."""
    return [figures["learning_rate"] for figures in run_steps(trainer, trainer.config.steps)]


def weights(trainer: Trainer) -> str:
    """What is learnt in a few steps."""
    run_steps(trainer, min(STEPS, trainer.config.steps))
    return digest(state(trainer))


def model(trainer: Trainer) -> list[Any]:
    """The shape of a model, and what it makes of some tokens."""
    transformer = trainer.module.adapter.transformer
    shapes = {name: list(weight.shape) for name, weight in transformer.named_parameters()}
    tokens = random_tokens(transformer.args, 1, 9)
    with torch.no_grad():
        states = transformer.head_states(tokens, return_all_heads=True)
    return [shapes, transformer.max_positions, [float(x.double().square().sum()) for x in states]]


def trained(trainer: Trainer) -> list[str]:
    """Which parameters are trained; those of the value head by their kind too."""
    return [name for name, p in trainer.module.named_parameters() if p.requires_grad]


def formats(trainer: Trainer) -> list[str]:
    """Number formats of the weights."""
    return [str(p.dtype) for p in trainer.module.parameters()]


def logit_rows(trainer: Trainer) -> int:
    """Rows of logits that are held at a time."""
    most, vocabulary = 0, trainer.module.adapter.args.vocab_size

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal most
            out = function(*args, **(kwargs or {}))
            if function._schema.name in ("aten::mm", "aten::addmm") and out.shape[-1] == vocabulary:
                most = max(most, len(out))
            return out

    with Watch():
        trainer.train_step()
    assert most
    return most


def workers(trainer: Trainer) -> int:
    return trainer.reader._loader().num_workers


def threads(trainer: Trainer) -> int:
    return torch.get_num_threads()


def compiled(trainer: Trainer) -> list[Any]:
    """Blocks that were compiled (not really: `look_at` only counts them)."""
    return trainer.compiled


def tracked(trainer: Trainer) -> list[Any]:
    return trainer.tracked


def kept(trainer: Trainer) -> list[str]:
    """The checkpoints that are left after a few were saved."""
    for trainer.step in range(1, 5):
        trainer.save()
    return checkpoint_names(trainer.run_dir)


def asked(recipe: Recipe) -> list[Any]:
    """Which tokenizer is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolving, "make_tokenizer", lambda *arguments: list(arguments))
        return build_tokenizer(recipe)


def first_stage(recipe: Recipe) -> dict[str, Any]:
    first = critic_recipe(recipe) if recipe.critic_stage else reference_recipe(recipe)
    return first.model_dump(mode="json", exclude={"critic_stage", "reference_stage"})


def surroundings(recipe: Recipe) -> dict[str, Any]:
    """What the process is set to; `test_environment_settings` has what each setting does."""
    signature = inspect.signature(environment.environment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "environment", lambda *a, **k: signature.bind(*a, **k))
        return environment.environment_of(recipe.runtime).arguments


def micro(recipe: Recipe) -> list[Any]:
    """Which problems are generated, for both splits, or where the rows are."""
    made: list[Any] = []

    def generate(size, seed, judge, split, right, wrong, families):
        spaces = {f.name: (f.marked, {k: list(v) for k, v in f.space.items()}) for f in families}
        made.append([size, seed, split, right, wrong, spaces])
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_data, "generate", generate)
        patch.setattr(training_data, "write_jsonl", lambda *_: None)
        for split in training_data.SPLITS:
            made.append(str(training_data.rows_file(recipe, split, Path("/nowhere"))))
    return made


def prepared(trainer: Trainer) -> list[Any]:
    """Where rows and tokens were kept, how many processes were to make them, and the collator."""
    return trainer.prepared


def sharding(recipe: Recipe) -> list[Any]:
    """How FSDP2 is asked to spread a model, and when gradients are exchanged."""
    calls: list[Any] = []

    class Module(nn.Linear):
        def set_requires_gradient_sync(self, on):
            calls.append(["sync", on])

        def set_is_last_backward(self, on):
            pass

        def set_reshard_after_backward(self, on, recurse):
            calls.append(["reshard", on, recurse])

    def fully_shard(module, mesh, **how):
        calls.append({name: repr(value) for name, value in how.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsdp, "fully_shard", fully_shard)
        patch.setattr(fsdp, "_as_fsdp", lambda module: module)
        whole = nn.Sequential(nn.Linear(2, 2))
        whole.__class__ = type("Root", (nn.Sequential, Module), {})
        cuda = torch.device("cuda")
        spread = fsdp.Sharded(whole, ["0"], recipe.runtime.fsdp, None, cuda)  # type: ignore[arg-type]  # no mesh
        for last in (False, True):
            with spread.micro_batch(last):
                pass
    return [*calls, shard_size(recipe.runtime, 8)]


def digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


# --- the table -----------------------------------------------------------------------------------


LORA = "unit/test_lora.py::"
FROZEN = {"training.adapt": "heads", "runtime.compute_dtype": "bfloat16"}


class Proof(NamedTuple):
    """`look` differs when the option has `value` instead of what `base` has; `also` holds for
    both."""

    look: Callable[..., Any]
    value: Any
    base: str = "baseline"
    also: Mapping[str, Any] = MappingProxyType({})


SHAPE = {"dim": 32, "n_layers": 4, "n_heads": 4, "n_future_tokens": 3, "multiple_of": 64}
SHAPE |= {"n_kv_heads": 1, "ffn_dim_multiplier": 2, "norm_eps": 0.5, "rope_theta": 10}
SHAPE |= {"max_seq_len": 99, "tie_embeddings": True}

TD = {"gamma": 0.5, "lam": 0.2, "final_lam": 0.0, "beta": 0.1, "min_weight": 0.9}
TD |= {"max_weight": 1.01, "whiten": "batch", "renormalise": True, "rows": "labels"}

TAUGHT = {"ce": 1.0, "hard": 2.0, "tv": 1.0, "temperature": 2.0, "top_n": 3, "beta": 0.1}

BINS = "{low: {difficulty_number: {below: 3}}, high: {difficulty_number: {at_least: 3}}}"
DIFFICULTY = {"data.sampling.strategy": "difficulty", "data.sampling.bins": BINS}
RATED = "{low: {cf_rating: {below: 1200}}, high: {cf_rating: {at_least: 1200}}}"
STAGES = "[{until: 0.5, weights: {low: 1}}, {until: 1.0, weights: {high: 1}}]"
CURRICULUM = {**DIFFICULTY, "data.sampling.strategy": "curriculum", "data.sampling.stages": STAGES}


def curriculum(until: float, *weights_: str) -> str:
    first, second = weights_
    return f"[{{until: {until}, weights: {first}}}, {{until: 1.0, weights: {second}}}]"


ALL = {"objective.value.trunk": "all"}
READS = {**ALL, "objective.value.lm_coef": 1.0}
POLICIES = "unit/test_step_policies.py::"
RATINGS = {**DIFFICULTY, "data.sampling.bins": RATED}
TRAINING = "integration/test_training.py::"
OUTSIDE = "integration/test_objective_from_outside.py::"

OPTIONS: dict[str, Proof | str] = {
    "pipeline": "integration/test_weighted_mistakes.py::test_a_mistake_is_one_line",
    # --- objective
    "objective.name": Proof(rows, "uniform"),
    "objective.options": OUTSIDE + "test_an_objective_from_a_file",
    "objective.rows": Proof(rows, "all"),
    "objective.heads": Proof(trained, 1, "stored"),
    "objective.head_weights": Proof(weights, "[1, 0.5]"),
    "objective.final_head_weights": Proof(
        weights, "[1, 0]", also={"objective.head_weights": "[1, 1]"}
    ),
    "objective.head_curriculum": Proof(weights, "forward"),
    "objective.head_fractions": Proof(
        weights, "[0.9]", also={"objective.head_curriculum": "forward"}
    ),
    "objective.head_positions": Proof(weights, 0.5),
    "objective.scope": Proof(weights, "step", "rho1"),
    "objective.value.head_type": Proof(trained, "mlp", "critic"),
    "objective.value.loss": Proof(weights, "pairwise", "critic"),
    "objective.value.coef": Proof(weights, 2, "verifiable"),
    "objective.value.gamma": Proof(weights, 0.5, "critic"),
    "objective.value.lam": Proof(weights, 0.5, "critic"),
    "objective.value.clip": Proof(weights, 0.1, "critic"),
    "objective.value.huber": Proof(weights, 0.1, "critic"),
    "objective.value.learning_rate": Proof(optimizer, 0.123, "critic"),
    "objective.value.trunk": Proof(trained, "frozen", "critic"),
    "objective.value.top_blocks": Proof(trained, 1, "critic", {"objective.value.trunk": "top"}),
    "objective.value.lm_coef": Proof(weights, 0.5, "critic"),
    "objective.value.lm_rows": Proof(weights, "all", "critic", {"objective.value.lm_coef": 1.0}),
    "objective.value.gradient_to_trunk": Proof(
        weights, False, "critic", {"objective.value.lm_coef": 1.0}
    ),
    "objective.value.max_pairs_per_problem": Proof(
        rows, 1, "critic", {"objective.value.loss": "pairwise"}
    ),
    **{f"objective.td.{name}": Proof(weights, value, "verifiable") for name, value in TD.items()},
    "objective.td.lam_hold": Proof(weights, 0.5, "verifiable", {"objective.td.final_lam": 0.0}),
    "objective.td.lam_shape": Proof(
        weights, "cosine", "verifiable", {"objective.td.final_lam": 0.0}
    ),
    "objective.td.ema_decay": Proof(weights, 0.5, "verifiable", {"objective.td.whiten": "ema"}),
    "objective.td.wrong_weight": Proof(weights, 0.5, "verifiable", {"objective.td.rows": "labels"}),
    "objective.rho1.k_percent": Proof(weights, 0.3, "rho1"),
    "objective.rho1.mode": Proof(weights, "absolute", "rho1"),
    "objective.rho1.first_head_always": Proof(weights, True, "rho1"),
    "objective.rho1.reference_heads": Proof(weights, "next", "rho1"),
    "objective.rho1.reference": "integration/test_reference_losses.py::"
    "test_stored_and_on_line_are_one",
    "objective.rho1.reference_model": Proof(weights, "MODEL", "rho1"),
    **{
        f"objective.distil.{name}": Proof(weights, value, "heads") for name, value in TAUGHT.items()
    },
    "objective.distil.vocabulary": Proof(weights, 5, "heads"),
    "objective.distil.kl": Proof(weights, 0.0, "heads", {"objective.distil.tv": 1.0}),
    # --- model and tokenizer
    "model.path": Proof(model, "REFERENCE", "stored"),
    **{f"model.architecture.{name}": Proof(model, value) for name, value in SHAPE.items()},
    "model.init_std": Proof(model, 0.5),
    "model.max_seq_len": Proof(model, 99, "stored"),
    "model.rope_theta": Proof(model, 10, "stored"),
    "model.head_start": "integration/test_stored_states.py::test_added_heads_are_fitted_first",
    "model.add_heads": "unit/test_distillation.py::"
    "test_added_heads_learn_to_draft_and_the_model_stays",
    "tokenizer.kind": Proof(batches, "micro"),
    "tokenizer.path": Proof(asked, "here", also={"tokenizer.kind": "huggingface"}),
    # --- data
    "data.source": Proof(micro, "micro"),
    "data.train": Proof(batches, "OTHER"),
    "data.states": "integration/test_stored_states.py::"
    "test_a_training_is_the_same_and_never_runs_the_trunk",
    "data.validation": Proof(held_out, "OTHER"),
    "data.micro.families": Proof(micro, "[linear]", "micro"),
    "data.micro.max_constant": Proof(micro, 9, "micro"),
    "data.micro.marked_names": Proof(micro, False, "micro"),
    "data.micro.max_difficulty": Proof(micro, 1, "micro"),
    "data.micro.n_problems": Proof(micro, 5, "micro"),
    "data.micro.n_validation": Proof(micro, 5, "micro"),
    "data.micro.correct_per_problem": Proof(micro, 2, "micro"),
    "data.micro.incorrect_per_problem": Proof(micro, 2, "micro"),
    "data.micro.seed": Proof(micro, 5, "micro"),
    "data.text.path": Proof(documents, "PROSE", "text"),
    "data.text.validation_path": Proof(documents, "PROSE", "text"),
    "data.text.key": Proof(documents, "code", "text", {"data.text.path": "LINES"}),
    "data.text.suffixes": Proof(documents, "[.md]", "text"),
    "data.text.separator": Proof(documents, "===", "text"),
    "data.text.validation_fraction": Proof(documents, 0.0, "text"),
    "data.cache_dir": Proof(prepared, "CACHE"),
    "data.processes": Proof(prepared, 3),
    "data.workers": Proof(workers, 2),
    "data.template": Proof(batches, "alpaca", also={"data.max_length": 300}),
    "data.max_length": Proof(batches, 30),
    "data.joint": Proof(prepared, True),
    "data.packing": Proof(batches, True),
    "data.pad_to_multiple": Proof(batches, 13, also={"data.max_length": 90}),
    "data.sampling.strategy": Proof(rows, "balanced", also={"objective.rows": "all"}),
    "data.sampling.n_samples": Proof(rows, 7),
    "data.sampling.correct_fraction": Proof(
        rows, 0.8, also={"objective.rows": "all", "data.sampling.strategy": "balanced"}
    ),
    "data.sampling.length_balanced_pairs": Proof(
        rows, True, "critic", {"objective.value.loss": "pairwise"}
    ),
    "data.sampling.weights": Proof(rows, "{low: 1, high: 3}", also=DIFFICULTY),
    "data.sampling.bins.*.labels": Proof(
        rows,
        "{low: {labels: [1]}, high: {labels: [2]}}",
        also={"data.sampling.strategy": "difficulty"},
    ),
    "data.sampling.bins.*.difficulty_number.at_least": Proof(
        rows, BINS.replace("at_least: 3", "at_least: 4"), also=DIFFICULTY
    ),
    "data.sampling.bins.*.difficulty_number.below": Proof(
        rows, BINS.replace("below: 3", "below: 2"), also=DIFFICULTY
    ),
    "data.sampling.bins.*.cf_rating.at_least": Proof(
        rows,
        RATED.replace("at_least: 1200", "at_least: 1400"),
        also=RATINGS,
    ),
    "data.sampling.bins.*.cf_rating.below": Proof(
        rows, RATED.replace("below: 1200", "below: 1000"), also=RATINGS
    ),
    "data.sampling.stages.*.until": Proof(
        rows, curriculum(0.25, "{low: 1}", "{high: 1}"), also=CURRICULUM
    ),
    "data.sampling.stages.*.weights": Proof(
        rows, curriculum(0.5, "{low: 1, high: 1}", "{high: 1}"), also=CURRICULUM
    ),
    # --- training
    "training.steps": Proof(rates, 6),
    "training.batch_size": Proof(batches, 8),
    "training.micro_batch_size": Proof(batches, 4),
    "training.learning_rate": Proof(rates, 0.123),
    "training.final_learning_rate": Proof(rates, 0.001),
    "training.schedule": Proof(rates, "linear"),
    "training.warmup_fraction": Proof(rates, 0.5),
    "training.decay_fraction": Proof(rates, 0.5, also={"training.schedule": "wsd"}),
    "training.adapt": Proof(trained, "heads"),
    "training.lora.rank": LORA + "test_size_and_scale",
    "training.lora.alpha": LORA + "test_size_and_scale",
    "training.lora.rslora": LORA + "test_size_and_scale",
    "training.lora.dropout": LORA + "test_size_and_scale",
    "training.lora.targets": LORA + "test_what_is_trained",
    "training.lora.heads": LORA + "test_what_is_trained",
    "training.lora.norms": LORA + "test_what_is_trained",
    "training.lora.embeddings": LORA + "test_what_is_trained",
    "training.frozen_dtype": Proof(formats, "bfloat16", also=FROZEN),
    "training.optimizer": Proof(weights, "muon"),
    "training.betas": Proof(optimizer, "[0.5, 0.6]"),
    "training.weight_decay": Proof(optimizer, 0.3),
    "training.clip_norm": Proof(weights, 0.01),
    "training.loss_chunk_rows": Proof(logit_rows, 5),
    "training.activation_checkpointing": POLICIES + "test_activation_checkpointing_changes_nothing",
    "training.validate_every": TRAINING + "test_metrics_hold_every_step_and_validation",
    "training.save_every": TRAINING + "test_keep_last_checkpoints_are_kept_whole",
    "training.keep_last": Proof(kept, 3),
    "training.keep_best": POLICIES + "test_the_best_are_kept_beside_the_last",
    "training.monitor": POLICIES + "test_another_figure_may_decide",
    "training.monitor_mode": POLICIES + "test_the_best_are_kept_beside_the_last",
    "training.early_stopping.patience": POLICIES + "test_it_stops_when_nothing_improves",
    "training.early_stopping.min_delta": POLICIES + "test_it_stops_when_nothing_improves",
    "training.max_skipped_steps": POLICIES + "test_one_too_many_ends_the_run",
    "training.log_every": TRAINING + "test_log_every_thins_the_metrics_and_keeps_the_last_step",
    "training.trackers": Proof(tracked, "[tensorboard]"),
    "training.remote": "integration/test_remote_run.py::test_a_lost_run_goes_on_elsewhere",
    # --- runtime
    "runtime.device": Proof(surroundings, "cuda:3"),
    "runtime.parallel": Proof(sharding, "hsdp", also={"runtime.fsdp.shard_size": 2}),
    "runtime.fsdp.param_dtype": Proof(
        sharding, "bfloat16", also={"runtime.compute_dtype": "bfloat16"}
    ),
    "runtime.fsdp.reduce_dtype": Proof(sharding, "bfloat16"),
    "runtime.fsdp.reshard_after_forward": Proof(sharding, False),
    "runtime.fsdp.reduce_gradients": Proof(sharding, "micro_batch"),
    "runtime.fsdp.cpu_offload": Proof(sharding, True),
    "runtime.fsdp.shard_size": Proof(sharding, 4, also={"runtime.parallel": "hsdp"}),
    "runtime.timeout_minutes": Proof(surroundings, 3),
    "runtime.compute_dtype": Proof(weights, "bfloat16"),
    "runtime.seed": Proof(weights, 5),
    "runtime.threads": Proof(threads, 2),
    "runtime.compile": Proof(compiled, True),
    "runtime.tf32": Proof(surroundings, False),
    "runtime.deterministic": Proof(surroundings, True),
    # --- the first of two stages
    "critic_stage.steps": Proof(first_stage, 3, "two stages"),
    "critic_stage.lam": Proof(first_stage, 0.3, "two stages"),
    "critic_stage.learning_rate": Proof(first_stage, 0.3, "two stages"),
    "critic_stage.final_learning_rate": Proof(first_stage, 0.3, "two stages"),
    "reference_stage.steps": Proof(first_stage, 3, "reference first"),
    "reference_stage.learning_rate": Proof(first_stage, 0.3, "reference first"),
    "reference_stage.final_learning_rate": Proof(first_stage, 0.3, "reference first"),
}

# --- the recipes they are looked at in -----------------------------------------------------------

TEXT = {
    "data.source": "text",
    "data.train": None,
    "data.validation": None,
    "data.packing": True,
    "data.text.path": "TEXT",
    "data.text.validation_fraction": 0.3,
}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("baseline", {}),
    "stored": ("baseline", {"model.path": "MODEL"}),
    "critic": ("critic", ALL),
    "heads": ("heads", {"model.architecture.n_future_tokens": 3}),
    "verifiable": ("verifiable", {"model.path": "MODEL"}),
    "two stages": ("verifiable", {"critic_stage.steps": 2}),
    "reference first": ("rho1", {"reference_stage.steps": 2}),
    "rho1": ("rho1", {"model.path": "MODEL", "objective.rho1.reference_model": "REFERENCE"}),
    "micro": ("baseline", {"data.source": "micro"}),
    "text": ("baseline", TEXT),
}
FILES = ("MODEL", "REFERENCE", "OTHER", "TEXT", "PROSE", "LINES", "CACHE")
STEP = {"training__steps": STEPS, "training__batch_size": 4, "training__micro_batch_size": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Rows, models and texts for all of them."""
    folder = tmp_path_factory.mktemp("options")
    for name, sign in (("ROWS", "+"), ("OTHER", "-")):
        found = [
            {
                "instruction": f"add {i}",
                "input": "" if i % 4 else "as int",
                "output": f"\treturn {i} {sign} {i % 5}" + " # sum" * (i * 7 % 5),
                "task_id": f"sum/{i // 6}",
                "is_correct": i % 3 != 2,
                "metadata": {"difficulty": i // 6 + 1, "cf_rating": 900 + 100 * (i % 7)},
            }
            for i in range(24)
        ]
        write_jsonl(folder / name, found)
    for seed, name in enumerate(("MODEL", "REFERENCE")):
        torch.manual_seed(seed)
        recipe = recipe_of(folder, "critic", {"objective.value.trunk": "all"})
        adapter = start_model(recipe, Processes())[0].on(torch.device("cpu"))
        for parameter in adapter.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
        save_model(adapter, ByteTokenizer(), folder / name)
    for name, start in (("TEXT", 0), ("PROSE", 100)):
        (folder / name).mkdir()
        for i in range(start, start + 16):
            text = f"x = {i}\n===\nprint(x, {i})\n" * 4
            (folder / name / f"{i}.{'md' if i % 2 else 'txt'}").write_text(text)
    lines = [json.dumps({"text": f"x = {i}" * 9, "code": f"y = {i}" * 9}) for i in range(12)]
    (folder / "LINES").mkdir()
    (folder / "LINES" / "lines.jsonl").write_text("\n".join(lines))
    return folder


def recipe_of(place: Path, base: str, changes: dict[str, Any]) -> Recipe:
    """A tiny recipe; names in capitals are files of `place`."""
    name, own = BASES[base]
    merged = {**own, **changes}
    for key, value in merged.items():
        if str(value) in FILES:
            merged[key] = place / value
    small = SMALL | STEP | {"data__cache_dir": place / "cache", "data__processes": 1}
    return load_recipe(name, None, settings(place / "ROWS", **(small | merged)))


def look_at(recipe: Recipe, look: Callable[..., Any], run_dir: Path) -> Any:
    """What it sees, as plain data: in the recipe, or in the trainer that is made of it."""
    if next(iter(inspect.signature(look).parameters)) == "recipe":
        return look(recipe)
    seen: list[Any] = []
    made: list[Any] = []
    blocks: list[Any] = []
    names: list[Any] = []
    before = torch.get_num_threads()

    def spy(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            encoders = [x.fingerprint for x in arguments if hasattr(x, "encode_prompt")]
            made.append([function.__name__, *map(str, arguments[-2:]), *encoders])
            return function(*arguments)

        return call

    def fit(trainer: Trainer) -> None:
        trainer.prepared, trainer.compiled, trainer.tracked = made, blocks, names
        seen.append(look(trainer))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", fit)
        patch.setattr(compose, "record_recipe", lambda _: None)
        patch.setattr(trainer_module, "make_trackers", lambda asked, *_: names.extend(asked) or [])
        patch.setattr(nn.Module, "compile", lambda block, **how: blocks.append(str(how)))
        if look is prepared:
            patch.setattr(training_data, "open_rows", spy(training_data.open_rows))
            patch.setattr(training_data, "tokenise", spy(training_data.tokenise))
        try:
            compose.run(RunRequest(recipe, run_dir))
        finally:
            torch.set_num_threads(before)
    return seen[0]


BASE_LOOKS: dict[str, Any] = {}
"""Kept: many options are compared with the same base."""


@pytest.mark.parametrize("option", [o for o, proof in OPTIONS.items() if isinstance(proof, Proof)])
def test_an_option_has_an_effect(option, place, tmp_path):
    proof = OPTIONS[option]
    also = {**proof.also} | ({"training.steps": 12} if proof.look is rows else {})
    key = f"{proof.base} {also} {proof.look.__name__}"
    if key not in BASE_LOOKS:
        BASE_LOOKS[key] = look_at(recipe_of(place, proof.base, also), proof.look, tmp_path / "base")
    setting = option.partition(".*")[0]
    changed = recipe_of(place, proof.base, {**also, setting: proof.value})
    assert look_at(changed, proof.look, tmp_path / "changed") != BASE_LOOKS[key]


@pytest.mark.parametrize("count", [1, 5])
def test_no_more_rows_of_logits_are_held_than_asked(count, place, tmp_path):
    recipe = recipe_of(place, "baseline", {"training.loss_chunk_rows": count})
    assert look_at(recipe, logit_rows, tmp_path) == count


def leaves(
    section: type[Section] = Recipe, prefix: str = ""
) -> Iterator[tuple[str, type[Section], str]]:
    """Every option below a section, its own section, and its name there; `*` stands for a name or
    a number of one's own."""
    for name, field in section.model_fields.items():
        nested = list(sections_in(field.annotation))
        if not nested:
            yield prefix + name, section, name
        for below, several in nested:
            yield from leaves(below, f"{prefix}{name}." + "*." * several)


def sections_in(annotation: Any, several: bool = False) -> Iterator[tuple[type[Section], bool]]:
    """The sections in `Section | None`, `dict[str, Section]`, …, and whether they are several."""
    is_class = not get_args(annotation) and inspect.isclass(annotation)  # not list[str]
    if is_class and issubclass(annotation, Section):
        yield annotation, several
    several |= getattr(annotation, "__origin__", None) in (dict, tuple, list)
    for part in get_args(annotation):
        yield from sections_in(part, several)


def test_every_option_has_a_proof():
    known = {option for option, *_ in leaves()}
    missing = sorted(known - OPTIONS.keys())
    assert not missing, f"add a proof to OPTIONS that {', '.join(missing)} has an effect"
    assert not sorted(OPTIONS.keys() - known), "these options are gone; take their proofs away"
    assert len(known) > 120


@pytest.mark.parametrize(
    "named", sorted({proof for proof in OPTIONS.values() if isinstance(proof, str)})
)
def test_a_proof_elsewhere_is_there_and_quick(named):
    file, _, name = named.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    found = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == name]
    assert len(found) == 1
    assert not any("mark.slow" in ast.unparse(mark) for mark in found[0].decorator_list)
