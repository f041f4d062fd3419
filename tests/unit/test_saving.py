"""What savers write, what they keep, and that a run goes on from it bit for bit; in one process."""

import json
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    SMALL,
    checkpoint_names,
    optimizer_tensors,
    run_steps,
    same,
    state,
    tree,
    weights,
)
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from weighted_mtp.core.config.sections import TrainingConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import find_model, is_sharded, newest_checkpoint
from weighted_mtp.data.tokens.tokenizers import load_tokenizer
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.models.meta_mtp.layouts.native import METADATA
from weighted_mtp.pipelines.checkpoint_utils import (
    MARKER,
    checkpoint_path,
    checkpoint_step,
    complete_checkpoints,
    drop_old,
    is_trained,
    partial_path,
    start_checkpoint,
)
from weighted_mtp.pipelines.checkpointing.remote_copies import Copies
from weighted_mtp.pipelines.checkpointing.restoring import restore_any
from weighted_mtp.pipelines.checkpointing.sharded import (
    ShardedSaver,
    WholeSaver,
    optimizer_names,
    publish,
    sharded_model,
)
from weighted_mtp.pipelines.training.optimization import make_optimizer
from weighted_mtp.pipelines.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer

KINDS = [WholeSaver, ShardedSaver]
WEIGHTED = {**SMALL, "objective__value__head_type": "mlp", "objective__td__whiten": "ema"}
TIED = {**SMALL, "model__architecture__tie_embeddings": True}


def saver_of(kind: type[WholeSaver], trainer: Trainer, folder: Path, keep_last: int = 2):
    parts = (trainer.module.adapter, trainer.weights, trainer.optimizer, trainer.tokenizer)
    return kind(folder, *parts, Copies(folder, keep_last, None))


def fake(run_dir: Path, *steps: int) -> None:
    """Complete checkpoints with nothing in them."""
    for step in steps:
        checkpoint_path(run_dir, step).mkdir(parents=True)
        (checkpoint_path(run_dir, step) / MARKER).touch()


def moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{key}": value.clone()
        for index, kept in trainer.optimizer.state_dict()["state"].items()
        for key, value in kept.items()
    }


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [("verifiable", WEIGHTED), ("baseline", TIED)],
    ids=["value head", "tied"],
)
def test_what_was_saved_comes_back(kind, recipe, changes, make_trainer, tmp_path):
    """That of the moment: training goes on while a part is written."""
    trainer = make_trainer(recipe, **changes)
    run_steps(trainer, 2)
    wanted = state(trainer), moments(trainer), torch.get_rng_state()
    saver = saver_of(kind, trainer, tmp_path)
    checkpoint = saver.save(2, (), {"best": {"a": 1}})
    torch.rand(3)
    run_steps(trainer, 1)
    saver.settle()
    publish(checkpoint, trainer.weights, trainer.tokenizer)
    assert is_sharded(checkpoint) == (kind is ShardedSaver)
    if kind is ShardedSaver:  # the weights as they are now: `publish` is called after the last step
        adapter = sharded_model(checkpoint).on(torch.device("cpu"))
        stored = {f"adapter.{name}": p.detach() for name, p in adapter.named_parameters()}
        assert same(stored, wanted[0])
        kept = load_tokenizer(checkpoint / "skeleton")
        assert kept.fingerprint == trainer.tokenizer.fingerprint
        tied = adapter.transformer.output.weight is adapter.transformer.tok_embeddings.weight
        assert tied == (recipe == "baseline")
    other = make_trainer(recipe, **changes)
    run_steps(other, 1)
    restored = restore_any(checkpoint, other.optimizer, other.weights)
    assert restored == {"step": 2, "world_size": 1, "best": {"a": 1}}
    assert same(moments(other), wanted[1])
    assert torch.equal(torch.get_rng_state(), wanted[2])


