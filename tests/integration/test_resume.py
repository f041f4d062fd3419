"""A run that was stopped and resumed is bit for bit the run that was never stopped."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    CRITIC,
    checkpoint_names,
    interrupt,
    last_checkpoint,
    optimizer_tensors,
    records,
    reference_request,
    resume,
    same,
    train,
    train_arguments,
    tree,
    weights,
)

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import load_recipe_file
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.models.meta_mtp.checkpoints import save_native
from weighted_mtp.pipelines import checkpoint_utils
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.run_baseline import run_baseline
from weighted_mtp.pipelines.training.reference import prepare_reference_losses
from weighted_mtp.pipelines.training.trainer import Trainer

rows_file = helpers_training.rows_file
critic_model = helpers_training.critic_model
reference_file = helpers_training.reference_file

RECIPES = ("baseline", "ntp")
TEXT = {
    "data__source": "text",
    "data__packing": True,
    "data__text__key": "output",
    "data__train": None,
    "data__validation": None,
    "data__text__validation_fraction": 0.3,
    "data__max_length": 24,
}
CURRICULUM = (
    "{strategy: curriculum, bins: {a: {labels: [easy]}}, stages: [{until: 0.5, weights: {a: 1}}, "
    "{until: 1, weights: {other: 1, a: 1}}]}"
)
EMA = {"objective__td__whiten": "ema"}
MICRO = {
    "data__source": "micro",
    "data__train": None,
    "data__validation": None,
    "data__max_length": 160,
    "data__micro__n_problems": 6,
    "data__micro__n_validation": 2,
    "data__micro__incorrect_per_problem": 1,
}
PIPELINES = {
    "critic": ("critic", CRITIC),
    "pairwise": ("critic", {"objective__value__loss": "pairwise"}),
    "verifiable": ("verifiable", EMA),
    "two stages": ("verifiable", {**EMA, **CRITIC, "critic_stage__steps": 5}),
    "surprise": ("baseline", {"objective__name": "surprise", "data__packing": True}),
    "oracle": ("baseline", {"objective__name": "oracle", **MICRO}),
    "rho1": ("rho1", {"objective__scope": "step"}),
    "reference first": ("rho1", {"reference_stage__steps": 5}),
    "packed": ("baseline", {"data__packing": True, "data__workers": 1}),
    "text": ("pretrain", TEXT),
    "curriculum": ("baseline", {"data__sampling": CURRICULUM, "data__packing": True}),
}
FIRST = {"two stages": "critic", "reference first": "reference"}
"""Directory of the first stage."""


@pytest.fixture(scope="module")
def arguments_of(rows_file, critic_model, reference_file):
    """The arguments of `train` for one of `RECIPES` or `PIPELINES`."""

    def arguments(run_dir: Path, name: str) -> list[str]:
        recipe, changes = PIPELINES.get(name, (name, {}))
        if name == "verifiable":
            changes = {**changes, "model__path": critic_model}
        if name == "text":
            changes = {**changes, "data__text__path": rows_file}
        if name == "rho1":
            changes = {**changes, "objective__rho1__reference": reference_file}
        return train_arguments(run_dir, rows_file, recipe, **changes)

    return arguments


class Whole(dict):
    """For each recipe a run of 8 steps that nothing disturbed; it saved after 3, 6 and 8."""

    def __init__(self, folder: Path, arguments_of) -> None:
        super().__init__()
        self.folder, self.arguments_of = folder, arguments_of

    def __missing__(self, name: str) -> Path:
        self[name] = self.folder / name
        assert main(["train", *self.arguments_of(self[name], name)]) == 0
        return self[name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, arguments_of) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), arguments_of)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the library catches it, what is on disk stays."""


@pytest.fixture
def half_way(tmp_path, rows_file, monkeypatch) -> Path:
    """A baseline run that died in step 7; its checkpoints are those of steps 3 and 6."""
    run_dir = tmp_path / "half"
    with monkeypatch.context() as patch:
        die_in_step(patch, 7)
        with pytest.raises(Killed):
            train(run_dir, rows_file)
    assert checkpoint_names(run_dir) == ["step-00000003", "step-00000006"]
    return run_dir


