"""A run whose directory was lost goes on from its remote directory as if nothing had happened."""

import shutil
from pathlib import Path

import pytest
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    CRITIC,
    checkpoint_names,
    last_checkpoint,
    resume,
    tiny_recipe,
    train,
    train_arguments,
    tree,
)
from tests.integration.test_resume import Killed, assert_same_run, die_in_step

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.checkpointing import remote_directory as remote_module
from weighted_mtp.pipelines.checkpointing.remote_directory import Remote
from weighted_mtp.pipelines.request import RunRequest
from weighted_mtp.pipelines.train import run_pipeline, run_request

rows_file = helpers_training.rows_file

TWO_STAGES = {**CRITIC, "critic_stage__steps": 4, "training__steps": 5}


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(remote_module, "WAITS", ())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rows_file) -> Path:
    """A run of 8 steps without a remote, that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(run_dir, rows_file) == 0
    return run_dir


@pytest.fixture(scope="module")
def both(tmp_path_factory, rows_file) -> Path:
    """The same of two stages."""
    run_dir = tmp_path_factory.mktemp("both") / "run"
    assert train(run_dir, rows_file, "verifiable", **TWO_STAGES) == 0
    return run_dir


@pytest.fixture
def url(tmp_path) -> str:
    return f"file://{tmp_path}/remote"


def all_arrived(trainer) -> bool:
    """Once what was begun has, so that a test knows what is there."""
    worker = trainer.copies._worker
    if worker is not None:
        worker.join()
    return True


def copied(remote: Path, run_dir: Path) -> bool:
    """Whether all that is to be copied is there, and nothing else."""
    names = checkpoint_names(run_dir)
    return checkpoint_names(remote) == names and arrived(remote, run_dir, names)


def arrived(remote: Path, run_dir: Path, names: list[str]) -> bool:
    """Whether these checkpoints are there, and the records of the run."""
    there, here = tree(remote), tree(run_dir)
    kinds = ("config.yaml", "metrics.jsonl", *(f"checkpoints/{name}/" for name in names))
    expected = {name for name in here if name.startswith(kinds)}
    return expected == {name for name in there if name.startswith(kinds)} and all(
        there[name] == here[name] for name in expected if not name.endswith("COMPLETE")
    )


def test_a_lost_run_goes_on_elsewhere(tmp_path, rows_file, url, whole, monkeypatch):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        die_in_step(patch, 8, all_arrived)
        with pytest.raises(Killed):
            train(run_dir, rows_file, training__remote=url)
    shutil.rmtree(run_dir)
    other = tmp_path / "other" / "machine"
    assert resume(other, "--set", f"training.remote={url}") == 0
    assert_same_run(other, whole)
    assert copied(tmp_path / "remote", other)
    assert checkpoint_names(tmp_path / "remote") == checkpoint_names(whole)

    # A directory that has fallen behind takes up what is newer there; one that has not, does not.
    shutil.rmtree(last_checkpoint(other))
    assert resume(other) == 0
    assert_same_run(other, whole)
    before = tree(other)
    assert resume(other) == 0
    assert tree(other) == before


@pytest.mark.parametrize(
    ("stage", "step"), [("critic", 1), ("critic", 4), ("main", 2), ("main", 5)]
)
def test_two_stages_go_on_elsewhere(stage, step, tmp_path, rows_file, url, both, monkeypatch):
    run_dir = tmp_path / "run"

    def where(trainer) -> bool:
        return (trainer.run_dir == run_dir) == (stage == "main") and all_arrived(trainer)

    with monkeypatch.context() as patch:
        die_in_step(patch, step, where)
        with pytest.raises(Killed):
            train(run_dir, rows_file, "verifiable", training__remote=url, **TWO_STAGES)
    shutil.rmtree(run_dir)
    assert resume(run_dir, "--set", f"training.remote={url}") == 0
    assert_same_run(run_dir, both)
    assert_same_run(run_dir / "critic", both / "critic")
    assert copied(tmp_path / "remote", run_dir)
    assert arrived(tmp_path / "remote" / "critic", run_dir / "critic", ["step-00000004"])


def test_what_did_not_arrive_is_told_at_the_end(
    tmp_path, rows_file, url, whole, monkeypatch, capsys
):
    run_dir, put = tmp_path / "run", Remote.put

    def fails(self, source, name):
        if "step-00000008" in name:
            raise remote_module.RemoteError("the disk is full")
        put(self, source, name)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", fails)
        assert train(run_dir, rows_file, training__remote=url) == 2
    printed = capsys.readouterr()
    assert "done: 8 steps" in printed.out
    assert printed.err.splitlines()[-1] == (
        f"error: {run_dir}: all is saved there, but step 8 is not in {url} (the disk is full); "
        f"put that right, then weighted-mtp train --resume --output-dir {run_dir} copies what is "
        "missing"
    )
    assert_same_run(run_dir, whole)
    assert resume(run_dir) == 0
    assert copied(tmp_path / "remote", run_dir)


def test_a_first_stage_that_did_not_arrive(tmp_path, rows_file, url, both, monkeypatch, capsys):
    """The second one is trained all the same, and then the first is tried again."""
    run_dir, put = tmp_path / "run", Remote.put
    down = True

    def fails(self, source, name):
        if down and "critic" in self.url:
            raise remote_module.RemoteError("no route")
        put(self, source, name)

    monkeypatch.setattr(Remote, "put", fails)
    assert train(run_dir, rows_file, "verifiable", training__remote=url, **TWO_STAGES) == 2
    assert f"step 4 is not in {url}/critic (no route)" in capsys.readouterr().err
    assert_same_run(run_dir, both)
    down = False
    assert resume(run_dir) == 0
    assert copied(tmp_path / "remote", run_dir)
    assert arrived(tmp_path / "remote" / "critic", run_dir / "critic", ["step-00000004"])


def test_best_checkpoints_are_kept_there_too(tmp_path, rows_file, url):
    changes = {
        "training__keep_best": 1,
        "training__keep_last": 1,
        "training__monitor_mode": "max",  # the first validation is the best one
        "training__remote": url,
    }
    assert train(tmp_path / "run", rows_file, **changes) == 0
    assert checkpoint_names(tmp_path / "run") == ["step-00000004", "step-00000008"]
    assert copied(tmp_path / "remote", tmp_path / "run")


def test_a_run_does_not_mix_with_another(tmp_path, rows_file, url, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    few = {"training__steps": 1, "training__remote": url}
    assert train(one, rows_file, **few) == 0
    before = tree(tmp_path / "remote")
    assert train(two, rows_file, **few) == 2
    assert "holds a run already; add --resume to continue it, give" in capsys.readouterr().err
    assert not two.exists()
    assert train(two, rows_file, "ntp", training__steps=1) == 0
    assert resume(two, "--set", f"training.remote={url}") == 2
    assert f"holds another run than {two}: pipeline is not the same" in capsys.readouterr().err
    assert tree(tmp_path / "remote") == before


def without_locks(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in tree(folder).items() if not name.endswith(".lock")}


@pytest.mark.parametrize("lost", ["the newest checkpoint", "everything"])
def test_a_changed_recipe_is_refused_before_anything_is_fetched(lost, tmp_path, rows_file, url):
    """From Python too, where a whole recipe is given."""
    run_dir = tmp_path / "run"
    small = {"training__steps": 2, "training__save_every": 1}
    assert train(run_dir, rows_file, training__remote=url, **small) == 0
    shutil.rmtree(run_dir if lost == "everything" else last_checkpoint(run_dir))
    before = without_locks(tmp_path)
    changed = tiny_recipe(rows_file, training__remote=url, runtime__seed=9, **small)
    with pytest.raises(UserError, match=r"cannot be resumed with runtime\.seed"):
        run_pipeline(RunRequest(changed, run_dir, resume=True))
    with pytest.raises(UserError, match=r"cannot be resumed with runtime\.seed"):
        run_request(changed, output_dir=run_dir, resume=True)
    assert without_locks(tmp_path) == before
    same = tiny_recipe(rows_file, training__remote=url, **small)
    assert run_pipeline(RunRequest(same, run_dir, resume=True)).step == 2


def test_a_start_that_fails_leaves_nothing(tmp_path, rows_file, capsys):
    (tmp_path / "file").write_text("no folder\n")
    run_dir, url = tmp_path / "run", f"file://{tmp_path}/file/remote"
    assert train(run_dir, rows_file, training__remote=url) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: training.remote {url} cannot be used: ")
    assert "--set training.remote=null" in error
    assert resume(run_dir, "--set", f"training.remote={tmp_path}") == 2
    assert "training.remote is no URL" in capsys.readouterr().err
    assert train(run_dir, rows_file, training__remote=f"file://{run_dir}") == 2
    assert "is the run directory itself" in capsys.readouterr().err
    assert resume(run_dir, "--set", f"training.remote=file://{tmp_path}/empty") == 2
    assert f"no run to resume, and none in file://{tmp_path}/empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_dry_run_writes_nothing_there(tmp_path, rows_file, url, monkeypatch, capsys):
    arguments = train_arguments(tmp_path / "run", rows_file, training__remote=url)
    assert main(["train", "--dry-run", *arguments]) == 0
    assert f"remote: {url}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []

    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote_module, "url_to_fs", missing)
    arguments = train_arguments(tmp_path / "run", rows_file, training__remote="s3://box/run")
    assert main(["train", "--dry-run", *arguments]) == 2
    assert "pip install 'weighted-mtp[s3]'" in capsys.readouterr().err