@pytest.mark.parametrize(("recipe", "changes"), [("verifiable", WEIGHTED), ("baseline", TIED)])
def test_a_published_model_is_that_of_a_whole_checkpoint(recipe, changes, make_trainer, tmp_path):
    trainer = make_trainer(recipe, **changes)
    run_steps(trainer, 1)
    folders = []
    for kind in KINDS:
        (tmp_path / kind.__name__).mkdir()
        saver = saver_of(kind, trainer, tmp_path / kind.__name__)
        checkpoint = saver.save(1, (), {})
        saver.settle()
        publish(checkpoint, trainer.weights, trainer.tokenizer)
        folders.append(checkpoint / "model")
    one, other = map(tree, folders)
    assert one.keys() == other.keys()
    for name in one:
        if name.endswith(".safetensors"):  # whose header has no fixed order
            assert same(load_file(folders[0] / name), load_file(folders[1] / name)), name
        elif not name.endswith(METADATA):  # that has digests of the others
            assert one[name] == other[name], name
    for folder in folders:
        inspect_checkpoint(folder, verify=True)
    assert find_model(checkpoint) == checkpoint / "model"
    run_steps(trainer, 1)
    before = tree(checkpoint)
    publish(checkpoint, trainer.weights, trainer.tokenizer)  # it has one
    assert tree(checkpoint) == before


def test_a_model_in_parts_is_refused_where_one_is_needed(make_trainer, tmp_path):
    saver = saver_of(ShardedSaver, make_trainer(**SMALL), tmp_path)
    checkpoint = saver.save(1, (), {})
    saver.settle()
    with pytest.raises(UserError, match="in parts"):
        find_model(tmp_path)
    assert newest_checkpoint(tmp_path) == checkpoint
    assert not is_trained(tmp_path, 1)


def test_settings_are_the_recipes_and_not_those_saved(make_trainer, tmp_path):
    trainer = make_trainer(**SMALL)
    run_steps(trainer, 1)
    for kind in KINDS:
        (tmp_path / kind.__name__).mkdir()
        saver = saver_of(kind, trainer, tmp_path / kind.__name__)
        checkpoint = saver.save(1, (), {})
        saver.settle()
        change = {"training__betas": "[0.5, 0.6]", "training__weight_decay": 0.7}
        other = make_trainer(**SMALL, **change)
        restore_any(checkpoint, other.optimizer, other.weights)
        groups = other.optimizer.param_groups
        assert [(g["betas"], g["weight_decay"]) for g in groups] == [
            ((0.5, 0.6), 0.7),
            ((0.5, 0.6), 0.0),
        ]


def test_the_state_of_another_model_is_refused(make_trainer, tmp_path):
    trainer = make_trainer(**SMALL)
    run_steps(trainer, 1)
    checkpoint = saver_of(WholeSaver, trainer, tmp_path).save(1, (), {})
    other = make_trainer("critic", **SMALL)  # with a group more
    with pytest.raises(UserError, match=str(checkpoint)):
        restore_any(checkpoint, other.optimizer, other.weights)


def test_parts_hold_the_state_of_adamw_alone(make_trainer, tmp_path):
    saver = saver_of(ShardedSaver, make_trainer(**SMALL), tmp_path)
    checkpoint = saver.save(1, (), {})
    saver.settle()
    other = make_trainer(**SMALL, training__optimizer="muon")
    with pytest.raises(UserError, match=r"made with training\.optimizer adamw"):
        restore_any(checkpoint, other.optimizer, other.weights)


@pytest.fixture
def mesh():
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_whole_state_is_taken_up_in_parts(kind, mesh, make_trainer, tmp_path):
    trainer = make_trainer(**SMALL, training__optimizer=kind)
    run_steps(trainer, 1)
    checkpoint = saver_of(WholeSaver, trainer, tmp_path).save(1, (), {})
    module, parts = nn.Module(), {}
    for name, weight in trainer.weights.items():
        parts[name] = nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)]))
        module.register_parameter(name.replace(".", "_"), parts[name])
    named = iter(parts.items())
    module.named_parameters = lambda: named  # make_optimizer goes by names
    optimizer = make_optimizer(module, TrainingConfig())
    if kind == "muon":
        with pytest.raises(UserError, match=r"made with training\.optimizer muon"):
            restore_any(checkpoint, optimizer, parts)
        return
    restore_any(checkpoint, optimizer, parts)
    names = optimizer_names(trainer.optimizer, trainer.weights)
    assert optimizer_names(optimizer, parts) == names
    kept, found = trainer.optimizer.state_dict()["state"], optimizer.state_dict()["state"]
    assert kept.keys() == found.keys()
    for index in kept:
        assert torch.equal(found[index]["step"], kept[index]["step"])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert isinstance(found[index][moment], DTensor)
            assert torch.equal(found[index][moment].full_tensor(), kept[index][moment])


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_the_best_and_what_waits_for_its_copy_are_kept(kind, make_trainer, tmp_path):
    saver = saver_of(kind, make_trainer(**SMALL), tmp_path, keep_last=2)
    offered = []
    saver.copies.offer = lambda final, keep: offered.append((checkpoint_step(final), set(keep)))
    type(saver.copies).pinned, before = {2}, type(saver.copies).pinned
    try:
        for step in range(1, 7):
            saver.save(step, {1, 3} if step > 2 else (), {})
            saver.settle()
    finally:
        type(saver.copies).pinned = before
    assert checkpoint_names(tmp_path) == [f"step-{step:08d}" for step in (1, 2, 3, 5, 6)]
    assert [step for step, _ in offered] == list(range(1, 7))
    assert [keep for _, keep in offered] == [set(), set(), *[{1, 3}] * 4]