def die_in_step(monkeypatch, step: int, where=lambda trainer: True) -> None:
    original = Trainer.train_step

    def train_step(self):
        if self.step + 1 == step and where(self):
            raise Killed
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def assert_same_run(resumed: Path, undisturbed: Path) -> None:
    assert same(weights(resumed), weights(undisturbed))
    assert same(optimizer_tensors(resumed), optimizer_tensors(undisturbed))
    generators = [
        torch.load(last_checkpoint(run) / "rng-0.pt", weights_only=True)
        for run in (resumed, undisturbed)
    ]
    assert same(*generators)
    assert records(resumed) == records(undisturbed)
    kept = [(last_checkpoint(run) / "trainer.json").read_text() for run in (resumed, undisturbed)]
    assert kept[0] == kept[1]
    assert [p for p in checkpoint_names(resumed) if p.endswith(".partial")] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_ctrl_c_saves_and_resume_goes_on(recipe, tmp_path, rows_file, whole):
    run_dir = tmp_path / "run"
    output = interrupt(run_dir, train_arguments(run_dir, rows_file, recipe), signal.SIGINT, 3)
    assert "Traceback" not in output
    assert f"weighted-mtp train --resume --output-dir {run_dir}" in output
    stopped_after = records(run_dir)[-1]["step"]
    assert 3 <= stopped_after < 8
    assert last_checkpoint(run_dir).name == f"step-{stopped_after:08d}"
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole[recipe])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("after_step", [1, 5])
def test_kill_nine_costs_nothing(recipe, after_step, tmp_path, rows_file, whole):
    run_dir = tmp_path / "run"
    interrupt(run_dir, train_arguments(run_dir, rows_file, recipe), signal.SIGKILL, after_step)
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole[recipe])


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(4))
@pytest.mark.parametrize("name", [*RECIPES, *PIPELINES])
def test_kill_nine_at_a_random_moment(name, trial, tmp_path, arguments_of, whole):
    """In two stages the odd trials kill the first one."""
    run_dir = tmp_path / "run"
    first = name in FIRST and trial % 2 == 1
    step = random.randint(1, 4 if first else 6)
    watched = run_dir / FIRST[name] if first else run_dir
    interrupt(run_dir, arguments_of(run_dir, name), signal.SIGKILL, step, watched)
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole[name])
    if name in FIRST:
        assert_same_run(run_dir / FIRST[name], whole[name] / FIRST[name])


@pytest.mark.parametrize(
    "name",
    # The oracle's rows come from a sandbox, which takes seconds.
    [pytest.param(x, marks=pytest.mark.slow) if x == "oracle" else x for x in PIPELINES],
)
def test_every_pipeline_goes_on_where_it_died(name, tmp_path, arguments_of, whole, monkeypatch):
    """Step 5 comes after a checkpoint that is not the last; of two stages the first one dies."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        die_in_step(patch, 5)
        with pytest.raises(Killed):
            main(["train", *arguments_of(run_dir, name)])
    assert (run_dir / "metrics.jsonl").exists() == (name not in FIRST)
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole[name])
    if name in FIRST:
        assert_same_run(run_dir / FIRST[name], whole[name] / FIRST[name])


@pytest.mark.parametrize("step", [1, 7])
def test_death_in_the_second_stage(step, tmp_path, arguments_of, whole, monkeypatch):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        die_in_step(patch, step, lambda trainer: trainer.run_dir == run_dir)
        with pytest.raises(Killed):
            main(["train", *arguments_of(run_dir, "two stages")])
    critic = tree(run_dir / "critic")
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole["two stages"])
    assert tree(run_dir / "critic") == critic  # a stage that is done is not done again


def test_ctrl_c_between_the_stages(tmp_path, arguments_of, whole, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    original = Trainer.train_step

    def train_step(self):
        figures = original(self)
        if self.step == 2 and self.run_dir == run_dir / "critic":
            signal.raise_signal(signal.SIGINT)
        return figures

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        assert main(["train", *arguments_of(run_dir, "two stages")]) == 130
    assert f"weighted-mtp train --resume --output-dir {run_dir}\n" in capsys.readouterr().out
    assert resume(run_dir) == 0
    assert_same_run(run_dir, whole["two stages"])
    assert same(weights(run_dir / "critic"), weights(whole["two stages"] / "critic"))


@pytest.mark.parametrize("step", [1, 2, 4, 7, 8])
def test_death_in_any_step(step, tmp_path, rows_file, whole, monkeypatch):
    with monkeypatch.context() as patch:
        die_in_step(patch, step)
        with pytest.raises(Killed):
            train(tmp_path / "run", rows_file)
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole["baseline"])


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("save_model", 2),
        ("torch.save", 3),  # optimizer of step 6
        ("torch.save", 4),  # generators of step 6
        ("shutil.rmtree", 4),  # the marker of step 6 is set, its directory not yet renamed
        ("shutil.rmtree", 7),  # the checkpoint of step 3 has lost its marker, but is there
    ],
)
def test_death_while_saving(call, number, tmp_path, rows_file, whole, monkeypatch):
    calls = 0
    owner, _, name = call.rpartition(".")
    place = getattr(checkpoint_utils, owner) if owner else checkpoint_utils
    original = getattr(place, name)

    def dies(*args, **kwargs):
        nonlocal calls
        ours = name != "rmtree" or "step-" in str(args[0])
        calls += ours
        if ours and calls == number:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, dies)
        with pytest.raises(Killed):
            train(tmp_path / "run", rows_file)
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole["baseline"])
    assert checkpoint_names(tmp_path / "run") == ["step-00000006", "step-00000008"]


def test_death_twice(half_way, whole, monkeypatch):
    with monkeypatch.context() as patch:
        die_in_step(patch, 8)
        with pytest.raises(Killed):
            resume(half_way)
    assert resume(half_way) == 0
    assert_same_run(half_way, whole["baseline"])


def test_a_cut_metrics_line_is_written_again(half_way, whole):
    with (half_way / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 7, "lo')
    assert resume(half_way) == 0
    assert_same_run(half_way, whole["baseline"])


@pytest.mark.parametrize("remains", ["no marker", "partial"])
def test_a_half_written_checkpoint_is_ignored(remains, half_way, whole):
    newest = last_checkpoint(half_way)
    broken = newest.with_name("step-00000007" + (".partial" if remains == "partial" else ""))
    shutil.copytree(newest, broken)
    (broken / "COMPLETE").unlink()
    (broken / "optimizer.pt").write_bytes(b"")
    assert resume(half_way) == 0
    assert [name for name in checkpoint_names(half_way) if name.endswith(".partial")] == []
    assert same(weights(half_way), weights(whole["baseline"]))
    assert records(half_way) == records(whole["baseline"])


def test_resuming_a_finished_run_changes_nothing(half_way, capsys):
    assert resume(half_way) == 0
    before = tree(half_way)
    assert resume(half_way) == 0
    assert "done: 8 steps" in capsys.readouterr().out
    assert tree(half_way) == before


def test_resume_of_nothing_is_refused(tmp_path, capsys):
    assert resume(tmp_path / "absent") == 2
    assert "no run to resume" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()


def test_resume_as_another_recipe_is_refused(half_way, capsys):
    before = tree(half_way)
    assert resume(half_way, "--recipe", "ntp") == 2
    assert "is a baseline run; it cannot resume as ntp" in capsys.readouterr().err
    assert tree(half_way) == before
    assert resume(half_way, "--recipe", "baseline") == 0


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "absent"])
@pytest.mark.parametrize("name", ["optimizer.pt", "rng-0.pt", "trainer.json"])
def test_a_damaged_file_is_named(name, damage, half_way, capsys):
    path = last_checkpoint(half_way) / name
    content = path.read_bytes()
    replaced = {"cut": content[: len(content) // 2], "text": b"not what it was\n", "empty": b""}
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(replaced[damage])
    capsys.readouterr()
    before = tree(half_way)
    assert resume(half_way) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert str(path) in error
    assert tree(half_way) == before


def test_a_checkpoint_without_what_is_to_be_restored(half_way, capsys):
    """Of an earlier version, say."""
    path = last_checkpoint(half_way) / "trainer.json"
    state = json.loads(path.read_text())
    del state["best"], state["sums"]
    path.write_text(json.dumps(state))
    path.with_name("sums.json").unlink()
    assert resume(half_way) == 2
    assert str(path.parent) in capsys.readouterr().err.splitlines()[-1]


def test_a_resumed_run_can_be_made_longer(half_way):
    assert resume(half_way, "--set", "training.steps=10") == 0
    assert [r["step"] for r in records(half_way) if r["kind"] == "train"] == list(range(1, 11))
    assert "steps: 10" in (half_way / "config.yaml").read_text()  # or the next resume forgets it


def test_auto_begins_or_goes_on(half_way, whole, tmp_path, rows_file):
    """What a cluster can start again and again with one command."""
    assert main(["train", *train_arguments(half_way, rows_file), "--resume", "auto"]) == 0
    assert_same_run(half_way, whole["baseline"])
    new = tmp_path / "new"
    assert main(["train", *train_arguments(new, rows_file), "--resume=auto"]) == 0
    assert_same_run(new, whole["baseline"])


@pytest.mark.parametrize("call", [3, 4])  # optimizer of step 6, generators of step 6
def test_a_full_disk_is_told_and_costs_nothing(
    call, tmp_path, rows_file, whole, monkeypatch, capsys
):
    original, calls = torch.save, 0

    def full(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_utils.torch, "save", full)
        assert train(tmp_path / "run", rows_file) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step-00000006.partial: cannot be written (" in error
    assert "is incomplete; is the disk full?" in error
    assert "make room, then --resume" in error
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", whole["baseline"])


# --- with other settings, or other content under the same name -----------------------------------


def told(capsys) -> list[str]:
    """What was said of the run's changes, one line a key."""
    return [line for line in capsys.readouterr().err.splitlines() if " → " in line]