def test_a_checkpoint_in_parts_is_complete_once_it_is_written(make_trainer, tmp_path):
    saver = saver_of(ShardedSaver, make_trainer(**SMALL), tmp_path)
    written: Future[None] = Future()

    def begin(tensors, folder) -> Future[None]:
        save(tensors, storage_writer=FileSystemWriter(folder))
        return written

    saver._writer.begin = begin
    final = saver.save(1, (), {})
    assert checkpoint_names(tmp_path) == [partial_path(final).name]
    saver.look()
    assert complete_checkpoints(tmp_path) == []
    written.set_result(None)
    saver._begun[0].result()  # their sums are stored too
    saver.look()
    assert complete_checkpoints(tmp_path) == [final]
    saver.settle()
    assert checkpoint_names(tmp_path) == [final.name]


def test_the_one_before_is_completed_before_the_next_begins(make_trainer, tmp_path):
    saver = saver_of(ShardedSaver, make_trainer(**SMALL), tmp_path)
    first = saver.save(1, (), {})
    second = saver.save(2, (), {})
    assert complete_checkpoints(tmp_path) == [first]
    saver.settle()
    assert complete_checkpoints(tmp_path) == [first, second]


def test_dropping_the_old_ones(tmp_path):
    fake(tmp_path, 2, 4, 6, 8, 10)
    (tmp_path / "checkpoints" / "step-00000099.partial").mkdir()
    drop_old(tmp_path, 2, {4, 7})
    kept = ["step-00000004", "step-00000008", "step-00000010", "step-00000099.partial"]
    assert checkpoint_names(tmp_path) == kept
    assert [checkpoint_step(p) for p in complete_checkpoints(tmp_path)] == [4, 8, 10]


def test_what_another_start_left_half_written_goes(tmp_path):
    for name in ("step-00000001.partial", "step-00000002.partial", "step-00000003"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "old").touch()
    partial = tmp_path / "checkpoints" / "step-00000002.partial"
    start_checkpoint(partial, 2, {"more": [1]})
    assert checkpoint_names(tmp_path) == ["step-00000002.partial", "step-00000003"]
    assert [path.name for path in partial.iterdir()] == ["trainer.json"]
    stored = json.loads((partial / "trainer.json").read_text())
    assert stored == {"step": 2, "world_size": 1, "sums": "sums.json", "more": [1]}


def test_the_first_checkpoint_of_a_run_makes_its_folder(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        newest_checkpoint(tmp_path / "run")
    partial = partial_path(checkpoint_path(tmp_path / "run", 1))
    (tmp_path / "run").mkdir()
    start_checkpoint(partial, 1, {})
    assert json.loads((partial / "trainer.json").read_text())["step"] == 1


def test_a_run_is_trained_when_its_last_checkpoint_has_a_model(tmp_path):
    fake(tmp_path, 4, 8)
    assert not is_trained(tmp_path, 8)
    (checkpoint_path(tmp_path, 8) / "model").mkdir()
    (checkpoint_path(tmp_path, 4) / "model").mkdir()
    assert is_trained(tmp_path, 8)
    assert not is_trained(tmp_path, 4)
    assert not is_trained(tmp_path, 9)


def test_saving_a_step_again_replaces_it(make_trainer, tmp_path):
    trainer = make_trainer(**SMALL)
    saver = saver_of(WholeSaver, trainer, tmp_path)
    saver.save(1, (), {"round": 1})
    before = weights(tmp_path)
    run_steps(trainer, 1)
    final = saver.save(1, (), {"round": 2})
    assert json.loads((final / "trainer.json").read_text())["round"] == 2
    assert not same(weights(tmp_path), before)
    assert optimizer_tensors(tmp_path)
    assert checkpoint_names(tmp_path) == [final.name]