def test_nothing_is_said_where_nothing_changed(half_way, capsys):
    capsys.readouterr()
    assert resume(half_way) == 0
    error = capsys.readouterr().err
    assert " → " not in error
    assert "fingerprint" not in error


def test_every_change_is_told_and_comes_true(half_way, capsys):
    capsys.readouterr()
    more = ("--set", "training.steps=12", "--set", "training.learning_rate=0.5")
    assert resume(half_way, *more) == 0
    lines = told(capsys)
    assert [line.split(": ")[1].split()[0] for line in lines] == [
        "training.steps",
        "training.learning_rate",
    ]
    rate = next(r["learning_rate"] for r in records(half_way) if r["step"] == 7)
    assert all("the learning rate of step 7 changes from " in line for line in lines)
    assert all(line.endswith(f" to {rate:.3g}") for line in lines)
    assert resume(half_way) == 0  # the next resume finds what this one wrote
    assert told(capsys) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("training.steps", 5, "6 steps are done already; set it to 6 or more"),
        ("training.optimizer", "muon", "the saved state is the other optimizer's"),
        ("data.template", "alpaca", "the model has learnt from other prompts"),
        ("data.sampling.n_samples", 4, "a place in the order"),
        ("runtime.seed", 1, "a place in the order"),
        ("objective.heads", 1, "two objectives"),
        ("model.architecture.dim", 64, "the weights are those of the checkpoint"),
        ("tokenizer.kind", "micro", "the model's tokens would mean something else"),
    ],
)
def test_what_cannot_be_meant_is_refused(key, value, words, half_way, capsys):
    before = tree(half_way)
    capsys.readouterr()
    for more in ((), ("--dry-run",)):
        assert resume(half_way, "--set", f"{key}={value}", *more) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {half_way}: cannot be resumed with {key} ")
        assert words in error
        assert f"--output-dir OTHER --set model.path={half_way}" in error
    assert tree(half_way) == before


def test_a_refusal_does_not_depend_on_the_command_line(half_way):
    """Who calls the pipeline with a recipe of his own is refused as well."""
    recipe = load_recipe_file(half_way / "config.yaml", ["data.template=alpaca"])
    before = tree(half_way)
    with pytest.raises(UserError, match=r"cannot be resumed with data\.template short → alpaca"):
        run_baseline(RunRequest(recipe, half_way, resume=True))
    assert tree(half_way) == before


@pytest.mark.parametrize("step", [3, None])
def test_other_rows_under_the_same_name(step, tmp_path, rows_file, monkeypatch, capsys):
    """An added row, say, would shift every row that is still to be read."""
    rows, run_dir = tmp_path / "rows.jsonl", tmp_path / "run"
    shutil.copy(rows_file, rows)
    with monkeypatch.context() as patch:
        die_in_step(patch, 5 if step else 2)
        with pytest.raises(Killed):
            train(run_dir, rows, data__validation=rows_file)
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join([*lines, lines[0].replace("add", "sum")]))
    before = tree(run_dir)
    capsys.readouterr()
    if step is None:  # nothing was saved: it begins again, with the rows as they are
        assert resume(run_dir) == 0
        return
    assert resume(run_dir) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{run_dir}: the training data changed since step-00000003 was saved" in error
    assert tree(run_dir) == before
    rows.write_text("".join(lines))
    assert resume(run_dir) == 0


def test_rows_that_moved_are_the_same_rows(half_way, rows_file, whole, tmp_path, capsys):
    moved = tmp_path / "moved.jsonl"
    shutil.copy(rows_file, moved)
    capsys.readouterr()
    assert resume(half_way, "--set", f"data.train={moved}") == 0
    (line,) = told(capsys)
    assert f"data.train {rows_file} → {moved}: its content is compared" in line
    assert same(weights(half_way), weights(whole["baseline"]))


def test_other_held_out_rows_are_told(half_way, rows_file, tmp_path, capsys):
    other = tmp_path / "held-out.jsonl"
    other.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:9]))
    capsys.readouterr()
    assert resume(half_way, "--set", f"data.validation={other}") == 0
    error = capsys.readouterr().err
    assert "figures of validations are of other rows from step 7 on" in error
    assert "the validation data has other content than when step-00000006 was saved" in error


def test_other_text_under_the_same_name(tmp_path, rows_file, monkeypatch, capsys):
    text, run_dir = tmp_path / "text.jsonl", tmp_path / "run"
    shutil.copy(rows_file, text)
    with monkeypatch.context() as patch:
        die_in_step(patch, 5)
        with pytest.raises(Killed):
            train(run_dir, rows_file, "pretrain", **{**TEXT, "data__text__path": text})
    before = tree(run_dir)
    text.write_text(rows_file.read_text().replace("return 3", "return 4"))
    assert resume(run_dir) == 2
    assert "the training data changed since step-00000003" in capsys.readouterr().err
    assert tree(run_dir) == before
    moved = tmp_path / "folder" / "moved.jsonl"
    moved.parent.mkdir()
    shutil.copy(rows_file, moved)
    assert resume(run_dir, "--set", f"data.text.path={moved.parent}") == 0


@pytest.mark.parametrize("source", ["reference", "reference_model"])
def test_another_reference_under_the_same_name(
    source, tmp_path, rows_file, critic_model, reference_file, monkeypatch, capsys
):
    given, run_dir, other = tmp_path / "given", tmp_path / "run", tmp_path / "other"
    ByteTokenizer().save(tmp_path / "tokenizer")
    args = tiny_args(vocab_size=259, max_seq_len=64, n_future_tokens=3)
    files = sorted((tmp_path / "tokenizer").iterdir())
    save_native(tiny_model(args, seed=9), other, tokenizer_files=files)
    if source == "reference":
        shutil.copy(reference_file, given)
    else:
        shutil.copytree(critic_model, given)
    with monkeypatch.context() as patch:
        die_in_step(patch, 5)
        with pytest.raises(Killed):
            train(run_dir, rows_file, "rho1", **{f"objective__rho1__{source}": given})
    before = tree(run_dir)
    if source == "reference":
        prepare_reference_losses(reference_request(rows_file, other, given))
    else:
        given.rename(tmp_path / "kept")
        shutil.copytree(other, given)
    assert resume(run_dir) == 2
    assert "the reference model changed since step-00000003" in capsys.readouterr().err
    assert tree(run_dir) == before
    where = reference_file if source == "reference" else tmp_path / "kept"
    assert resume(run_dir, "--set", f"objective.rho1.{source}={where}") == 0


def test_another_tokenizer_under_the_same_name(half_way, monkeypatch, capsys):
    monkeypatch.setattr(ByteTokenizer, "fingerprint", "bytes-v0")
    before = tree(half_way)
    assert resume(half_way) == 2
    assert "the tokenizer changed since step-00000006" in capsys.readouterr().err
    assert tree(half_way) == before


def test_a_checkpoint_of_a_version_that_kept_no_fingerprints(half_way, whole, capsys):
    path = last_checkpoint(half_way) / "trainer.json"
    state = json.loads(path.read_text())
    del state["sources"], state["sums"]
    path.write_text(json.dumps(state))
    path.with_name("sums.json").unlink()
    capsys.readouterr()
    assert resume(half_way) == 0
    assert "kept no fingerprint of the data" in capsys.readouterr().err
    assert same(weights(half_way), weights(whole["baseline"]))


def test_a_recipe_that_is_not_read_is_told(half_way, tmp_path, capsys):
    """--resume auto with a file that was edited since: the run keeps its own."""
    edited = tmp_path / "edited.yaml"
    edited.write_text((half_way / "config.yaml").read_text().replace("steps: 8", "steps: 12"))
    capsys.readouterr()
    arguments = ["train", "--resume=auto", "--recipe", str(edited)]
    assert main([*arguments, "--output-dir", str(half_way)]) == 0
    (line,) = told(capsys)
    assert "a resumed run keeps its own recipe" in line
    assert "is ignored: training.steps 8 → 12 (change a setting with --set)" in line
    assert records(half_way)[-1]["step"] == 8


def test_a_run_that_stopped_early_says_so(tmp_path, rows_file, monkeypatch, capsys):
    run_dir, more = tmp_path / "run", ("--set", "training.steps=9")
    change = {"training__early_stopping": "{patience: 1, min_delta: 9}", "training__steps": 8}
    assert train(run_dir, rows_file, **change, training__validate_every=1) == 0
    assert records(run_dir)[-1]["step"] == 2
    capsys.readouterr()
    assert resume(run_dir, *more) == 0
    assert "training.early_stopping ended it after step 2" in capsys.readouterr().err
    assert resume(run_dir, *more, "--set", "training.monitor=grad_norm") == 2  # no such figure
    assert (
        "training.monitor 'grad_norm' is not a number of the validation" in capsys.readouterr().err
    )


@pytest.mark.parametrize("first", [True, False])
def test_both_stages_are_told(first, tmp_path, arguments_of, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    where = run_dir / "critic" if first else run_dir
    with monkeypatch.context() as patch:
        die_in_step(patch, 4, lambda trainer: trainer.run_dir == where)
        with pytest.raises(Killed):
            main(["train", *arguments_of(run_dir, "two stages")])
    before = tree(run_dir)
    assert resume(run_dir, "--set", "critic_stage.steps=6") == 2
    assert tree(run_dir) == before
    capsys.readouterr()
    assert resume(run_dir, "--set", "training.learning_rate=0.5") == 0
    lines = [line.split(" 0.")[0] for line in told(capsys)]
    main_stage, critic = (f"{d}: training.learning_rate" for d in (run_dir, run_dir / "critic"))
    assert lines == ([main_stage, critic] if first else [main_stage])
